"""`longreel bench kernels`: measures, shows, tunes or records. Only recording needs ComfyUI."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...kernels.bench import KernelBench, NothingToTuneError, run_kernel_bench, tune
from ...kernels.bench.recorded import save_recording
from .boot import boot_host
from .workflow import WorkflowError


def run_command(args: argparse.Namespace) -> int:
    """Do what the arguments ask for; the exit code."""
    if args.tune:
        return tune_tiles()
    if args.show is not None:
        print(read_bench(args.show).table())
    elif args.record is not None:
        record_film(args.record)
    else:
        measure(args)
    return 0


def measure(args: argparse.Namespace) -> None:
    """Run the bench, print its tables and write its rows."""
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise WorkflowError(
            "`--device cuda` needs a GPU that torch can use, got none. Leave it out to measure the CPU."
        )
    result = run_kernel_bench(args.profile, device, note=args.note)
    print(result.table())
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")


def read_bench(path: Path) -> KernelBench:
    """What `--json` wrote; WorkflowError where that is not what the file holds."""
    try:
        return KernelBench.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WorkflowError(
            f"--show needs a file that `longreel bench kernels --json` of this version wrote, got {path.name}: {error}."
        ) from error


def tune_tiles() -> int:
    """Tune and say what came of it; having nothing to tune is no error."""
    try:
        print(tune().table())
    except NothingToTuneError as nothing:
        print(nothing)
    return 0


def record_film(path: Path) -> None:
    """Write a recording of the shipped tiny model."""
    boot_host("cpu")
    from .bench_recall import TinyModel
    from .kernels_record import record

    recording = record(TinyModel())
    save_recording(path, recording)
    print(f"{recording.frames} frames of history and a chunk, layers {recording.facts['layers']}: {path}")
