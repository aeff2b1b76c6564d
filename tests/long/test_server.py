"""The real server over HTTP: render, cancel, kill, resume, refuse."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from served import RefusedError, Server, errors_of, hashes, tiny_prompt

pytestmark = pytest.mark.long
Record = Callable[[str, object], None]

SHORT = "[1.5s] anna walks left in the meadow\n[1.5s] ben waves right in the town"
SIXTEEN_CHUNKS = "[6s] anna walks left in the meadow\n[6s, recache] ben waves right in the town"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), "--no-frontend") as server:
        yield server


@pytest.fixture(scope="module")
def reference(server: Server) -> dict[str, str]:
    """The film of sixteen chunks, made in one go."""
    server.render(tiny_prompt(SIXTEEN_CHUNKS, "reference"))
    made = hashes(server.output / "longreel" / "reference")
    assert len([name for name in made if name.startswith("chunks/")]) == 16
    return made


def test_the_pack_loads_without_an_error(server: Server) -> None:
    ours = [line for line in server.log.splitlines() if "custom_nodes/longreel" in line]
    assert ours
    assert not [line for line in ours if "FAILED" in line or "Cannot" in line]
    assert "comfy_entrypoint" not in server.log
    known = server.get("/object_info")
    for node in ("Storyboard", "SparseKVMemory", "ChunkedARSampler", "TinyStoryboardModel"):
        assert f"LongReel{node}" in known


def test_the_server_lists_our_workflows_as_templates(server: Server) -> None:
    templates = server.get("/workflow_templates")
    assert "Tiny demo storyboard" in templates["longreel"]


def test_the_server_hands_out_the_pages_of_our_nodes(server: Server) -> None:
    with urllib.request.urlopen(f"{server.url}/extensions/longreel/docs/LongReelStoryboard.md", timeout=30) as page:
        assert page.read().startswith(b"# Storyboard\n")


def test_a_prompt_leaves_a_film_that_opens(server: Server, record_property: Record) -> None:
    start = time.monotonic()
    ended = server.render(tiny_prompt(SHORT, "opens"))
    record_property("seconds of a film of 4 chunks, models loaded anew", round(time.monotonic() - start, 1))
    (film,) = next(shown["images"] for shown in ended["outputs"].values() if "images" in shown)
    assert film["type"] == "output"
    with av.open(server.output / film["subfolder"] / film["filename"]) as video:
        stream = video.streams.video[0]
        assert stream.average_rate == 16
        assert sum(1 for _ in video.decode(stream)) == 4 * (12 - 1) + 1


def test_a_start_image_becomes_the_first_picture(server: Server) -> None:
    prompt = tiny_prompt("[1.5s] anna walks left in the meadow", "from a picture")
    model, sampler = (
        next(node for node, entry in prompt.items() if entry["class_type"] == f"LongReel{name}")
        for name in ("TinyStoryboardModel", "ChunkedARSampler")
    )
    blank = {"width": 64, "height": 48, "batch_size": 1, "color": 0x204080}
    prompt["picture"] = {"class_type": "EmptyImage", "inputs": blank}
    prompt["encoded"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": [model, 2]}}
    prompt[sampler]["inputs"]["start_image"] = ["encoded", 0]
    server.render(prompt)
    with av.open(server.output / "longreel" / "from a picture" / "film.mp4") as video:
        assert sum(1 for _ in video.decode(video=0)) == 4 * (1 + 6 - 1) + 1


def test_a_cancelled_film_keeps_its_chunks_and_goes_on(
    server: Server, reference: dict[str, str], record_property: Record
) -> None:
    prompt = tiny_prompt(SIXTEEN_CHUNKS, "cancelled")
    started = server.queue(prompt)
    server.wait_for(lambda: server.finished_chunks("cancelled") >= 3, 300, "three chunks")
    pressed = time.monotonic()
    server.post("/interrupt", {})
    ended = server.wait(started)
    record_property("seconds from cancel to stop", round(time.monotonic() - pressed, 2))
    assert [event for event, _ in ended["status"]["messages"]][-1] == "execution_interrupted"
    kept = server.finished_chunks("cancelled")
    assert 3 <= kept < 16
    server.render(prompt)
    assert hashes(server.output / "longreel" / "cancelled") == reference


def test_a_killed_server_leaves_nothing_that_is_wrong(
    tmp_path: Path, reference: dict[str, str], record_property: Record
) -> None:
    prompt = tiny_prompt(SIXTEEN_CHUNKS, "killed")
    kept = []
    for chunks, more in ((1, 0.0), (5, 0.11), (9, 0.23)):
        with Server(tmp_path, "--no-frontend") as server:
            server.queue(prompt)
            server.wait_for(lambda wanted=chunks: server.finished_chunks("killed") >= wanted, 300, f"{chunks} chunks")
            time.sleep(more)
            server.kill()
        kept.append(server.finished_chunks("killed"))
        # What a kill can leave behind: a file that was being written, and one nobody vouched for yet.
        film = tmp_path / "output" / "longreel" / "killed"
        (film / "chunks" / "00015.safetensors").write_bytes(b"half of a chu")
        (film / "segments").mkdir(exist_ok=True)
        (film / "segments" / "00015.mp4").write_bytes(b"half of a pict")
    assert all(wanted <= chunks < 16 for wanted, chunks in zip((1, 5, 9), kept, strict=True)), kept
    record_property("chunks kept at each kill", kept)
    with Server(tmp_path, "--no-frontend") as server:
        server.render(prompt)
    assert hashes(film) == reference


def test_a_film_made_twice_in_one_server_has_the_same_bytes(server: Server, reference: dict[str, str]) -> None:
    server.render(tiny_prompt(SIXTEEN_CHUNKS, "again"))
    assert hashes(server.output / "longreel" / "again") == reference
    shutil.rmtree(server.output / "longreel" / "again")


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        (SHORT, {"width": 72}, ["width", "multiple of 16", "72", "Use 64"]),
        (SHORT, {"height": 100}, ["height", "multiple of 16", "100", "Use 96"]),
        (SHORT, {"project": "../elsewhere"}, ["project name", "../elsewhere"]),
        ("[0s] nobody", {}, ["line 1"]),
        ("", {}, ["shot"]),
        ("[5s] @anna walks", {}, ["@anna", "line 1"]),
    ],
    ids=["width", "height", "project", "zero seconds", "empty", "unknown character"],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    server: Server, text: str, changes: dict[str, Any], said: list[str]
) -> None:
    before = sorted(server.output.rglob("*"))
    try:
        ended = server.wait(server.queue(tiny_prompt(text, **{"project": "refused", **changes})))
    except RefusedError as refused:
        (node,) = refused.answer["node_errors"].values()
        (error,) = node["errors"]
        message = f"{error['message']} {error['details']}"
    else:
        assert ended["status"]["status_str"] == "error"
        (error,) = errors_of(ended)
        message = error["exception_message"]
    for words in said:
        assert words in message
    assert sorted(server.output.rglob("*")) == before
