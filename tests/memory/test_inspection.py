"""The picture tells the truth: a trace with known reads gives exactly the matrix and the numbers that it has to."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from longreel.memory.inspection import BANK, PAGES, SINK, WINDOW, amounts_of, inspect_film, longest_reach
from longreel.memory.picture import PictureView, draw_inspection
from longreel.memory.picture.curves import lane_lines
from longreel.memory.picture.drawing import LEFT, RIGHT, matrix_colours, readings
from longreel.memory.picture.palette import GROUND, PIN, VETO, ramp_colour, reading_colour
from longreel.memory.picture.words import byte_size, duration, fitting, short_time

MARKUP = "<script>alert('x')</script> @anna & \"ben\""


def plan(*chunks_of_shot: int, chunk_frames: int = 2) -> dict[str, Any]:
    ends = np.cumsum([0, *chunks_of_shot]).tolist()
    shots = [{"chunks": [a, b], "frames": [a * chunk_frames, b * chunk_frames]} for a, b in itertools.pairwise(ends)]
    return {"total_frames": ends[-1] * chunk_frames, "shots": shots}


HEADER = {
    "longreel_trace": 3,
    "project": MARKUP,
    "fps": 16.0,
    "plan": plan(3, 2),
    "prompts": ["a beach", MARKUP],
    "transitions": ["keep", "cut"],
    "memory": "window of 4 frames, sink of 1",
    "tier": "ram",
    "layers": 3,
    "heads": 2,
    "layer_groups": [[0, 1], [2, 2]],
    "head_groups": [[0, 0], [1, 1]],
    "steps": 4,
    "step_groups": [[0, 1], [2, 3]],
    "sink_frames": 1,
    "pins": "0.25s",
    "vetoes": "",
}


def event(chunk: int, read: list[int], **more: Any) -> dict[str, Any]:
    start = 2 * chunk
    return {
        "chunk": chunk,
        "shot": 0 if chunk < 3 else 1,
        "frames": [start, start + 2],
        "read_frames": read,
        "brought_frames": [row[0] for row in more.get("brought", [])],
        "milliseconds": {"denoise": 10.0 + chunk, "commit": 2.0},
        "bytes": {"card": 100, "ram": 10 * chunk, "file": 0, "moved": 7},
        "drift": {"mean": 0.0, "std": 1.0, "change": 0.5, "since_start": 0.25},
        **more,
    }


EVENTS = [
    event(0, []),
    event(1, [0, 1]),
    event(
        2,
        [0, 2, 3],
        bank=[[1, 2500]],
        selected=[[1, 0, 5000, 3, 2500]],
        bank_steps=[[1, 3000, 2000]],
        bank_steps_rest=[10, 0],
        steps=[[6, 2.0, 3.5], [6, 2.0, 2.5]],
        hits={"card": 5, "ram": 7},
    ),
    event(
        3,
        [0, 1, 4, 5],
        brought=[[1, "pin", 0.75]],
        bank=[[2, 10_000], [3, 1]],
        selected=[],
        excluded={"vetoed": [[2, 3]]},
    ),
    event(4, [0, 6, 7], recached_frames=[4, 5], blend=0.5, bank=[], bank_rest=123, selected=[], selected_rest=45),
]


def test_a_trace_with_known_reads_gives_exactly_the_expected_matrix() -> None:
    inspection = inspect_film(HEADER, EVENTS)
    assert readings(inspection, PictureView()) == {
        (1, 0): (SINK, 1.0), (1, 1): (WINDOW, 1.0),
        (2, 0): (SINK, 1.0), (2, 1): (PAGES, 0.25), (2, 2): (WINDOW, 1.0), (2, 3): (WINDOW, 1.0),
        (3, 0): (SINK, 1.0), (3, 1): (BANK, 1.0), (3, 2): (PAGES, 1.0), (3, 3): (PAGES, 0.0001),
        (3, 4): (WINDOW, 1.0), (3, 5): (WINDOW, 1.0),
        (4, 0): (SINK, 1.0), (4, 6): (WINDOW, 1.0), (4, 7): (WINDOW, 1.0),
    }  # fmt: skip
    assert inspection["chunks"][3]["reads"][1] == [1, BANK, 1.0, 0.75, "pin"]


def test_numbers_of_an_inspection_are_those_of_the_trace() -> None:
    inspection = inspect_film(HEADER, EVENTS, {1: "/view?filename=1"})
    assert (inspection["chunk_count"], inspection["total_frames"], inspection["fps"]) == (5, 10, 16.0)
    for chunk, told in zip(inspection["chunks"], EVENTS, strict=True):
        assert chunk["index"] == told["chunk"]
        for key in ("shot", "frames", "milliseconds", "bytes", "drift"):
            assert chunk[key] == told[key]
    assert inspection["chunks"][2]["selected"] == [[0, 0, 1, 0.5], [1, 1, 1, 0.25]]
    assert inspection["chunks"][3]["excluded"] == {"vetoed": [2, 3]}
    assert (inspection["chunks"][4]["reads_rest"], inspection["chunks"][4]["selected_rest"]) == (0.0123, 0.0045)
    assert [longest_reach(chunk) for chunk in inspection["chunks"]] == [0, 1, 3, 5, 2]  # the sink does not count
    assert inspection["step_groups"] == [[0, 1], [2, 3]]
    second, last = inspection["chunks"][2], inspection["chunks"][4]
    assert (second["by_step"], second["by_step_rest"]) == ([[1, 0.3, 0.2]], [0.001, 0.0])
    assert (second["lists_by_step"], second["hits"]) == ([[6, 2.0, 3.5], [6, 2.0, 2.5]], {"card": 5, "ram": 7})
    assert (last["recached"], last["blend"], second["recached"], second["blend"]) == ([4, 5], 0.5, [], None)
    assert inspection["thumbnails"] == [{"chunk": 1, "src": "/view?filename=1"}]
    assert inspection["shots"][1] == {"prompt": MARKUP, "frames": [6, 10], "transition": "cut"}


def test_a_group_of_layers_or_heads_shows_its_own_amounts_weighed_by_their_size() -> None:
    inspection = inspect_film(HEADER, EVENTS)
    chunk = inspection["chunks"][2]
    assert amounts_of(inspection, chunk) == {1: 0.25}
    assert amounts_of(inspection, chunk, 0, 0) == {1: 0.5}
    assert amounts_of(inspection, chunk, 0, 1) == {}
    assert amounts_of(inspection, chunk, 0) == {1: 0.25}
    assert amounts_of(inspection, chunk, None, 0) == {1: pytest.approx(0.5 * 2 / 3)}
    assert readings(inspection, PictureView(layer_group=1, head_group=1))[2, 1] == (PAGES, 0.25)


def test_a_bank_of_each_layers_own_and_one_read_in_parts_are_told_with_their_reasons() -> None:
    own = event(3, [0, 1, 2], brought=[[1, "anchor", 0.5], [2, "prompt", 0.25]], layer_shares=[[2, 0.75]])
    parts = event(4, [0], brought=[[3, "prompt", 0.5]], bank=[[3, 5000]], selected=[])
    first, second = inspect_film(HEADER, [own, parts])["chunks"]
    assert first["reads"][1:] == [[1, BANK, 1.0, 0.5, "anchor"], [2, BANK, 0.75, 0.25, "prompt"]]
    assert second["reads"] == [[0, SINK, 1.0, None, "sink"], [3, PAGES, 0.5, 0.5, "prompt"]]


def test_prompts_and_names_stay_data() -> None:
    inspection = inspect_film(HEADER, EVENTS)
    assert (inspection["project"], inspection["shots"][1]["prompt"]) == (MARKUP, MARKUP)
    assert json.loads(json.dumps(inspection)) == inspection


def test_a_trace_of_version_1_gives_what_it_knows() -> None:
    header = {key: HEADER[key] for key in ("fps", "plan", "prompts")}
    old = {**event(1, [0, 1]), "denoise_ms": 7.5, "commit_ms": 2.5, "brought_frames": [0]}
    for key in ("milliseconds", "bytes", "drift"):
        del old[key]
    inspection = inspect_film({"longreel_trace": 1, **header}, [old])
    (chunk,) = inspection["chunks"]
    assert chunk["reads"] == [[0, BANK, 1.0, None, "prompt"], [1, WINDOW, 1.0, None, "window"]]
    assert chunk["milliseconds"] == {"denoise": 7.5, "commit": 2.5}
    assert (inspection["step_groups"], chunk["by_step"], chunk["hits"]) == ([], [], {})
    assert draw_inspection(inspection, {}).size == (1280, 1024)


def test_the_drawn_matrix_has_the_colour_of_every_cell() -> None:
    inspection = inspect_film(HEADER, EVENTS)
    cells = readings(inspection, PictureView())
    colours = matrix_colours(cells, 5, 10, 5, 10, striped=False)
    for chunk in range(5):
        for frame in range(10):
            at = cells.get((chunk, frame))
            expected = GROUND if at is None else reading_colour(*at)
            assert tuple(colours[9 - frame, chunk]) == expected
    picture = np.asarray(draw_inspection(inspection, {}))
    width = (1280 - LEFT - RIGHT) // 5
    for (chunk, _), at in cells.items():
        column = picture[:, LEFT + chunk * width + 5]
        assert (column == reading_colour(*at)).all(axis=-1).any()
    assert (picture == PIN).all(axis=-1).any()
    assert (picture == VETO).all(axis=-1).any()


def test_where_cells_share_a_pixel_what_was_chosen_is_seen() -> None:
    cells = {(0, 0): (WINDOW, 1.0), (1, 0): (PAGES, 0.2), (2, 1): (PAGES, 0.6), (3, 1): (SINK, 1.0)}
    assert matrix_colours(cells, 4, 2, 1, 1).tolist() == [[list(ramp_colour(0.6))]]


def test_the_ramp_grows_lighter_with_every_step_and_keeps_hundredths_apart() -> None:
    def light(amount: float) -> float:
        red, green, blue = ramp_colour(amount)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    steps = [light(amount) for amount in np.linspace(0, 1, 33)]
    assert steps == sorted(steps)
    assert light(0.01) > light(0.0)


@pytest.mark.parametrize("chunks", [1, 3, 600])
def test_a_film_of_any_length_is_drawn(chunks: int) -> None:
    header = {**HEADER, "plan": plan(chunks), "prompts": ["ein Strand " * 40], "transitions": ["keep"]}
    events = [event(index, list(range(max(0, 2 * index - 4), 2 * index)), shot=0) for index in range(chunks)]
    thumbnails = {index: Image.new("RGB", (96, 54), (200, 30, 30)) for index in range(0, chunks, 2)}
    picture = np.asarray(draw_inspection(inspect_film(header, events), thumbnails, PictureView(640, 512)))
    assert picture.shape == (512, 640, 3)
    assert (picture == (200, 30, 30)).all(axis=-1).any()


def test_a_film_that_is_not_finished_or_not_begun_is_drawn() -> None:
    for made in (0, 2):
        assert draw_inspection(inspect_film(HEADER, EVENTS[:made]), {}).size == (1280, 1024)


def test_curves_are_the_numbers_of_the_chunks() -> None:
    chunks = inspect_film(HEADER, EVENTS)["chunks"]
    assert lane_lines(chunks, "milliseconds") == {
        "total": [12.0, 13.0, 14.0, 15.0, 16.0],
        "denoise": [10.0, 11.0, 12.0, 13.0, 14.0],
        "commit": [2.0] * 5,
    }
    assert list(lane_lines(chunks, "bytes")) == ["card", "ram", "moved"]


def test_a_group_that_is_not_there_and_a_tiny_picture_are_refused() -> None:
    inspection = inspect_film(HEADER, EVENTS)
    with pytest.raises(ValueError, match="a group of this film, which has 2, got 3"):
        draw_inspection(inspection, {}, PictureView(layer_group=2))
    with pytest.raises(ValueError, match="at least 480x480 pixels, got 640x100"):
        PictureView(640, 100)


def test_numbers_are_said_shortly() -> None:
    assert [short_time(seconds) for seconds in (0, 9.25, 60, 599.9)] == ["0 s", "9.25 s", "1:00", "9:59"]
    assert [duration(spent) for spent in (3.21, 812.4, 1240.0)] == ["3.2 ms", "812 ms", "1.24 s"]
    assert [byte_size(count) for count in (7, 2048, 6_100_000_000)] == ["7 B", "2.00 KiB", "5.68 GiB"]


def test_a_text_that_does_not_fit_is_shortened() -> None:
    font = ImageFont.load_default(12)
    assert fitting("a  beach\n", font, 200) == "a beach"
    assert fitting("a beach in the evening", font, 60).endswith("...")
    assert fitting("a beach", font, 3) == ""


def test_a_prompt_of_any_length_is_shortened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    font = ImageFont.load_default(12)
    asked: list[int] = []

    def six_pixels_a_letter(text: str) -> float:
        asked.append(len(text))
        return 6.0 * len(text)

    monkeypatch.setattr(font, "getlength", six_pixels_a_letter)
    assert fitting("ab" * 50_000, font, 300) == "ab" * 23 + "a..."
    assert len(asked) < 12
    assert max(asked) <= 303
