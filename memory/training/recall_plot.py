"""A picture of the recall tables: identity and who-is-it over how long a character was away, or how much was read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .recall_policies import OURS, REFERENCE

PANEL_WIDTH, PANEL_HEIGHT = 420, 260
LEFT, TOP, GAP, BELOW = 70, 64, 50, 44
LEGEND_LINE = 26
COLOURS = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#8c6d1f")
"""Told apart by everybody (Okabe and Ito 2008); where there are more policies they begin anew, with other dots."""
PAPER, INK, GREY = "#fafaf8", "#181818", "#9a9a9a"
TITLE = "Who comes back? Recall of a character that was seen once"
DOT = 5
SHIFT = 4
"""Pixels between policies at one distance, so that equal ones do not hide each other."""


class Curve(NamedTuple):
    """What one row of panels shows: a column of the tables, its name for people, and the lowest value drawn."""

    name: str
    title: str
    lowest: float


class Axis(NamedTuple):
    """What lies across a panel, in even steps: a column of the tables, its name for people, and how a value is written."""

    name: str
    title: str
    form: str


BACK_AFTER = Axis("distance", "back after (chunks)", "{}")
KEYS_READ = Axis("keys_read_fraction", "keys read", "{:.1%}")
CURVES = (Curve("identity_cosine", "identity (cosine)", -0.2), Curve("who_is_it", "who is it (share of films)", 0.0))
Point = tuple[float, float]


def budget_curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `--compare budgets` as one curve, with the memory that reads everything beside each of its points."""
    points = [row for row in rows if row["policy"] != REFERENCE]
    whole = {(row["chunks"], row["distance"]): row for row in rows if row["policy"] == REFERENCE}
    beside = [{**whole[row["chunks"], row["distance"]], KEYS_READ.name: row[KEYS_READ.name]} for row in points]
    return beside + [{**row, "policy": OURS} for row in points]


def draw_recall(rows: Sequence[dict[str, Any]], chance: float, axis: Axis = BACK_AFTER) -> Image.Image:
    """The rows of a report as a picture: a column of panels a film length. Raises ValueError without rows."""
    if not rows:
        raise ValueError("A plot of recall needs at least one measured row, got none. Measure a film first.")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lengths = sorted({row["chunks"] for row in rows})
    large = ImageFont.load_default(24)
    width = max(LEFT + len(lengths) * (PANEL_WIDTH + GAP), LEFT + math.ceil(large.getlength(TITLE)) + GAP)
    height = TOP + len(CURVES) * (PANEL_HEIGHT + GAP + BELOW) + len(policies) * LEGEND_LINE
    picture = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT, 14), TITLE, INK, large)
    for down, curve in enumerate(CURVES):
        for across, chunks in enumerate(lengths):
            corner = (LEFT + across * (PANEL_WIDTH + GAP), TOP + down * (PANEL_HEIGHT + GAP + BELOW) + GAP)
            chosen = [row for row in rows if row["chunks"] == chunks]
            baseline = chance if curve.name == "who_is_it" else _averaging(chosen)
            _draw_panel(pen, corner, curve, axis, chosen, policies, baseline)
    top = TOP + len(CURVES) * (PANEL_HEIGHT + GAP + BELOW)
    for number, policy in enumerate(policies):
        y = top + number * LEGEND_LINE + LEGEND_LINE / 2
        _draw_dot(pen, (LEFT + 10, y), number)
        pen.text((LEFT + 26, y - 10), policy, INK, ImageFont.load_default(16))
    return picture


def _averaging(rows: Sequence[dict[str, Any]]) -> float:
    return float(sum(row["averaging_cosine"] for row in rows) / len(rows))


def _draw_dot(pen: ImageDraw.ImageDraw, at: Point, number: int) -> None:
    x, y = at
    colour, box = COLOURS[number % len(COLOURS)], (x - DOT, y - DOT, x + DOT, y + DOT)
    if number < len(COLOURS):
        pen.ellipse(box, fill=colour)
    else:
        pen.rectangle(box, fill=colour)


def _draw_panel(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    curve: Curve,
    axis: Axis,
    rows: Sequence[dict[str, Any]],
    policies: Sequence[str],
    baseline: float,
) -> None:
    left, top = corner
    small = ImageFont.load_default(14)
    steps = sorted({row[axis.name] for row in rows})
    pen.text((left, top - 26), f"{curve.title}, films of {rows[0]['chunks']} chunks", INK, ImageFont.load_default(16))
    pen.rectangle((left, top, left + PANEL_WIDTH, top + PANEL_HEIGHT), outline=GREY)

    def across(step: float) -> float:
        return left + PANEL_WIDTH * (steps.index(step) + 0.5) / len(steps)

    def down(value: float) -> float:
        share = (max(curve.lowest, min(1.0, value)) - curve.lowest) / (1.0 - curve.lowest)
        return top + PANEL_HEIGHT * (1 - share)

    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        pen.text((left - 8, down(tick)), f"{tick:.1f}", INK, small, anchor="rm")
        pen.line((left, down(tick), left + 5, down(tick)), fill=GREY)
    for step in steps:
        pen.text((across(step), top + PANEL_HEIGHT + 6), axis.form.format(step), INK, small, anchor="ma")
    pen.text((left + PANEL_WIDTH, top + PANEL_HEIGHT + 24), axis.title, INK, small, anchor="ra")
    pen.line((left, down(baseline), left + PANEL_WIDTH, down(baseline)), fill=GREY, width=2)
    name = "chance" if curve.name == "who_is_it" else "everybody's average"
    pen.text((left + PANEL_WIDTH - 6, down(baseline) - 4), name, GREY, small, anchor="rb")
    for number, policy in enumerate(policies):
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row[axis.name])
        colour, aside = COLOURS[number % len(COLOURS)], (number - (len(policies) - 1) / 2) * SHIFT
        points = [(across(row[axis.name]) + aside, down(row[curve.name])) for row in mine]
        pen.line(points, fill=colour, width=2)
        for (x, y), row in zip(points, mine, strict=True):
            low, high = row[f"{curve.name}_interval"]
            pen.line((x, down(low), x, down(high)), fill=colour, width=1)
            _draw_dot(pen, (x, y), number)
