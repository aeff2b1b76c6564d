"""Inspections of films that nobody made, with known reads."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

FRAMES, WINDOW, SINK = 3, 9, 3
LAYER_GROUPS, HEAD_GROUPS = 8, 12
WINDOW_KIND, SINK_KIND, BANK_KIND, PAGES_KIND = range(4)


def synthetic_film(
    chunks: int, *, layers: int = 40, made: int | None = None, words: str = "anna walks"
) -> dict[str, Any]:
    """An inspection of `chunks` chunks, the first `made` of them finished; frames of every kind from the ninth chunk on."""
    draw = random.Random(chunks)
    cuts = [0, chunks // 3, chunks] if chunks >= 3 else [0, chunks]
    shots = [
        {"prompt": f"{words} {number}", "frames": [FRAMES * first, FRAMES * end], "transition": "keep"}
        for number, (first, end) in enumerate(pairwise(cuts))
        if end > first
    ]
    return {
        "longreel_inspection": 1,
        "project": words,
        "fps": 16.0,
        "total_frames": FRAMES * chunks,
        "chunk_count": chunks,
        "memory": words,
        "layers": layers,
        "heads": HEAD_GROUPS,
        "layer_groups": [
            [at * layers // LAYER_GROUPS, (at + 1) * layers // LAYER_GROUPS - 1] for at in range(LAYER_GROUPS)
        ],
        "head_groups": [[at, at] for at in range(HEAD_GROUPS)],
        "shots": shots,
        "chunks": [_chunk(index, cuts, draw, words) for index in range(chunks if made is None else made)],
        "thumbnails": [],
        "pins": "0.1s",
        "vetoes": "",
    }


def _chunk(index: int, cuts: list[int], draw: random.Random, words: str) -> dict[str, Any]:
    start = FRAMES * index
    recent = max(SINK, start - WINDOW)
    reads: list[list[Any]] = [[frame, SINK_KIND, 1.0, None, "sink"] for frame in range(min(SINK, start))]
    reads += [[frame, WINDOW_KIND, 1.0, None, "window"] for frame in range(recent, start)]
    older = range(SINK, recent)
    bank = set(draw.sample(older, min(3, len(older))))
    reads += [[frame, BANK_KIND, 1.0, round(draw.random(), 3), "prompt"] for frame in sorted(bank)]
    pages = [frame for frame in older if frame not in bank and draw.random() < 0.5]
    reads += [[frame, PAGES_KIND, round(draw.uniform(0.001, 0.9), 4), None, "pages"] for frame in pages]
    selected = [
        [draw.randrange(LAYER_GROUPS), draw.randrange(HEAD_GROUPS), frame, round(draw.random(), 4)]
        for frame in pages[:64]
    ]
    return {
        "index": index,
        "shot": sum(index >= cut for cut in cuts[1:-1]),
        "frames": [start, start + FRAMES],
        "reads": reads,
        "selected": selected,
        "excluded": {words: [0]},
        "milliseconds": {"denoise": 700 + draw.random() * 90, "commit": 170.0, "select": 3.5, "copy": 8.0},
        "bytes": {"card": 6.1e9, "ram": 98e6 * start, "file": 0, "moved": 1.2e8},
        "drift": {"mean": 0.001 * index, "std": 1.0 + 0.1 * draw.random(), "change": draw.random()},
    }
