"""`longreel bench kernels`: measures, shows, tunes or records. Only recording needs ComfyUI."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...kernels.bench import FilmLists, KernelBench, KernelCase, NothingToTuneError, run_kernel_bench, tune
from ...kernels.bench.recorded import save_recording
from ...kernels.pages import PageLists
from ...memory.selections import COMMIT, read_selections
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
    film = None if args.lists is None else film_lists(args.lists, torch.bfloat16 if device == "cuda" else torch.float32)
    result = run_kernel_bench(args.profile, device, note=args.note, film=film)
    print(result.table())
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")


def film_lists(path: Path, dtype: torch.dtype) -> FilmLists:
    """The lists of the middle layer at the last step of a chunk, and a case of that film's sizes.

    WorkflowError where the file holds none.
    """
    try:
        selections = read_selections(path)
    except (OSError, ValueError) as error:
        raise WorkflowError(f"--lists needs a file of a film's folder 'selections': {error}") from error
    facts = selections.facts
    steps = [call for call in selections.calls if call.step != COMMIT and call.stream == 0]
    if not steps:
        raise WorkflowError(f"--lists needs a chunk that was denoised, but {path.name} holds its commit alone.")
    last = max(call.step for call in steps)
    at = max(
        index
        for index, call in enumerate(selections.calls)
        if (call.step, call.layer, call.stream) == (last, facts["layers"] // 2, 0)
    )
    frames, pages = selections.shortlist_of(at)  # [H, M]
    lists = selections.lists_of(at)
    case = KernelCase(
        f"chunk {path.stem} of a film, layer {facts['layers'] // 2}, step {last}",
        heads=facts["heads"],
        frames=facts["dense_frames"] + len(selections.offered),
        dtype=dtype,
        head_dim=facts["head_dim"],
        frame_tokens=facts["frame_tokens"],
        chunk_frames=facts["end_frame"] - facts["first_frame"],
        dense_frames=facts["dense_frames"],
        page_tokens=facts["page_tokens"],
        group_tokens=facts["group_tokens"],
        listed=lists.slots.shape[-1],
        shortlist=frames.shape[1],
        lists="film",
        layers=facts["layers"],
        ffn=None,
    )
    places = torch.searchsorted(torch.from_numpy(selections.offered).long(), frames)
    slots = case.first_bank_slot + places * case.pages_per_frame + pages
    picture = lists.slots[:, : case.groups]  # words of a prompt come behind
    chosen = slots.gather(1, picture.flatten(1).long()).view(picture.shape).sort(dim=-1).values.int()
    return FilmLists(case, PageLists(chosen, lists.counts[:, : case.groups]))


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
