"""A trace as one JSON object that pictures are drawn from: in the node, in the browser, in a page and in live messages.

    {"longreel_inspection": 1, "project": "film", "fps": 16.0, "total_frames": 240, "chunk_count": 80,
     "memory": "in words", "tier": "ram", "layers": 30, "heads": 12, "layer_groups": [[0, 3], ...], "head_groups": [[0, 0], ...],
     "steps": 4, "step_groups": [[0, 0], ...],
     "shots": [{"prompt": "...", "frames": [0, 60], "transition": "keep"}],
     "chunks": [{"index": 0, "shot": 0, "frames": [0, 3],
        "reads": [[frame, kind, amount, score, why], ...], "reads_rest": 0.0,
        "selected": [[layer_group, head_group, frame, amount], ...], "selected_rest": 0.0,
        "by_step": [[frame, amount, amount, ...], ...], "by_step_rest": [0.0, ...], "lists_by_step": [[lists, pages, different], ...],
        "mass": [[0.0, ...], ...], "mass_by_step": [0.0, ...],
        "excluded": {"vetoed": [frame, ...], "cut": [...]}, "recached": [frame, ...], "blend": 0.5, "remembered": 12, "selection_bytes": 0,
        "milliseconds": {...}, "bytes": {...}, "hits": {...}, "drift": {...}}],
     "thumbnails": [{"chunk": 0, "src": "..."}], "pins": "12.5s", "vetoes": ""}

Frames are latent frames [first, end). `kind` is one of WINDOW, SINK, BANK (whole frames that were brought back) and PAGES
(chosen page by page); `amount` the share of the frame's keys that the chunk read, 1 for whole frames that every
layer read. `by_step` tells it for each step group, of the frames that were read most page by page. `mass` is the share of
the attention that went to these pages, by layer group and head group, and `mass_by_step` by step group. `recached` frames were encoded anew
before the chunk; `blend` is the weight of its own shot's prompt, null where it has no other. `lists_by_step` (`steps` there),
`milliseconds`, `bytes`, `hits` and `drift` are those of the trace (`trace_lines.py`); what a trace of an older version does not know is empty.
Prompts and names are data and may hold markup. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INSPECTION_VERSION = 1
WINDOW, SINK, BANK, PAGES = range(4)
UNIT = 10_000  # as in a trace


def inspect_film(
    header: Mapping[str, Any], events: Iterable[Mapping[str, Any]], thumbnails: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """The inspection of a trace; `thumbnails` are addresses of pictures by chunk."""
    return {
        **inspect_header(header),
        "chunks": [inspect_chunk(header, event) for event in events],
        "thumbnails": [{"chunk": chunk, "src": src} for chunk, src in sorted((thumbnails or {}).items())],
    }


def inspect_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but chunks and thumbnails."""
    shots = header["plan"]["shots"]
    transitions = header.get("transitions") or ["keep"] * len(shots)
    frames = [list(shot["frames"]) for shot in shots]
    frames[0][0] = 0  # a start image belongs to the first shot
    return {
        "longreel_inspection": INSPECTION_VERSION,
        "project": header.get("project", ""),
        "fps": header["fps"],
        "total_frames": header["plan"]["total_frames"],
        "chunk_count": shots[-1]["chunks"][1],
        "memory": header.get("memory", ""),
        "tier": header.get("tier", ""),
        "layers": header.get("layers", 0),
        "heads": header.get("heads", 0),
        "layer_groups": header.get("layer_groups", []),
        "head_groups": header.get("head_groups", []),
        "steps": header.get("steps", 0),
        "step_groups": header.get("step_groups", []),
        "shots": [
            {"prompt": prompt, "frames": covered, "transition": transition}
            for prompt, covered, transition in zip(header["prompts"], frames, transitions, strict=True)
        ],
        "pins": header.get("pins", ""),
        "vetoes": header.get("vetoes", ""),
    }


def inspect_chunk(header: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
    """One chunk."""
    groups = len(header.get("head_groups", []))
    selected = [
        [*divmod(cell, groups), row[0], amount / UNIT]
        for row in (event.get("selected", []) if groups else [])
        for cell, amount in zip(row[1::2], row[2::2], strict=True)
    ]
    stepped = event if "step_groups" in header else {}  # a film that an older version began has no steps to name
    excluded = {
        why: [frame for first, last in stretches for frame in range(first, last + 1)]
        for why, stretches in event.get("excluded", {}).items()
    }
    return {
        "index": event["chunk"],
        "shot": event["shot"],
        "frames": list(event["frames"]),
        "reads": _reads(header, event),
        "reads_rest": event.get("bank_rest", 0) / UNIT,
        "selected": selected,
        "selected_rest": event.get("selected_rest", 0) / UNIT,
        "by_step": [[row[0], *(amount / UNIT for amount in row[1:])] for row in stepped.get("bank_steps", [])],
        "by_step_rest": [amount / UNIT for amount in stepped.get("bank_steps_rest", [])],
        "lists_by_step": list(stepped.get("steps", [])),
        "mass": [[share / UNIT for share in of_heads] for of_heads in event.get("mass", [])],
        "mass_by_step": [share / UNIT for share in stepped.get("mass_steps", [])],
        "excluded": excluded,
        "recached": list(event.get("recached_frames", [])),
        "blend": event.get("blend"),
        "remembered": event.get("remembered"),
        "selection_bytes": event.get("selection_bytes", 0),
        "milliseconds": _milliseconds(event),
        "bytes": dict(event.get("bytes", {})),
        "hits": dict(event.get("hits", {})),
        "drift": dict(event.get("drift", {})),
    }


def longest_reach(chunk: Mapping[str, Any]) -> int:
    """Frames from the start of an inspected chunk back to the oldest one that it read, the sink left out; 0 where it read none.

    The sink is read by every chunk and would always be the oldest.
    """
    return max((chunk["frames"][0] - read[0] for read in chunk["reads"] if read[1] != SINK), default=0)


def amounts_of(
    inspection: Mapping[str, Any],
    chunk: Mapping[str, Any],
    layer_group: int | None = None,
    head_group: int | None = None,
) -> dict[int, float]:
    """How much of each frame an inspected chunk read page by page, in one group of layers, one of heads, or all (None)."""
    if layer_group is None and head_group is None:
        return {read[0]: read[2] for read in chunk["reads"] if read[1] == PAGES}
    cells = [
        _size(inspection["layer_groups"][layers]) * _size(inspection["head_groups"][heads])
        for layers in range(len(inspection["layer_groups"]))
        for heads in range(len(inspection["head_groups"]))
        if layer_group in (None, layers) and head_group in (None, heads)
    ]
    found: dict[int, float] = {}
    for layers, heads, frame, amount in chunk["selected"]:
        if layer_group in (None, layers) and head_group in (None, heads):
            size = _size(inspection["layer_groups"][layers]) * _size(inspection["head_groups"][heads])
            found[frame] = found.get(frame, 0.0) + amount * size / sum(cells)
    return found


def _size(group: Sequence[int]) -> int:
    return group[1] - group[0] + 1


def _reads(header: Mapping[str, Any], event: Mapping[str, Any]) -> list[list[Any]]:
    brought = {frame: (why, score) for frame, why, score in event.get("brought", [])}
    shares = dict(event.get("layer_shares", []))
    sink = header.get("sink_frames", 0)
    reads: list[list[Any]] = []
    for frame in event["read_frames"]:
        if frame in brought or frame in event["brought_frames"]:
            why, score = brought.get(frame, ("prompt", None))
            reads.append([frame, BANK, shares.get(frame, 1.0), score, why])
        elif frame < sink:
            reads.append([frame, SINK, 1.0, None, "sink"])
        else:
            reads.append([frame, WINDOW, 1.0, None, "window"])
    for frame, amount in event.get("bank", []):
        why, score = brought.get(frame, ("pages", None))
        reads.append([frame, PAGES, amount / UNIT, score, why])
    return sorted(reads, key=lambda read: (read[0], read[1]))


def _milliseconds(event: Mapping[str, Any]) -> dict[str, float]:
    if "milliseconds" in event:
        return dict(event["milliseconds"])
    return {part: event[f"{part}_ms"] for part in ("denoise", "commit") if f"{part}_ms" in event}
