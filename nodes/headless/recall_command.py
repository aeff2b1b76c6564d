"""`longreel bench recall`: checks, measures, says and writes; what was measured before a stop is kept."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ...kernels.bench.measure import source_commit
from ...memory.training.recall_plot import BACK_AFTER, KEYS_READ, budget_curve, draw_recall
from ...memory.training.recall_policies import (
    BUDGETED,
    ENCODERS,
    FULL,
    LONG_CELLS,
    QUICK,
    TRANSITIONS,
    Cell,
    Geometry,
    RecallBench,
)
from ...memory.training.recall_report import RecallReport
from ...memory.training.recall_samples import Samples
from ...memory.whole_file import ProjectError, whole_file
from .boot import boot_host
from .render import INTERRUPTED_EXIT, set_logging
from .workflow import WorkflowError

SHIPPED_ENCODER = "tiny encoder"
"""What the rows of the encoder that ships are called."""
ROOM = 32 * 1024 * 1024
"""Free bytes that results need at most."""


def measure(args: argparse.Namespace) -> int:
    """Run the benchmark; the exit code. WorkflowError for anything that the user can put right."""
    try:
        return _measure_transitions(args) if args.compare == TRANSITIONS else _measure(args)
    except (ValueError, ProjectError) as error:
        raise WorkflowError(str(error)) from error


def _measure(args: argparse.Namespace) -> int:
    bench = _recall_bench(args)
    for target in (args.json, args.plot):
        if target is not None:
            _check_target(target)
    set_logging(verbose=False)
    host = boot_host(args.device)
    from .bench_encoder import encoded_models
    from .bench_recall import LATENT_SIZE, RecallRun, TinyModel, bench_settings, family_in, load_weights
    from .machine import machine

    model = TinyModel(args.weights, args.family)
    if bench.compare == ENCODERS:
        folders = dict(zip(bench.encoders, args.encoder or (None,), strict=False))
        family = args.family or family_in(args.weights)
        model.encoded = encoded_models(folders, load_weights(args.weights, family), bench.chunk_frames, family)
    settings = bench_settings(bench, model)
    kept = None if args.json is None else args.json.with_suffix(".samples.jsonl")
    samples = Samples(kept, settings, source_commit())
    stop: KeyboardInterrupt | ProjectError | None = None
    try:
        RecallRun(bench, model, samples).run(_Progress(bench.films).tell)
    except (KeyboardInterrupt, ProjectError) as stopped:
        stop = stopped
    header = _recall_header(args, bench, settings, samples.sources, machine(host.version))
    header["encoders"] = {row.name: row.cost(LATENT_SIZE) for row in model.encoded if row.name in bench.encoders}
    report = RecallReport(
        header,
        list(samples.samples.values()),
        list(samples.drifts.values()),
    )
    print(report.markdown())
    if isinstance(stop, ProjectError):
        raise stop
    _write_recall(report, args)
    if stop is None:
        return 0
    again = (
        "The same command goes on from here." if kept else "With --json FILE the same command would go on from here."
    )
    print(f"Stopped. {again}", file=sys.stderr)
    return INTERRUPTED_EXIT


def _measure_transitions(args: argparse.Namespace) -> int:
    """How soon a new prompt shows; one table, written at the end."""
    base = QUICK if args.quick else FULL
    films = base.films if args.films is None else args.films
    bench = dataclasses.replace(base, films=films, chunk_frames=args.chunk_frames, seed=args.seed)
    if args.json is not None:
        _check_target(args.json)
    set_logging(verbose=False)
    host = boot_host(args.device)
    from .bench_recall import TinyModel
    from .bench_transitions import measure_transitions, transition_rows, transition_table
    from .machine import machine

    model = TinyModel(args.weights, args.family)
    progress = _Progress(bench.films)
    switches = measure_transitions(model, bench.films, bench.chunk_frames, bench.seed, progress.tell)
    rows = transition_rows(switches)
    print(transition_table(rows, bench.chunk_frames))
    if args.json is not None:
        facts = {"weights": model.fingerprint, "commit": source_commit(), "machine": machine(host.version)}
        told = {**facts, "chunk_frames": bench.chunk_frames, "seed": bench.seed, "rows": rows}
        with whole_file(args.json) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        print(f"rows  {args.json}", file=sys.stderr)
    return 0


def _recall_bench(args: argparse.Namespace) -> RecallBench:
    """What the arguments ask for; ValueError where it makes no sense."""
    bench = QUICK if args.quick else FULL
    chosen: dict[str, Any] = {"chunk_frames": args.chunk_frames, "characters": args.characters, "seed": args.seed}
    if args.compare != bench.compare:
        chosen |= {"compare": args.compare, "cells": bench.cells if args.quick else LONG_CELLS}
    if args.cell:
        chosen["cells"] = tuple(_cell(text) for text in args.cell)
    films = bench.films if args.films is None else args.films
    drift = bench.drift_films if args.drift_films is None else args.drift_films
    chosen |= {"policies": tuple(args.policy or ()), "steps": args.steps}
    if args.encoder:
        chosen["encoders"] = _encoder_names(args.encoder, args.compare)
    elif args.compare == ENCODERS and args.weights is None and args.family != "hunyuan":
        chosen["encoders"] = (SHIPPED_ENCODER,)
    return dataclasses.replace(bench, films=films, drift_films=min(films, drift), **chosen)


def _encoder_names(folders: list[Path], compare: str) -> tuple[str, ...]:
    """What the rows of the encoders in these folders are called; ValueError where that makes no sense."""
    names = tuple(folder.resolve().name for folder in folders)
    if compare != ENCODERS or len(set(names)) < len(names):
        raise ValueError(
            f"--encoder needs --compare {ENCODERS} and folders of different names, got --compare {compare} and "
            f"{', '.join(names)}. Rows are named after their folders."
        )
    return names


def _cell(text: str) -> Cell:
    """The cell that `48:40` means; ValueError for anything else."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--cell needs CHUNKS:DISTANCE, as in 48:40, got {text}.")
    return Cell(int(parts[0]), int(parts[1]))


def _check_target(path: Path) -> None:
    """Make the folder of a result; WorkflowError where it cannot be written."""
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise WorkflowError(
            f"A result should go into a file that can be written: {error}. Name another one."
        ) from error
    if free < ROOM:
        raise WorkflowError(
            f"The results need {ROOM >> 20} MiB, got {free >> 20} MiB free beside {path}. Make room, or name another disk."
        )


def _recall_header(
    args: argparse.Namespace,
    bench: RecallBench,
    settings: dict[str, Any],
    commits: list[str],
    machine: dict[str, str],
) -> dict[str, Any]:
    """What the tables are of, and the command in words that a shell takes: names of files without their folders, because those are of
    one machine."""
    given = [f"--films {bench.films}"]
    given += ["--quick"] if args.quick else []
    given += [f"--family {args.family}"] if args.family is not None else []
    for name in ("weights", "json", "plot"):
        if getattr(args, name) is not None:
            given.append(f"--{name} {shlex.quote(getattr(args, name).name)}")
    given += [f"--cell {text}" for text in args.cell or ()]
    given += [f"--encoder {shlex.quote(name)}" for name in bench.encoders if args.encoder]
    given += [f"--policy {shlex.quote(name)}" for name in bench.policies]
    given += [f"--drift-films {args.drift_films}"] if args.drift_films is not None else []
    given += [f"--compare {bench.compare}"] if bench.compare != FULL.compare else []
    given += [f"--steps {bench.steps}"] if bench.steps != FULL.steps else []
    given += [f"--chunk-frames {bench.chunk_frames}", f"--characters {bench.characters}", f"--seed {bench.seed}"]
    return {
        "command": f"longreel bench recall {' '.join(given)}",
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "commits": commits,
        "machine": machine,
        "settings": settings,
        "policies": list(settings["policies"]),
        "chance": 1 / bench.characters,
        "sparse_ablations": Geometry(bench.chunk_frames).refusal or "possible at this size",
    }


def _write_recall(report: RecallReport, args: argparse.Namespace) -> None:
    if args.json is not None:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"rows  {args.json}", file=sys.stderr)
    if args.plot is not None and report.samples:
        rows, axis = report.rows(), BACK_AFTER
        if args.compare == BUDGETED:
            rows, axis = budget_curve(rows), KEYS_READ
        with whole_file(args.plot) as part:
            draw_recall(rows, report.header["chance"], axis).save(part, format="PNG")
        print(f"plot  {args.plot}", file=sys.stderr)


class _Progress:
    """Says on standard error how many films are done and how long the rest takes."""

    def __init__(self, films: int) -> None:
        self.films, self.started = films, time.monotonic()

    def tell(self, done: int) -> None:
        """After each film."""
        minutes = (time.monotonic() - self.started) / done * (self.films - done) / 60
        print(f"film {done} of {self.films}, about {minutes:.0f} minutes left", file=sys.stderr, flush=True)
