"""The curves under the matrix: what each chunk cost, the bytes of each tier, and how far the latents drifted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import ImageDraw

from .palette import BAND, CURVES, GROUND, QUIET, TEXT
from .words import Font, byte_size, duration, fitting, number

MOST_LINES = 4
NAMES = 17  # pixels above the curves, for their names
Place = Callable[[float], int]
"""Pixels across for a place counted in chunks."""


class Lane(NamedTuple):
    """One strip of curves: which of a chunk's numbers, and how a value is said."""

    key: str
    title: str
    say: Callable[[float], str]


LANES = (Lane("milliseconds", "cost", duration), Lane("bytes", "memory", byte_size), Lane("drift", "drift", number))


def lane_lines(chunks: list[Mapping[str, Any]], key: str) -> dict[str, list[float | None]]:
    """Values of each line by its name, one a chunk, the largest line first; milliseconds begin with their total."""
    names = list(dict.fromkeys(name for chunk in chunks for name in chunk[key]))
    lines = {name: [chunk[key].get(name) for chunk in chunks] for name in names}
    shown = {name: values for name, values in lines.items() if _most(values) > 0}
    ordered = dict(sorted(shown.items(), key=lambda line: -_most(line[1])))
    if key == "milliseconds" and len(ordered) > 1:
        ordered = {"total": [sum(chunk[key].values()) for chunk in chunks], **ordered}
    return dict(list(ordered.items())[:MOST_LINES])


def draw_lanes(
    draw: ImageDraw.ImageDraw,
    inspection: Mapping[str, Any],
    place: Place,
    area: tuple[int, int, int, int, int],
    font: Font,
) -> None:
    """Draw all lanes into an area: left, top, right, height of a lane and gap before it."""
    left, top, right, height, gap = area
    for number_of_lane, lane in enumerate(LANES):
        lane_top = top + gap + number_of_lane * (height + gap)
        _draw_lane(draw, inspection, lane, place, (left, lane_top, right, lane_top + height), font)


def _draw_lane(
    draw: ImageDraw.ImageDraw,
    inspection: Mapping[str, Any],
    lane: Lane,
    place: Place,
    box: tuple[int, int, int, int],
    font: Font,
) -> None:
    left, top, right, bottom = box
    chunks = inspection["chunks"]
    lines = lane_lines(chunks, lane.key)
    values = [value for line in lines.values() for value in line if value is not None]
    most, least = max(values, default=0.0), min(0.0, *values, 0.0)
    draw.rectangle((left, top, right - 1, bottom - 1), fill=BAND)
    draw.text((left - 8, top + 8), lane.title, TEXT, font, anchor="rm")
    draw.text((left - 8, top + 26), lane.say(most) if values else "no data", QUIET, font, anchor="rm")

    def y(value: float) -> int:
        return bottom - 2 - round((value - least) / ((most - least) or 1) * (bottom - top - NAMES - 4))

    for line, colour in reversed(list(zip(lines.values(), CURVES, strict=False))):
        before: int | None = None
        for chunk, value in zip(chunks, line, strict=True):
            if value is None:
                before = None
                continue
            x, end, now = place(chunk["index"]), place(chunk["index"] + 1), y(value)
            if before is not None:
                draw.line((x, before, x, now), fill=colour)
            # Steps: a film of three chunks has three numbers, and no slope between them.
            draw.line((x, now, max(x, end - 1), now), fill=colour)
            before = now
    _name_lines(draw, list(lines), (left, top, right), font)


def _name_lines(draw: ImageDraw.ImageDraw, names: list[str], box: tuple[int, int, int], font: Font) -> None:
    left, top, right = box
    x = float(right - 6)
    for name, colour in reversed(list(zip(names, CURVES, strict=False))):
        text = fitting(name.replace("_", " "), font, 120)
        width = font.getlength(text)
        if x - width - 26 < left:
            return
        draw.rectangle((x - width - 24, top + 2, x + 3, top + 16), fill=GROUND)
        draw.text((x, top + 9), text, colour, font, anchor="rm")
        draw.rectangle((x - width - 20, top + 8, x - width - 6, top + 10), fill=colour)
        x -= width + 34


def _most(values: list[float | None]) -> float:
    return max((abs(value) for value in values if value is not None), default=0.0)
