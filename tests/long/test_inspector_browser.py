"""The Memory Inspector in the real front end: the picture shows the trace, and what is pinned in it the next film reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from served import Server
from shipped import TINY, read_json

from longreel.memory.trace import read_trace

pytestmark = pytest.mark.long

DRIVER = Path(__file__).with_name("inspector.mjs")
BROWSER_SECONDS = 1800
RENDERERS = ("legacy", "nodes 2.0")
TEXT = (
    "[1.5s] anna walks left in the meadow\n[1.5s] ben waves right in the town\n"
    "[1.5s] anna jumps middle in the snow\n[1.5s] ben stands left in the night\n"
)
CHUNKS = 8
WINDOW, SINK, CHUNK = 6, 3, 3
PINNED, VETOED = 4, 1  # as in the driver
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw, and the traces that its films left."""
    folder = tmp_path_factory.mktemp("inspector")
    pictures = Path(os.environ.get("LONGREEL_PICTURES", folder))
    pictures.mkdir(parents=True, exist_ok=True)
    workflow = read_json(TINY)
    for node in workflow["nodes"]:
        if node["type"] == "LongReelStoryboard":
            node["widgets_values"][0] = TEXT
        if node["type"] == "LongReelSparseKVMemory":
            node["widgets_values"][:3] = ["window + sink", WINDOW, SINK]
    sent = folder / "workflow.json"
    sent.write_text(json.dumps(workflow), encoding="utf-8")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    playwright = os.environ.get("LONGREEL_PLAYWRIGHT")
    assert chromium, "Install Chromium, or name one in CHROMIUM."
    assert playwright, "Install playwright-core with npm and name its folder in LONGREEL_PLAYWRIGHT."
    with Server(folder) as server:
        done = subprocess.run(
            ["node", str(DRIVER), playwright, chromium, server.url, str(sent), str(pictures)],
            capture_output=True,
            text=True,
            timeout=BROWSER_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr[-4000:]}\n{server.log[-4000:]}"
        films = server.output / "longreel"
        traces = {
            path.parent.name: [dict(line) for line in read_trace(path)[1]] for path in films.glob("*/trace.jsonl")
        }
    seen: dict[str, Any] = json.loads(done.stdout)
    return {**seen, "traces": traces}


@pytest.fixture(params=RENDERERS)
def said(seen: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What was seen in one renderer, with the traces of its first film and of the one with pins."""
    name = f"pins {str(request.param).replace('.', '')}"
    first, again = seen["traces"][f"{name}.1"], seen["traces"][name]
    return {**seen["renderers"][request.param], "first": first, "second": again}


def test_the_picture_grows_while_the_film_is_made(said: dict[str, Any]) -> None:
    """A slow page may show the next chunk already when it is asked."""
    indices = [index for chunks, _ in said["grown"] for index in chunks]
    assert indices == list(range(CHUNKS))
    shown = [int(match[1]) for _, words in said["grown"] if (match := re.search(rf"(\d+) of {CHUNKS} chunks", words))]
    assert len(shown) == len(said["grown"]) > 1
    assert shown == sorted(shown)
    assert shown[0] < shown[-1] == CHUNKS
    assert all(count > max(chunks) for count, (chunks, _) in zip(shown, said["grown"], strict=True))


def test_a_frame_under_the_pointer_tells_its_time_its_shot_and_why_it_was_read(said: dict[str, Any]) -> None:
    title, lines = said["hovered"]
    assert title == f"Frame {VETOED} at 0.1 s"
    assert "shot 1: anna walks left in the meadow" in lines
    assert f"by chunk {CHUNKS}" in lines
    assert "because it is the film's beginning" in lines


def test_a_click_lists_what_the_chunk_read(said: dict[str, Any]) -> None:
    """Neighbouring whole frames are one row: the sink and the window."""
    assert said["first"][-1]["read_frames"] == [0, 1, 2, 18, 19, 20]
    rows = [" ".join(row.split()) for row in said["listed"]]
    assert rows == ["0.0 s to 0.6 s 100 %", "4.3 s to 5.1 s 100 %"]


def test_pinning_writes_into_the_storyboard_and_can_be_undone_in_both_ways(said: dict[str, Any]) -> None:
    assert said["before"] == TEXT
    assert said["pinned"] == f"pin: 1s\n{TEXT}"
    assert said["pageUndone"] == TEXT
    assert said["pageRedone"] == said["pinned"]
    assert said["vetoed"] == f"veto: 0.1s\npin: 1s\n{TEXT}"


def test_the_keyboard_does_the_same_and_says_where_it_is(said: dict[str, Any]) -> None:
    assert said["keyVetoed"] == f"veto: 0.1s\n{TEXT}"
    assert said["spoken"].startswith(f"Chunk {CHUNKS} at 5.1 s read frame {VETOED} at 0.1 s")
    assert said["keyUndone"] == TEXT


def test_a_saved_workflow_keeps_the_pins_and_nothing_of_the_picture(said: dict[str, Any]) -> None:
    assert said["reloaded"] == said["vetoed"]
    assert len(said["savedWidgets"]) == 4


def test_the_next_film_reads_the_pinned_frame_and_not_the_vetoed_one(said: dict[str, Any]) -> None:
    """A window counts the chunk that is made as well."""
    behind = [line for line in said["second"] if line["frames"][0] - (WINDOW - CHUNK) > PINNED]
    assert behind
    for line in behind:
        assert PINNED in line["read_frames"]
        assert VETOED not in line["read_frames"]
        assert [why for frame, why, _ in line["brought"] if frame == PINNED] == ["pin"]
    assert all(PINNED not in line["read_frames"] for line in said["first"][-2:])
    title, lines = said["again"]
    assert title == f"Frame {PINNED} at 0.8 s"
    assert "because it is pinned" in lines


def test_the_picture_is_there_again_when_its_tab_is(said: dict[str, Any], request: pytest.FixtureRequest) -> None:
    renderer = request.node.callspec.params["said"]
    assert said["restored"] == f"pins {renderer.replace('.', '')}"


def test_names_and_prompts_of_a_trace_are_shown_and_never_run(said: dict[str, Any]) -> None:
    assert said["hostile"] == {"name": HOSTILE, "hacked": None, "elements": 0, "images": [None]}


def test_sampler_and_storyboard_are_found_through_subgraphs(seen: dict[str, Any]) -> None:
    found = seen["subgraphs"]
    assert {name: where["inspectors"] for name, where in found.items()} == dict.fromkeys(found, 1)
    assert {name: where["depth"] for name, where in found.items()} == {
        "none": 1, "storyboard": 1, "inspector": 1, "sampler": 2, "film": 2
    }  # fmt: skip
    assert {where["text"] for where in found.values()} == {TEXT}


def test_a_page_without_dom_widgets_still_has_the_node(seen: dict[str, Any]) -> None:
    assert seen["older"] == {"kept": "function", "added": 0, "inputs": 5, "errors": []}


def test_nothing_of_ours_makes_an_error_in_the_console(seen: dict[str, Any]) -> None:
    ours = [line for line in seen["errors"] if "longreel" in line.lower()]
    assert ours == []
