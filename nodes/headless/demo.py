"""Render a short storyboard with the tiny model that comes with LongReel, and lay out what to look at."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .boot import pack_folder
from .render import INTERRUPTED_EXIT, add_host_arguments, render
from .workflow import read_workflow

NAME = "demo"
WORKFLOW = "Tiny demo storyboard.json"
SAMPLER = "LongReelChunkedARSampler"
PROJECT = "tiny_demo"
STILLS_PER_SHOT = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the film goes."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="(default: ./demo)")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Render the demo workflow, then write the contact sheet."""
    start = time.monotonic()
    code = render(read_workflow(pack_folder() / "workflows" / WORKFLOW), [f"{SAMPLER}.project={PROJECT}"], args)
    if code == INTERRUPTED_EXIT:
        print("Run the same command again and the film goes on where it stopped.")
    if code:
        return code
    film = args.out / "longreel" / PROJECT
    sheet = args.out / "contact_sheet.png"
    shots, seconds = write_sheet(film, sheet)
    print(f"""
A film of {seconds:.1f} s in {shots} shots, made by real ComfyUI in {time.monotonic() - start:.0f} s:
  film           {film / "film.mp4"}
  contact sheet  {sheet}
  trace          {film / "trace.jsonl"}   what each chunk read from memory

Open the contact sheet first: one row a shot, with what the memory held when the shot began.
Change it:  longreel render "{pack_folder() / "workflows" / WORKFLOW}" --set {SAMPLER}.seed=2 --set {SAMPLER}.project=mine""")
    return 0


def write_sheet(film: Path, sheet: Path) -> tuple[int, float]:
    """One row a shot with stills of it; gives the number of shots and the seconds of the film."""
    from ...memory.chunks import first_picture
    from ...memory.film import SheetRow, contact_sheet, read_pictures
    from ...memory.trace import read_trace

    header, events = read_trace(film / "trace.jsonl")
    fps, plan = header["fps"], header["plan"]
    pictures = list(read_pictures(film / "film.mp4"))
    rows = []
    for number, shot in enumerate(plan["shots"], start=1):
        start, stop = (first_picture(frame) for frame in shot["frames"])
        shown = [start + (stop - start) * (2 * still + 1) // (2 * STILLS_PER_SHOT) for still in range(STILLS_PER_SHOT)]
        read = len(events[shot["chunks"][0]]["read_frames"])
        title = f"shot {number}, {start / fps:.1f} s to {stop / fps:.1f} s, {read} frames read at its start: "
        captions = [f"{index / fps:.2f} s" for index in shown]
        rows.append(SheetRow(title + header["prompts"][number - 1], [pictures[index] for index in shown], captions))
    contact_sheet(rows, columns=STILLS_PER_SHOT).save(sheet)
    return len(rows), len(pictures) / fps
