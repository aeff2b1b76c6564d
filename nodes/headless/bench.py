"""Measure what LongReel costs, against the host's own way."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .boot import DEVICES, boot_host

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
