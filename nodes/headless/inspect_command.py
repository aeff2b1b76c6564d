"""Show what a film remembered: one page for any browser and a PNG, from its trace."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...memory.inspection import inspect_film
from ...memory.trace import TraceError, read_trace
from ...memory.whole_file import explained

NAME = "inspect"
TRACE_FILE = "trace.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trace, and where the page and the picture go."""
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="a film's folder in output/longreel, or its trace.jsonl"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", required=True, help="the page; it needs nothing else")
    parser.add_argument("--png", type=Path, metavar="FILE.png", help="the picture (default: beside the page)")
    parser.add_argument("--width", type=int, default=1280, help="pixels of the picture (default: 1280)")
    parser.add_argument("--height", type=int, default=1024, help="pixels of the picture (default: 1024)")
    for what in ("layer", "head"):
        parser.add_argument(
            f"--{what}-group",
            type=int,
            default=0,
            metavar="N",
            help=f"draw one group of {what}s, 1 and up (default: all)",
        )


def run(args: argparse.Namespace) -> int:
    """Read the trace, write page and picture, and name them."""
    from ...memory.picture import PictureView, draw_inspection
    from ...memory.thumbnails import as_data_urls, read_thumbnails
    from .inspector_page import inspector_page

    path = args.trace / TRACE_FILE if args.trace.is_dir() else args.trace
    header, events = read_trace(path)
    chunks = [event["chunk"] for event in events]
    thumbnails = read_thumbnails(path.parent, chunks)
    inspection = inspect_film(header, events, as_data_urls(thumbnails))
    groups = (None if group == 0 else group - 1 for group in (args.layer_group, args.head_group))
    try:
        picture = draw_inspection(inspection, thumbnails, PictureView(args.width, args.height, *groups))
    except ValueError as error:
        raise TraceError(str(error)) from error
    png = args.png or args.out.with_suffix(".png")
    with explained(f"write {args.out}"):
        args.out.write_text(inspector_page(inspection), encoding="utf-8")
    with explained(f"write {png}"):
        picture.save(png, format="PNG")
    print(summary(inspection))
    print(f"  page     {args.out}\n  picture  {png}")
    return 0


def summary(inspection: dict[str, Any]) -> str:
    """The film in a line."""
    made, planned = len(inspection["chunks"]), inspection["chunk_count"]
    return (
        f"{inspection['project'] or 'A film'}: {made} of {planned} chunks, {inspection['memory'] or 'memory not named'}"
    )
