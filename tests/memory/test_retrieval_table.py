"""The table of what encoders bring back: what stands in it, and which picture stands where."""

from __future__ import annotations

import pytest
import torch

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.training.encoder_settings import EncoderTraining, tiny_encoder_spec
from longreel.memory.training.retrieval import AskedFilm, Quality, Retrieval
from longreel.memory.training.retrieval_table import (
    ROWS,
    film_strips,
    row_name,
    row_of,
    table_markdown,
    table_settings,
    table_sheet,
)
from longreel.memory.training.storyworld import Size

BASE = EncoderTraining(widths=(8, 16), size="64x96")
SIZE = Size(64, 96)


def asked(better: float, colour: float) -> list[AskedFilm]:
    """Four films that come back so many dB better than 10 dB and more, in pictures of one lightness."""
    made = torch.full((4, SIZE.height, SIZE.width, 3), colour)
    found = [Retrieval(Quality(10.0 + film + better, 0.5), *(Quality(9.0, 0.4) for _ in range(3))) for film in range(4)]
    return [AskedFilm(each, torch.zeros(SIZE.height, SIZE.width, 3), made) for each in found]


def test_rows_differ_in_nothing_but_what_is_compared() -> None:
    configs = table_settings(BASE)
    assert len(configs) == len(ROWS) == 8
    assert {row_name(config) for config in configs} >= {"4x4x2 large patchifier", "4x4x2 LR only", "2x2x8 both"}
    assert {(config.seed, config.steps, config.clips, config.size) for config in configs} == {(0, 1500, 6, "64x96")}


@pytest.mark.parametrize("rows", [[], [("2x2x2", "both")] * 2, [("2x2", "both")], [("2x2x2", "some")]])
def test_rows_that_cannot_be_are_refused(rows: list[tuple[str, str]]) -> None:
    with pytest.raises(ValueError, match=r"differ|needs a rate|not a valid"):
        table_settings(BASE, rows)


def test_a_row_is_compared_film_by_film_with_both_branches_of_its_rate() -> None:
    rows = []
    for config, better in zip(table_settings(BASE), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0), strict=True):
        rows.append(row_of(row_name(config), config, MemoryEncoder(tiny_encoder_spec(config, 32)), asked(better, 0.5)))
    lines = table_markdown(rows).splitlines()
    assert len(lines) == 2 + len(ROWS)
    patchifier = lines[2].split(" | ")
    assert patchifier[0] == "| 4x4x2 large patchifier"
    assert patchifier[1] == "2"  # one for two frames, of which a second has four
    assert "8.50 dB, 0.500" in patchifier
    assert "-3.00 dB [-3.00, -3.00] |" in patchifier
    assert all(line.endswith(" |  |") for line in lines[5:])
    assert rows[1]["bytes"] == 0


def test_the_sheet_shows_true_frames_beside_those_of_every_row() -> None:
    strips = {"dark": film_strips(asked(0, 0.25)), "light": film_strips(asked(0, 0.75))}
    sheet = table_sheet(strips, SIZE)
    assert strips["dark"].size == (5 * SIZE.width, 3 * SIZE.height)
    seen = [sheet.getpixel((6 + column * 102 + 48, 34 + 32))[0] for column in range(3)]
    assert seen == [0, 64, 191]
    assert sheet.width == 6 + 3 * 102
