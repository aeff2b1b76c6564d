"""What encoders of several kinds bring back, side by side: a row each, as JSON, as a table and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..encoded_history import most_tokens
from .clips import TILE
from .encoder_chain import Encoders, tellers_of
from .encoder_settings import LONGEST_SHOT, Branches, EncoderTraining
from .recall_statistics import mean_interval
from .retrieval import AskedFilm, Retrieval, mean_retrieval
from .storyworld import FPS, FRAME_STRIDE, USUAL_PACE, Size

ROWS = (
    *(("4x4x2", branches.value) for branches in (Branches.PATCHIFIER, Branches.LOW, Branches.HIGH, Branches.BOTH)),
    *((rate, Branches.BOTH.value) for rate in ("2x2x2", "2x2x1", "2x2x4", "2x2x8")),
)
"""Rates and branches of the paper's tables; what an encoder is made of is compared at the first rate."""
NAMES = {
    Branches.PATCHIFIER.value: "large patchifier",
    Branches.LOW.value: "LR only",
    Branches.HIGH.value: "HR only",
    Branches.BOTH.value: "both",
}
"""What the paper calls them."""
SHOWN_FILMS = 3
_COLUMNS = ("encoder", "tokens a second", "kB", "marked: PSNR, SSIM", "whole", "another film", "nothing")
_GAP, _HEAD = 6, 34  # pixels
_PAPER, _INK = "#fafaf8", "#181818"


def table_settings(base: EncoderTraining, rows: Sequence[tuple[str, str]] = ROWS) -> tuple[EncoderTraining, ...]:
    """The settings of every row; they differ in nothing but rate and branches. ValueError for rows that cannot be, or come twice."""
    if not rows or len(set(rows)) < len(rows):
        raise ValueError(f"A table needs rows that differ, got {', '.join(map(':'.join, rows))}. Name each once.")
    return tuple(replace(base, rate=rate, branches=branches) for rate, branches in rows)


def row_name(config: EncoderTraining) -> str:
    """The row's name for people."""
    return f"{config.rate} {NAMES[config.branches]}"


def length_name(config: EncoderTraining) -> str:
    """How long the history is, and what is unusual in its films, for people."""
    cuts = "" if config.longest_shot == LONGEST_SHOT else f", cuts after {config.longest_shot} or fewer"
    pace = "" if config.pace == USUAL_PACE else f", {config.pace:g} times as fast"
    return f"{config.history_frames * FRAME_STRIDE / FPS:g} s ({config.history_frames} frames){cuts}{pace}"


def row_of(name: str, config: EncoderTraining, encoder: Encoders, asked: Sequence[AskedFilm]) -> dict[str, Any]:
    """One row as JSON: its name and settings, what the encoder takes, the means, and each film's PSNR in dB."""
    size = Size.parse(config.size)
    told = [(teller.encoder.spec, teller.longest_frames) for teller in tellers_of(encoder)]
    tokens = most_tokens(told, 0, config.history_frames, size.height // TILE, size.width // TILE)
    return {
        "name": name,
        "settings": asdict(config),
        "tokens_per_second": tokens * FPS / (FRAME_STRIDE * config.history_frames),
        "bytes": sum(weight.numel() * weight.element_size() for weight in encoder.parameters()),
        **{way: quality._asdict() for way, quality in mean_retrieval(asked)._asdict().items()},
        "films": {way: [getattr(film.found, way).psnr for film in asked] for way in Retrieval._fields},
    }


def table_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table. Differences are to the row with both branches of the same rate, film by film, where there is one."""
    both = {row["settings"]["rate"]: row for row in rows if row["settings"]["branches"] == Branches.BOTH.value}
    found = [[*_cells(row), _difference(row, both.get(row["settings"]["rate"]))] for row in rows]
    return _lines([*_COLUMNS, "marked, beside both branches"], found)


def lengths_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of trained encoders, films of other lengths and kinds among them, as a table."""
    return _lines(_COLUMNS, [_cells(row) for row in rows])


def _cells(row: Mapping[str, Any]) -> list[str]:
    ways = [f"{row[way]['psnr']:.2f} dB, {row[way]['ssim']:.3f}" for way in Retrieval._fields]
    return [row["name"], f"{row['tokens_per_second']:g}", f"{row['bytes'] / 1000:.0f}", *ways]


def _lines(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells)]
    return "\n".join(lines) + "\n"


def _difference(row: Mapping[str, Any], both: Mapping[str, Any] | None) -> str:
    if both is None or row is both:
        return ""
    pairs = zip(row["films"]["marked"], both["films"]["marked"], strict=True)
    differences = [one - other for one, other in pairs]
    low, high = mean_interval(differences)
    return f"{sum(differences) / len(differences):+.2f} dB [{low:+.2f}, {high:+.2f}]"


def film_strips(asked: Sequence[AskedFilm]) -> Image.Image:
    """The pictures of the first films, one a line: true, then the four ways of `Retrieval`."""
    lines = [torch.cat([film.true, *film.made], dim=1) for film in asked[:SHOWN_FILMS]]
    return _image(torch.cat(lines))


def table_sheet(strips: Mapping[str, Image.Image], size: Size) -> Image.Image:
    """True frames on the left, beside them what each row brings back, by its name: marked above, whole below."""
    step_x, step_y = size.width + _GAP, size.height + _GAP
    films = next(iter(strips.values())).height // size.height
    sheet = Image.new("RGB", (_GAP + step_x * (1 + len(strips)), _HEAD + 2 * films * step_y), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for across, (name, strip) in enumerate({"true": next(iter(strips.values())), **strips}.items()):
        pen.text((_GAP + across * step_x, 8), name, _INK, font)
        for line in range(2 * films):
            film, whole = divmod(line, 2)
            column = (1 + whole) * size.width if across else 0
            place = (column, film * size.height, column + size.width, (film + 1) * size.height)
            if across or not whole:
                sheet.paste(strip.crop(place), (_GAP + across * step_x, _HEAD + line * step_y))
            else:
                pen.text((_GAP, _HEAD + line * step_y + 4), "above: marked\nthis line: whole", _INK, font)
    return sheet


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().numpy())
