"""The contact sheet that `longreel demo` leaves beside its film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from longreel.memory.film import PICTURE_WIDTH
from longreel.memory.storyboard_parser import read_storyboard
from longreel.nodes.film import Film
from longreel.nodes.headless.demo import STILLS_PER_SHOT, write_sheet
from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan
from longreel.nodes.host.demo_text import build_demo_clip
from longreel.nodes.planned_storyboard import PlannedStoryboard, plan_storyboard

BOARD = "[1.5s] anna walks\n[0.75s, recache] an empty beach\n[0.75s] anna sits"


def storyboard() -> PlannedStoryboard:
    clip, board = build_demo_clip(), read_storyboard(BOARD)

    def encode(prompt: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    return plan_storyboard(board, tuple(encode(shot.prompt) for shot in board.shots), encode(""), 16.0, 3)


@pytest.fixture(scope="module")
def film(host: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a film of three shots."""
    model, vae = build_tiny_wan(TinyWanSpec(width=128, layers=1, ffn=256, seed=3)), build_tiny_vae(dim=8)
    sigmas = torch.tensor([1.0, 0.0])
    film = Film(model, storyboard(), sigmas, seed=1, width=64, height=32, cfg=1.0, project="sheet", vae=vae)
    return film.make(tmp_path_factory.mktemp("demo")).folder


def test_the_contact_sheet_has_a_row_of_stills_for_every_shot(film: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "contact_sheet.png"
    shots, seconds = write_sheet(film, sheet)
    assert (shots, seconds) == (3, (4 * (12 - 1) + 1) / 16)
    with Image.open(sheet) as image:
        assert image.width > STILLS_PER_SHOT * PICTURE_WIDTH
        assert image.height > shots * PICTURE_WIDTH * 32 / 64
        colours = image.getcolors(image.width * image.height)
    assert colours is not None
    assert len(colours) > 1000  # pictures, not just words on paper
