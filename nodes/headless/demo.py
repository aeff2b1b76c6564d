"""Render a short storyboard twice with the tiny model that comes with LongReel, with and without memory, side by side."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .boot import pack_folder
from .render import INTERRUPTED_EXIT, add_host_arguments, render_each
from .workflow import read_workflow

NAME = "demo"
WORKFLOW = "Tiny demo storyboard.json"
SAMPLER, MEMORY = "LongReelChunkedARSampler", "LongReelSparseKVMemory"
PROJECT, FORGETFUL = "tiny_demo", "tiny_demo_forgetful"
STILLS_PER_SHOT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the films go."""
    parser.add_argument("--out", type=Path, default=Path("demo"), metavar="FOLDER", help="(default: ./demo)")
    add_host_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Render the demo workflow as it is, then without memory, and write the contact sheet of both."""
    start = time.monotonic()
    remembering = [f"{SAMPLER}.project={PROJECT}"]
    forgetting = [f"{SAMPLER}.project={FORGETFUL}", f"{MEMORY}.preset=window"]
    code = render_each(read_workflow(pack_folder() / "workflows" / WORKFLOW), [remembering, forgetting], args)
    if code == INTERRUPTED_EXIT:
        print("Run the same command again and the film goes on where it stopped.")
    if code:
        return code
    film, other = (args.out / "longreel" / project for project in (PROJECT, FORGETFUL))
    sheet = args.out / "contact_sheet.png"
    shots, seconds = write_sheet(film, other, sheet)
    print(f"""
A film of {seconds:.1f} s in {shots} shots, made by real ComfyUI, with memory and without, in {time.monotonic() - start:.0f} s:
  film            {film / "film.mp4"}
  without memory  {other / "film.mp4"}   the same, but it sees the newest frames only
  contact sheet   {sheet}
  trace           {film / "trace.jsonl"}   what each chunk read: longreel inspect shows it

Open the contact sheet first: one row a shot, left with memory, right without. Who comes back should look the same.
Change it:  longreel render "{pack_folder() / "workflows" / WORKFLOW}" --set {SAMPLER}.seed=2 --set {SAMPLER}.project=mine""")
    return 0


def write_sheet(film: Path, other: Path, sheet: Path) -> tuple[int, float]:
    """One row a shot: stills of `film` on the left, of `other` on the right; gives shots and seconds of the film."""
    from ...memory.chunks import first_picture
    from ...memory.film import SheetRow, contact_sheet, read_pictures
    from ...memory.trace import read_trace

    header, events = read_trace(film / "trace.jsonl")
    read_without = [len(event["read_frames"]) for event in read_trace(other / "trace.jsonl")[1]]
    fps, plan = header["fps"], header["plan"]
    sides = [list(read_pictures(folder / "film.mp4")) for folder in (film, other)]
    rows = []
    for number, shot in enumerate(plan["shots"], start=1):
        start, stop = (first_picture(frame) for frame in shot["frames"])
        shown = [start + (stop - start) * (2 * still + 1) // (2 * STILLS_PER_SHOT) for still in range(STILLS_PER_SHOT)]
        first = shot["chunks"][0]
        reads = (len(events[first]["read_frames"]), read_without[first])
        captions = [
            f"{name}: {index / fps:.1f} s, {read} frames read"
            for name, read in zip(("with memory", "without"), reads, strict=True)
            for index in shown
        ]
        pictures = [side[index] for side in sides for index in shown]
        rows.append(SheetRow(f"shot {number}: {header['prompts'][number - 1]}", pictures, captions))
    contact_sheet(rows, columns=2 * STILLS_PER_SHOT).save(sheet)
    return len(rows), len(sides[0]) / fps
