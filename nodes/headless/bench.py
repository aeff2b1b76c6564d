"""Measure what LongReel costs, against the host's own way, and what its memories remember."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from ...memory.whole_file import whole_file
from .bench_retrieval import add_retrieval
from .boot import DEVICES, boot_host
from .train import FAMILIES
from .workflow import WorkflowError

NAME = "bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which measurement."""
    benches = parser.add_subparsers(metavar="BENCH", required=True)
    loop = benches.add_parser("loop", help="the chunk loop against the host's own autoregressive sampler")
    loop.add_argument("--runs", type=int, default=9, help="interleaved runs of each side (default: 9)")
    loop.add_argument("--chunks", type=int, default=8, help="chunks of a run (default: 8)")
    loop.add_argument("--long-chunks", type=int, default=206, help="chunks of the long film (default: 206)")
    loop.add_argument("--width", type=int, default=1536, help="model width, a multiple of 128 (default: 1536)")
    loop.add_argument("--device", choices=DEVICES, default="auto")
    loop.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    loop.set_defaults(bench=run_loop)
    recall = benches.add_parser("recall", help="is a character drawn as it was when it comes back? Every memory policy")
    recall.add_argument("--quick", action="store_true", help="few films at few distances: 5 minutes on 2 cores")
    recall.add_argument(
        "--films", type=int, help="films for each film length and distance (default: 96; 3 with --quick)"
    )
    recall.add_argument("--weights", type=Path, metavar="FOLDER", help="a model that `longreel train tiny` made")
    recall.add_argument(
        "--family", choices=FAMILIES, help="which tiny model (default: the one in --weights, or else wan)"
    )
    recall.add_argument(
        "--compare",
        metavar="WHAT",
        default="memories",
        help="memories (default), budgets: how much LongReel reads, ablations: LongReel with one thing changed, banks: what a "
        "prompt brings back, encoders: an ordinary model beside memory encoders, or transitions: how fast a new prompt shows",
    )
    recall.add_argument(
        "--policy",
        action="append",
        metavar="NAME",
        help="only this memory, and the one that all are compared with; may be given several times",
    )
    recall.add_argument(
        "--encoder",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="what `longreel train encoder finetune` wrote, for --compare encoders (default: what ships); may be given several "
        "times",
    )
    recall.add_argument(
        "--drift-films", type=int, help="free-running films (default: 12; 1 with --quick), 0 measures no drift"
    )
    recall.add_argument("--steps", type=int, default=4, help="steps in which a chunk is drawn (default: 4)")
    recall.add_argument(
        "--cell",
        action="append",
        metavar="CHUNKS:DISTANCE",
        help="films of so many chunks, seen so many chunks before the last; may be given several times",
    )
    recall.add_argument("--chunk-frames", type=int, default=1, help="latent frames of a chunk, 1 to 3 (default: 1)")
    recall.add_argument("--characters", type=int, default=5, help="characters of a film, 4 or more (default: 5)")
    recall.add_argument("--seed", type=int, default=0, help="another seed, other films (default: 0)")
    recall.add_argument("--device", choices=DEVICES, default="auto")
    recall.add_argument("--json", type=Path, metavar="FILE", help="write the rows here; a stopped run goes on from it")
    recall.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw identity and who-is-it over distance")
    recall.set_defaults(bench=run_recall)
    context = benches.add_parser("context", help="what a memory encoder takes at real sizes: counted, without weights")
    context.add_argument("--out", type=Path, metavar="FILE.md", help="write the page here (default: print it)")
    context.set_defaults(bench=run_context)
    add_retrieval(benches)
    kernels = benches.add_parser("kernels", help="reading pages against reading everything, correctness first")
    kernels.add_argument("--profile", choices=("smoke", "full"), default="smoke", help="full needs a GPU's patience")
    kernels.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if there is one"
    )
    kernels.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    kernels.add_argument("--note", default="", metavar="TEXT", help="a remark on this run that stays with its numbers")
    instead = kernels.add_mutually_exclusive_group()
    instead.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, print the tables of a --json file")
    instead.add_argument(
        "--tune", action="store_true", help="find the fastest tiles of this GPU and use them from now on"
    )
    instead.add_argument(
        "--record", type=Path, metavar="FILE", help="write what the tiny model asks and keeps, for recorded lists"
    )
    instead.add_argument(
        "--lists",
        type=Path,
        metavar="FILE",
        help="measure what a chunk of a film really read: a file of its folder 'selections' (keep_selections of the sampler)",
    )
    kernels.set_defaults(bench=run_kernels)


def run(args: argparse.Namespace) -> int:
    """Run one measurement."""
    return int(args.bench(args))


def run_loop(args: argparse.Namespace) -> int:
    """Measure the chunk loop and print a table."""
    host = boot_host(args.device)
    from .bench_loop import LoopBench, measure_loop

    bench = LoopBench(runs=args.runs, chunks=args.chunks, long_chunks=args.long_chunks, width=args.width)
    result = measure_loop(bench, host.version)
    print(result.table())
    if args.json is not None:
        args.json.write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0


def run_recall(args: argparse.Namespace) -> int:
    """Measure what each memory brings back, print the tables and write the files."""
    from .recall_command import measure

    return measure(args)


def run_context(args: argparse.Namespace) -> int:
    """Count lengths, operations and bytes of the published models, and write the page."""
    if importlib.util.find_spec("peft") is None:
        raise WorkflowError(
            'Counting what training takes needs the package peft, got none. Run `pip install -e ".[train]"`.'
        )
    if args.out is not None and (args.out.is_dir() or not args.out.parent.is_dir()):
        raise WorkflowError(f"--out needs a file in a folder that is there, got {args.out}. Name another one.")
    boot_host("cpu")
    import peft

    from .context_page import counted_page

    page = counted_page(peft)
    if args.out is None:
        print(page)
    else:
        with whole_file(args.out) as part:
            part.write_text(page, encoding="utf-8")
    return 0


def run_kernels(args: argparse.Namespace) -> int:
    """Measure the kernels, tune them, or show what was measured."""
    from .kernels_command import run_command

    return run_command(args)
