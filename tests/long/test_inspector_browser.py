"""The Memory Inspector in the real front end: the picture shows the trace, and what is pinned in it the next film reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numerics
import pytest
from driven import drive_front_end, our_errors
from served import Server
from shipped import TINY, read_json

from longreel.memory.inspection import BANK, PAGES, amounts_of, inspect_film
from longreel.memory.trace import read_trace

pytestmark = pytest.mark.long

DRIVER = Path(__file__).with_name("inspector.mjs")
RENDERERS = ("legacy", "nodes 2.0")
TEXT = (
    "[1.5s] anna walks left in the meadow\n[1.5s] ben waves right in the town\n"
    "[1.5s] anna jumps middle in the snow\n[1.5s] ben stands left in the night\n"
)
CHUNKS = 8
WINDOW, SINK, CHUNK = 6, 3, 3
PINNED, VETOED = 4, 1  # as in the driver
LAYER_GROUP, HEAD_GROUP = 2, 1  # as in the driver
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
REASONS = {
    "window": "it is one of the newest frames",
    "sink": "it is the film's beginning",
    "prompt": "the prompt speaks of its shot",
    "pin": "it is pinned",
    "pages": "its pages fit what is drawn",
}
WRITABLE = {
    "plain",
    "reroutes",
    "subgraph",
    "film in a subgraph",
    "promoted",
    "promoted, renamed, in two subgraphs",
    "promoted by an earlier front end",
    "text of another node",
}
"""The driver's layouts in which one field is the storyboard."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw, and the traces that its films left."""
    with Server(tmp_path_factory.mktemp("inspector")) as server:
        seen = drive_front_end(DRIVER, server, workflow())
        films = server.output / "longreel"
        traces = {path.parent.name: inspect_film(*read_trace(path)) for path in films.glob("*/trace.jsonl")}
    return {**seen, "traces": traces}


def workflow() -> dict[str, Any]:
    """The shipped workflow with a shorter storyboard, and a memory that reads in every way there is."""
    graph: dict[str, Any] = read_json(TINY)
    nodes = {node["type"]: node for node in graph["nodes"]}
    nodes["LongReelStoryboard"]["widgets_values"][0] = TEXT
    memory, sampler = nodes["LongReelSparseKVMemory"], nodes["LongReelChunkedARSampler"]
    memory["widgets_values"][:9] = ["custom", WINDOW, SINK, "absolute", 21, 0.3, 0, True, 4]
    old = memory["outputs"][0]["links"][0]
    node, link = graph["last_node_id"] + 1, graph["last_link_id"] + 1
    memory["outputs"][0]["links"] = [link]
    graph["links"] = [entry for entry in graph["links"] if entry[0] != old]
    graph["links"] += [[link, memory["id"], 0, node, 0, "MODEL"], [old, node, 0, sampler["id"], 0, "MODEL"]]
    graph["nodes"].append(
        {
            "id": node,
            "type": "LongReelPromptBank",
            "pos": [memory["pos"][0], memory["pos"][1] + 700],
            "size": [320, 260],
            "flags": {},
            "order": 9,
            "mode": 0,
            "inputs": [{"name": "model", "type": "MODEL", "link": link}],
            "outputs": [{"name": "model", "type": "MODEL", "links": [old]}],
            "properties": {},
            "widgets_values": [1, 0.3, False, "", "", "LongReel", "late interaction", False, 0.0],
        }
    )
    graph |= {"last_node_id": node, "last_link_id": link}
    return graph


@pytest.fixture(params=RENDERERS)
def said(seen: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    """What was seen in one renderer, with its films: the first, the one with a pin, and that with a pin and a veto."""
    name = f"pins {str(request.param).replace('.', '')}"
    films = [seen["traces"][f"{name}.1"], seen["traces"][f"{name}.2"], seen["traces"][name]]
    return {**seen["renderers"][request.param], "films": films}


def frames_read(chunk: dict[str, Any]) -> list[int]:
    """Every frame that a chunk read something of."""
    return sorted({read[0] for read in chunk["reads"]})


def percent_in(lines: list[str]) -> float | None:
    """How much of a frame the panel says was read page by page, as a share."""
    found = re.search(r"([\d.]+) % of it, page by page", " ".join(lines))
    return float(found[1]) / 100 if found else None


def about(amount: float) -> Any:
    """An amount as precisely as it is shown."""
    return pytest.approx(amount, rel=numerics.SHOWN_PERCENT, abs=numerics.SMALLEST_SHOWN_PERCENT)


def test_the_picture_grows_while_the_film_is_made(said: dict[str, Any]) -> None:
    """A slow page may show the next chunk already when it is asked."""
    indices = [index for chunks, _ in said["grown"] for index in chunks]
    assert indices == list(range(CHUNKS))
    shown = [int(match[1]) for _, words in said["grown"] if (match := re.search(rf"(\d+) of {CHUNKS} chunks", words))]
    assert len(shown) == len(said["grown"]) > 1
    assert shown == sorted(shown)
    assert shown[0] < shown[-1] == CHUNKS
    assert all(count > max(chunks) for count, (chunks, _) in zip(shown, said["grown"], strict=True))


def test_a_frame_under_the_pointer_tells_its_picture_its_time_its_shot_and_how_much_of_it_was_read(
    said: dict[str, Any],
) -> None:
    film = said["films"][0]
    last = film["chunks"][-1]
    reads = {read[0]: read for read in last["reads"]}
    assert {reads[int(frame)][1] for frame in said["hovered"]} == {0, 1, BANK, PAGES}
    for name, shown in said["hovered"].items():
        frame, kind, amount, score, why = reads[int(name)]
        seconds = max(0, 4 * frame - 3) / film["fps"]
        assert shown["title"] == f"Frame {frame} at {seconds:.1f} s"
        shot = next(at for at, shot in enumerate(film["shots"]) if frame < shot["frames"][1])
        shown_amount, lines = percent_in(shown["lines"]), shown["lines"]
        if kind == PAGES:
            assert shown_amount == about(amount)
            lines = [re.sub(r"[\d.]+ % of it", "some of it", line) for line in lines]
        how_much = {BANK: "all of it, brought back", PAGES: "some of it, page by page"}.get(kind, "all of it")
        assert lines == [
            f"shot {shot + 1}: {film['shots'][shot]['prompt']}",
            f"by chunk {CHUNKS} at {(4 * last['frames'][0] - 3) / film['fps']:.1f} s: {how_much}",
            f"because {REASONS[why]}",
            *([] if score is None else [f"score {score:.3g}"]),
        ]
        assert f"filename={frame // CHUNK:05d}.jpg" in shown["image"]["address"]
        assert (shown["image"]["width"], shown["image"]["height"]) == (96, 72)
        assert shown["image"]["shown"] > 0
    assert any(reads[int(frame)][3] is not None for frame in said["hovered"])


def test_a_click_draws_arcs_to_exactly_the_frames_that_the_chunk_read(said: dict[str, Any]) -> None:
    first, last = said["films"][0]["chunks"], said["films"][2]["chunks"][-1]
    for index in (1, 4, CHUNKS - 1):
        assert ends_of_arcs(said["arcs"][str(index)], first[index]) == frames_read(first[index])
        assert said["arcs"][f"{index} let go"] == []
    assert ends_of_arcs(said["arcsAgain"], last) == frames_read(last)
    assert PINNED in said["arcsAgain"]
    assert VETOED not in said["arcsAgain"]


def ends_of_arcs(inked: list[int], chunk: dict[str, Any]) -> list[int]:
    """The frames where arcs end: under the middle of the chunk itself they begin."""
    return [frame for frame in inked if frame != sum(chunk["frames"]) // 2]


def test_a_click_lists_what_the_chunk_read(said: dict[str, Any]) -> None:
    """What was chosen first; neighbouring whole frames are one row: the sink and the window."""
    reads = said["films"][0]["chunks"][-1]["reads"]
    rows = [" ".join(row.split()) for row in said["listed"]]
    ((frame, _, _, score, _),) = (read for read in reads if read[1] == BANK)
    assert rows[0].endswith(f" 100 % {score:.3g}")
    assert rows[0].startswith(f"{(4 * frame - 3) / 16:.1f} s")
    assert len(rows) == 1 + sum(read[1] == PAGES for read in reads) + 2
    assert rows[-2:] == ["0.0 s to 0.6 s 100 %", "4.3 s to 5.1 s 100 %"]


def test_a_group_of_layers_or_heads_changes_the_picture_and_everything_comes_back(said: dict[str, Any]) -> None:
    film = said["films"][0]
    last = film["chunks"][-1]
    frame = next(read[0] for read in last["reads"] if read[1] == PAGES)
    filtered = said["filtered"]
    assert len({shown["picture"] for shown in filtered.values()}) == len(filtered) - 1
    assert filtered["before"] == filtered["after"]
    for name, groups in (
        ("layers", (LAYER_GROUP, None)),
        ("both", (LAYER_GROUP, HEAD_GROUP)),
        ("heads", (None, HEAD_GROUP)),
    ):
        amount = amounts_of(film, last, *groups).get(frame, 0.0)
        assert percent_in(filtered[name]["lines"]) == (about(amount) if amount else None)


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


@pytest.mark.parametrize(
    ("film", "hovered"), [(1, "pinnedThen"), (2, "pinnedAgain")], ids=["as it stands", "saved and reloaded"]
)
def test_the_next_film_reads_the_pinned_frame(said: dict[str, Any], film: int, hovered: str) -> None:
    """A window counts the chunk that is made as well."""
    first, second = said["films"][0]["chunks"], said["films"][film]["chunks"]
    behind = [chunk for chunk in second if chunk["frames"][0] - (WINDOW - CHUNK) > PINNED]
    assert len(behind) == CHUNKS - 3
    for before, chunk in zip(first[-len(behind) :], behind, strict=True):
        assert [(kind, amount, why) for frame, kind, amount, _, why in chunk["reads"] if frame == PINNED] == [
            (BANK, 1.0, "pin")
        ]
        assert all(why != "pin" for *_, why in before["reads"])
    assert said[hovered]["title"] == f"Frame {PINNED} at 0.8 s"
    assert f"because {REASONS['pin']}" in said[hovered]["lines"]


def test_the_next_film_does_not_read_the_vetoed_frame(said: dict[str, Any]) -> None:
    """As long as it is no frame of the shot that is made."""
    for film, reads in ((0, True), (1, True), (2, False)):
        later = [chunk for chunk in said["films"][film]["chunks"] if chunk["shot"] > 0]
        assert [VETOED in frames_read(chunk) for chunk in later] == [reads] * len(later)


def test_the_picture_is_there_again_when_its_tab_is(said: dict[str, Any], request: pytest.FixtureRequest) -> None:
    renderer = request.node.callspec.params["said"]
    assert said["restored"] == f"pins {renderer.replace('.', '')}"


def test_names_and_prompts_of_a_trace_are_shown_and_never_run(said: dict[str, Any]) -> None:
    assert said["hostile"] == {"name": HOSTILE, "hacked": None, "elements": 0, "images": [None]}


def test_a_pin_reaches_the_server_however_the_storyboard_is_connected(said: dict[str, Any]) -> None:
    written = f"pin: 1.6s\n{TEXT}"
    layouts = {name: said["layouts"][name] for name in WRITABLE}
    assert {name: shown["text"] for name, shown in layouts.items()} == {name: [written, written] for name in layouts}
    assert all(shown["said"].startswith("Written into the storyboard: pin: 1.6s.") for shown in layouts.values())


def test_where_no_field_holds_the_storyboard_the_picture_says_what_to_write(said: dict[str, Any]) -> None:
    layouts = {name: shown for name, shown in said["layouts"].items() if name not in WRITABLE}
    assert len(layouts) == 2
    for shown in layouts.values():
        field, sent = shown["text"]
        assert field is None
        assert "pin:" not in sent
        assert (
            shown["said"]
            == "No storyboard can be written from here. Write 'pin: 1.6s' on a line of its own in your storyboard."
        )


def test_an_inspector_takes_the_messages_of_its_sampler_in_and_out_of_subgraphs(said: dict[str, Any]) -> None:
    for shown in (*said["layouts"].values(), *said["inside"].values()):
        ours, sent = shown["sampler"]
        assert ours == sent
    assert ":" in said["layouts"]["film in a subgraph"]["sampler"][0]
    assert all(shown["inspectors"] == [0] for shown in said["layouts"].values())
    for shown in said["inside"].values():
        assert shown["inspectors"] == [1]
        assert shown["text"] == [TEXT, TEXT]


def test_nothing_of_ours_makes_an_error_in_the_console(seen: dict[str, Any]) -> None:
    assert our_errors(seen["errors"]) == []
