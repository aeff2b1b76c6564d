"""The offline page of the Memory Inspector: exactly what the trace says, quickly, and nothing of it is ever run."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numerics
import pytest
from driven import drive, picture_folder
from synthetic_film import BANK_KIND, PAGES_KIND, SINK_KIND, WINDOW_KIND, synthetic_film

from longreel.memory.picture import PictureView
from longreel.memory.picture.drawing import readings
from longreel.nodes.headless.inspector_page import inspector_page

pytestmark = pytest.mark.long
Record = Callable[[str, object], None]

DRIVER = Path(__file__).with_name("inspector_page.mjs")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
FILMS = {
    "3 chunks": synthetic_film(3) | {"pins": ""},  # a pin's row would lie over the colours
    "3 chunks light": synthetic_film(3) | {"pins": ""},
    "80 chunks": synthetic_film(80),
    "stopped light": synthetic_film(80, made=30),
    "600 chunks": synthetic_film(600, layers=40),
    "hostile": synthetic_film(12, words=HOSTILE),
}
RANK = {WINDOW_KIND: 0, SINK_KIND: 1, PAGES_KIND: 2, BANK_KIND: 3}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw of each page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, film in FILMS.items():
        (folder / f"{name}.html").write_text(inspector_page(film), encoding="utf-8")
    return drive(DRIVER, str(picture_folder(folder)), *(str(folder / f"{name}.html") for name in FILMS))


def kinds(film: dict[str, Any]) -> dict[tuple[int, int], tuple[int, float]]:
    """Kind and amount by chunk and frame."""
    return {
        (chunk["index"], frame): (kind, amount)
        for chunk in film["chunks"]
        for frame, kind, amount, _, _ in sorted(chunk["reads"], key=lambda read: RANK[read[1]])
    }


@pytest.mark.parametrize("name", ["3 chunks", "3 chunks light"])
def test_the_matrix_is_exactly_the_known_reads(seen: dict[str, Any], name: str) -> None:
    """In the pixels behind the picture and on the screen: a colour where something was read, none elsewhere, one a kind."""
    film, cells = FILMS[name], seen[name]["cells"]
    known = kinds(film)
    assert (cells["width"], cells["height"]) == (film["chunk_count"], film["total_frames"])
    assert cells["colours"] == seen[name]["screen"]
    colours: dict[int, set[int]] = {}
    for at, colour in enumerate(cells["colours"]):
        row, chunk = divmod(at, cells["width"])
        read = known.get((chunk, cells["height"] - 1 - row))
        assert (colour >= 0) == (read is not None)
        if read is not None:
            colours.setdefault(read[0], set()).add(colour)
    assert {kind: len(shown) for kind, shown in colours.items()} == {WINDOW_KIND: 1, SINK_KIND: 1}


def test_colour_follows_the_amount_that_was_read(seen: dict[str, Any]) -> None:
    """More is lighter on a dark ground, and equal amounts have equal colours; the ramp has 256 steps."""
    cells = seen["80 chunks"]["cells"]
    known = kinds(FILMS["80 chunks"])
    shown = []
    for at, colour in enumerate(cells["colours"]):
        row, chunk = divmod(at, cells["width"])
        read = known.get((chunk, cells["height"] - 1 - row))
        assert (colour >= 0) == (read is not None)
        if read is not None and read[0] in (BANK_KIND, PAGES_KIND):
            light = 0.2126 * (colour >> 16) + 0.7152 * (colour >> 8 & 255) + 0.0722 * (colour & 255)
            shown.append((int(255 * read[1] ** 0.5 + 0.5), light, colour))  # halves up, as in the page
    shown.sort()
    assert len({step for step, _, _ in shown}) > 100
    for (step, light, colour), (next_step, next_light, next_colour) in pairwise(shown):
        assert colour == next_colour if step == next_step else next_light >= light - numerics.LIGHTNESS_STEP


def test_a_filter_shows_exactly_the_pages_of_its_group_and_everything_comes_back(seen: dict[str, Any]) -> None:
    film, said = FILMS["80 chunks"], seen["80 chunks"]
    for name, groups in (("layers", (3, None)), ("heads", (None, 5)), ("both", (3, 5))):
        known = readings(film, PictureView(layer_group=groups[0], head_group=groups[1]))
        cells = said["filtered"][name]
        shown = {divmod(at, cells["width"]) for at, colour in enumerate(cells["colours"]) if colour >= 0}
        assert {(chunk, cells["height"] - 1 - row) for row, chunk in shown} == {
            cell for cell, (_, amount) in known.items() if amount > 0
        }
        assert cells["colours"] != said["cells"]["colours"]
    assert said["filtered"]["all"] == said["cells"]


def test_six_hundred_chunks_of_forty_layers_draw_in_a_tenth_of_a_second(
    seen: dict[str, Any], record_property: Record
) -> None:
    spent = seen["600 chunks"]["milliseconds"]
    record_property("milliseconds a draw, 600 chunks x 40 layers, median", spent["all"])
    record_property("the same, until the pixels are there", spent["withPixels"])
    assert spent["all"] < numerics.DRAW_MILLISECONDS


@pytest.mark.parametrize("name", FILMS)
def test_nothing_is_drawn_when_nothing_changed(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["drawnWhileIdle"] == 0
    assert seen[name]["picturesDrawnByHover"] == 0


@pytest.mark.parametrize("name", FILMS)
def test_the_menu_marks_the_frame_it_was_opened_on(seen: dict[str, Any], name: str) -> None:
    said = seen[name]["menu"]
    assert said["offered"] == said["meant"]
    frame = said["offered"]
    first, last = ((4 * number - 3) / 16 if number else 0.0 for number in (frame, frame + 1))
    moment = re.search(r"Write 'pin: ([\d.]+)s'", said["advised"])
    assert moment is not None
    assert first <= float(moment[1]) < last


def test_what_is_pinned_already_is_told_how_to_be_let_go(seen: dict[str, Any]) -> None:
    told = "No storyboard can be written from here. Take 0.1s out of your 'pin:' and 'veto:' lines."
    assert seen["80 chunks"]["unpinned"] == told


@pytest.mark.parametrize("name", FILMS)
def test_a_film_that_is_made_anew_is_drawn_while_a_later_chunk_is_chosen(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["regrown"]["overlays"] == 1
    assert seen[name]["regrown"]["list"].endswith("is not made yet")


@pytest.mark.parametrize("name", FILMS)
def test_a_page_makes_no_error_and_asks_for_nothing(seen: dict[str, Any], name: str) -> None:
    assert seen[name]["errors"] == []
    assert len(seen[name]["requests"]) == 1  # the page itself


def test_pages_follow_the_light_and_offer_every_group(seen: dict[str, Any]) -> None:
    assert {name: said["dark"] for name, said in seen.items()} == {name: not name.endswith("light") for name in FILMS}
    assert seen["600 chunks"]["groups"] == [9, 13]


def test_markup_in_names_and_prompts_is_shown_and_never_run(seen: dict[str, Any]) -> None:
    said = seen["hostile"]
    assert (said["hacked"], said["scripts"], said["name"]) == (None, 0, HOSTILE)
    assert HOSTILE in said["title"]
