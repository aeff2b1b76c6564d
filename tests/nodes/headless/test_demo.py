"""The contact sheet that `longreel demo` leaves beside its films."""

from __future__ import annotations

from pathlib import Path

import pytest
from film import film_on_disk, planned
from PIL import Image

from longreel.memory.film import PICTURE_WIDTH
from longreel.nodes.headless.demo import STILLS_PER_SHOT, write_sheet
from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan

BOARD = "[1.5s] anna walks\n[0.75s, recache] an empty beach\n[0.75s] anna sits"


@pytest.fixture(scope="module")
def films(host: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two films of three shots, from different seeds."""
    model, vae = build_tiny_wan(TinyWanSpec(width=128, layers=1, ffn=256, seed=3)), build_tiny_vae(dim=8)
    folder = tmp_path_factory.mktemp("demo")
    first, second = (
        film_on_disk(model, planned(BOARD), vae=vae, seed=seed, project=f"film {seed}").make(folder).folder
        for seed in (1, 2)
    )
    return first, second


def test_the_contact_sheet_has_a_row_for_every_shot_with_both_films_beside_each_other(
    films: tuple[Path, Path], tmp_path: Path
) -> None:
    sheet = tmp_path / "contact_sheet.png"
    shots, seconds = write_sheet(*films, sheet)
    assert (shots, seconds) == (3, (4 * (12 - 1) + 1) / 16)
    with Image.open(sheet) as image:
        assert image.width > 2 * STILLS_PER_SHOT * PICTURE_WIDTH
        assert image.height > shots * PICTURE_WIDTH * 32 / 64
        colours = image.getcolors(image.width * image.height)
        left, right = (image.crop((x, 0, x + image.width // 2, image.height)) for x in (0, image.width // 2))
    assert colours is not None
    assert len(colours) > 1000  # pictures, not just words on paper
    assert left.tobytes() != right.tobytes()
