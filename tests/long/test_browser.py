"""The real front end in headless Chromium, in both of its renderers: the tiny workflow opens, runs and shows its film."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driven import drive_front_end, our_errors, picture_folder
from PIL import Image
from served import Server, tiny_prompt
from shipped import TINY, WORKFLOWS, read_json

pytestmark = pytest.mark.long
Record = Callable[[str, object], None]

DRIVER = Path(__file__).with_name("browser.mjs")
TITLE_HEIGHT = 30
TEXT = "[1.5s] anna walks left in the meadow\n[1.5s] ben waves right in the town"
RENDERERS = ("legacy", "nodes 2.0")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw of the tiny workflow, with a shorter storyboard."""
    workflow = read_json(TINY)
    board = next(node for node in workflow["nodes"] if node["type"] == "LongReelStoryboard")
    board["widgets_values"][0] = TEXT
    with Server(tmp_path_factory.mktemp("browser")) as server:
        seen = drive_front_end(DRIVER, server, workflow)
        return {**seen, "pictures": picture_folder(server.folder)}


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_browser_sends_what_the_stored_prompt_says(seen: dict[str, Any], renderer: str) -> None:
    def inputs(prompt: dict[str, Any]) -> dict[str, Any]:
        return {node: (entry["class_type"], entry["inputs"]) for node, entry in prompt.items()}

    expected = tiny_prompt(TEXT, "tiny_demo", width=128, height=96)
    assert inputs(seen["renderers"][renderer]["prompt"]) == inputs(expected)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_the_film_shows_in_the_page(seen: dict[str, Any], renderer: str, record_property: Record) -> None:
    film = seen["renderers"][renderer]["film"]
    record_property("film in the page", film)
    assert (film["width"], film["height"]) == (128, 96)
    assert film["seconds"] == pytest.approx((4 * (12 - 1) + 1) / 16, abs=0.1)
    with Image.open(seen["pictures"] / f"{renderer}.png") as picture:
        assert picture.size == (1800, 900)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_nodes_do_not_cover_each_other_in_the_page(seen: dict[str, Any], renderer: str) -> None:
    for a, b in itertools.combinations(seen["renderers"][renderer]["nodes"], 2):
        (ax, ay), (aw, ah), (bx, by), (bw, bh) = a["pos"], a["size"], b["pos"], b["size"]
        beside = ax + aw <= bx or bx + bw <= ax
        assert beside or ay + ah <= by - TITLE_HEIGHT or by + bh <= ay - TITLE_HEIGHT, f"{a['id']} covers {b['id']}"


def test_nothing_of_ours_makes_an_error_in_the_console(seen: dict[str, Any]) -> None:
    assert our_errors(seen["errors"]) == []


def test_every_workflow_is_offered_as_a_template(seen: dict[str, Any]) -> None:
    assert sorted(seen["templates"]["longreel"]) == sorted(path.stem for path in WORKFLOWS)
