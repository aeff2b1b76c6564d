"""Show what a film remembered: one page for any browser and PNGs, from its trace."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...memory.inspection import inspect_film
from ...memory.trace import TraceError, read_trace
from ...memory.whole_file import explained

if TYPE_CHECKING:
    from ...memory.picture import PictureView

NAME = "inspect"
TRACE_FILE = "trace.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which trace, and where the page and the pictures go."""
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="a film's folder in output/longreel, or its trace.jsonl"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.html", required=True, help="the page; it needs nothing else")
    parser.add_argument(
        "--png",
        type=Path,
        metavar="FOLDER",
        help="where the pictures go: the whole, and one of each group of layers where they read different pages "
        "(default: beside the page)",
    )
    parser.add_argument("--width", type=int, help="pixels of a picture (default: 1280, more for films of minutes)")
    parser.add_argument("--height", type=int, help="pixels of a picture (default: 1024, more for films of minutes)")
    parser.add_argument(
        "--head-group", type=int, default=0, metavar="N", help="draw one group of heads, 1 and up (default: all)"
    )


def run(args: argparse.Namespace) -> int:
    """Read the trace, write page and pictures, and name them."""
    from ...memory.picture import PictureView, draw_inspection, readable_size
    from ...memory.thumbnails import as_data_urls, read_thumbnails
    from .inspector_page import inspector_page

    path = args.trace / TRACE_FILE if args.trace.is_dir() else args.trace
    header, events = read_trace(path)
    chunks = [event["chunk"] for event in events]
    thumbnails = read_thumbnails(path.parent, chunks)
    inspection = inspect_film(header, events, as_data_urls(thumbnails))
    width, height = readable_size(inspection)
    heads = None if args.head_group == 0 else args.head_group - 1
    try:
        whole = PictureView(args.width or width, args.height or height, head_group=heads)
        whole.check(inspection)
    except ValueError as error:
        raise TraceError(str(error)) from error
    with explained(f"write {args.out}"):
        args.out.write_text(inspector_page(inspection), encoding="utf-8")
    print(summary(inspection))
    print(f"  page     {args.out}")
    for name, view in pictures(inspection, whole):
        png = (args.png or args.out.parent) / f"{args.out.stem}{name}.png"
        with explained(f"write {png}"):
            draw_inspection(inspection, thumbnails, view).save(png, format="PNG")
        print(f"  picture  {png}")
    return 0


def pictures(inspection: dict[str, Any], whole: PictureView) -> Iterator[tuple[str, PictureView]]:
    """What each picture shows, with what its file's name ends in: the whole, then every group of layers.

    Only pages differ between layers, so a film that chose none has one picture.
    """
    yield "", whole
    if any(chunk["selected"] for chunk in inspection["chunks"]) and len(inspection["layer_groups"]) > 1:
        for group, (first, last) in enumerate(inspection["layer_groups"]):
            layers = f"layer-{first}" if first == last else f"layers-{first}-{last}"
            yield f".{layers}", replace(whole, layer_group=group)


def summary(inspection: dict[str, Any]) -> str:
    """The film in a line."""
    made, planned = len(inspection["chunks"]), inspection["chunk_count"]
    return (
        f"{inspection['project'] or 'A film'}: {made} of {planned} chunks, {inspection['memory'] or 'memory not named'}"
    )
