"""The Memory Inspector on real films: trace, thumbnails, node and live messages."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned, render
from PIL import Image
from shipped import API_FOLDER, TINY, read_json

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.inspection import PAGES, amounts_of, inspect_film
from longreel.memory.picture import draw_inspection
from longreel.memory.picture.drawing import ABOVE_MATRIX, BELOW_MATRIX, LEFT, RIGHT
from longreel.memory.picture.palette import GROUND, reading_colour
from longreel.memory.prompt_bank import PromptBankConfig
from longreel.memory.trace import TraceError, read_trace
from longreel.memory.trace_groups import step_groups
from longreel.nodes.film import FilmResult
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan
from longreel.nodes.live_inspection import EVENT, SECONDS_BETWEEN, LiveInspection
from longreel.nodes.memory_inspector import MemoryInspector
from longreel.nodes.recorder import Recorder

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

SEARCHING = MemoryConfig(3, 1, bank=BankConfig(frames_worth=1.0, shortlist=16, index_frames=4))
BOARD = "[2.25s] a beach\n[1.5s] a town"
MARKUP = "<b onmouseover=alert(1)>a beach</b>"


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(TinyWanSpec(width=128, layers=2, ffn=256, seed=3))


@pytest.fixture(scope="module")
def vae(host: object) -> comfy.sd.VAE:
    return build_tiny_vae(dim=8)


@pytest.fixture(scope="module")
def made(model: ModelPatcher, vae: comfy.sd.VAE) -> FilmResult:
    """A film that searches its history, in the host's output folder."""
    film = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD), vae=vae, project="inspected")
    return film.make(Path(folder_paths.get_output_directory()) / "longreel")


def show(trace: Path, **settings: int) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """Image, JSON and what the browser gets."""
    chosen = {"layer_group": 0, "head_group": 0, "width": 640, "height": 512, **settings}
    shown = MemoryInspector.execute(trace=trace, **chosen)
    image, text = shown.args
    (sent,) = shown.ui["longreel"]
    return image.numpy(), json.loads(text), sent


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_counting_what_is_read_changes_no_bit_of_a_film(model: ModelPatcher, cfg: float) -> None:
    plan = plan_chunks((3, 2), 3)
    counted, plain = (render(model, plan, config=SEARCHING, cfg=cfg, tallied=tallied) for tallied in (True, False))
    assert torch.equal(counted.latents, plain.latents)
    reads = counted.chunks[-1].bank_reads
    assert reads is not None
    assert plain.chunks[-1].bank_reads is None
    # Every group lists frames' worth of 1.0; a page of a frame's last tokens is shorter than the others.
    assert reads.whole.sum() == pytest.approx(1.0, abs=0.1)


def test_a_trace_tells_reads_cost_bytes_and_drift_of_every_chunk(made: FilmResult) -> None:
    header, events = read_trace(made.trace)
    assert (header["layers"], header["heads"], header["tier"], header["sink_frames"]) == (2, 1, "ram", 1)
    assert header["transitions"] == ["keep", "keep"]
    for event in events:
        assert set(event["milliseconds"]) >= {"denoise", "commit", "copy", "decode"}
        assert min(event["milliseconds"].values()) >= 0
        assert event["bytes"]["card"] == header["peak_kv_bytes"]
        assert (
            event["bytes"]["ram"] == event["remembered"] * 2 * 2 * 128 * 8 * 4
        )  # k and v, layers, width, tokens, float32
    assert [event["remembered"] for event in events] == [3, 6, 9, 12, 15]
    assert events[0]["bytes"]["moved"] == 0 < events[-1]["bytes"]["moved"]
    assert "select" in events[-1]["milliseconds"]
    assert events[0]["drift"]["change"] == 0.0 < events[1]["drift"]["change"]
    # Frame 0 is the sink and a chunk of 3 fills the window of 3: all others are offered page by page.
    assert {frame for frame, _ in events[-1]["bank"]} <= set(range(1, 12))
    assert sum(amount for _, amount in events[-1]["bank"]) / 10_000 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("name", "steps"), [("euler", 6), ("heun", 3)])
def test_what_is_told_of_steps_is_what_was_read_in_them_and_their_mean_the_whole(
    model: ModelPatcher, tmp_path: Path, name: str, steps: int
) -> None:
    """Heun calls the model twice in every step but the last."""
    made = film_on_disk(
        attach_memory(model, SEARCHING),
        planned(BOARD),
        sampler=comfy.samplers.sampler_object(name),
        sigmas=torch.linspace(1.0, 0.0, steps + 1),
        cfg=5.0,
    ).make(tmp_path)
    header, events = read_trace(made.trace)
    groups = step_groups(steps)
    assert (header["steps"], header["step_groups"]) == (steps, [list(group) for group in groups])
    last = events[-1]
    lists = [row[0] for row in last["steps"]]
    assert [made // lists[0] for made in lists] == ([1, 1, 1] if name == "euler" else [1, 2, 2])
    whole = dict(last["bank"])
    assert {row[0] for row in last["bank_steps"]} == set(whole)
    for frame, *amounts in last["bank_steps"]:
        assert np.average(amounts, weights=lists) == pytest.approx(whole[frame], abs=1)
    assert len({tuple(row[1:]) for row in last["bank_steps"]}) > 1
    assert "bank_steps" not in events[0]
    chunk = inspect_film(header, events)["chunks"][-1]
    assert np.shape(chunk["mass"]) == (2, 1)  # layers and heads of this model
    assert np.average(chunk["mass_by_step"], weights=lists) == pytest.approx(np.mean(chunk["mass"]), abs=1e-4)
    assert 0 < np.min(chunk["mass"]) <= np.max(chunk["mass"]) < 1


def test_the_tier_that_was_hit_is_told(made: FilmResult) -> None:
    """The sink stays on the card from the third chunk on; pages come from RAM."""
    _, events = read_trace(made.trace)
    frame = 2 * 2 * 128 * 8 * 4  # k and v, layers, width, tokens, float32
    assert [event["hits"]["card"] for event in events] == [0, 0, frame, frame, frame]
    assert [event["hits"]["ram"] for event in events] == [event["bytes"]["moved"] for event in events]


def test_the_node_gives_image_json_and_what_the_browser_draws(made: FilmResult) -> None:
    image, told, sent = show(made.trace)
    assert image.shape == (1, 512, 640, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1
    assert told == json.loads(json.dumps(sent))
    assert {read[1] for chunk in sent["chunks"] for read in chunk["reads"]} == {1, PAGES}
    other, _, _ = show(made.trace, layer_group=2)
    assert not np.array_equal(image, other)
    with pytest.raises(ValueError, match="a group of this film, which has 2"):
        show(made.trace, layer_group=3)


def test_the_image_shows_one_group_of_layers_or_heads_and_everything_again(host: object, tmp_path: Path) -> None:
    """A little inside of each cell's upper left corner: marks are in the middle."""
    model = build_tiny_wan(TinyWanSpec(width=256, layers=2, ffn=256, seed=3))
    trace = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD)).make(tmp_path).trace
    whole, told, _ = show(trace)
    last = told["chunks"][-1]
    pages = [read[0] for read in last["reads"] if read[1] == PAGES]
    width, height = (640 - LEFT - RIGHT) / 5, (512 - ABOVE_MATRIX - BELOW_MATRIX) / 15
    shown = set()
    for layers, heads in ((1, 0), (2, 0), (0, 1), (0, 2), (2, 1)):
        image, _, _ = show(trace, layer_group=layers, head_group=heads)
        amounts = amounts_of(told, last, layers - 1 if layers else None, heads - 1 if heads else None)
        for frame in pages:
            x, y = int(LEFT + 4 * width + 3), int(512 - BELOW_MATRIX - (frame + 1) * height + 3)
            expected = reading_colour(PAGES, amounts[frame]) if frame in amounts else GROUND
            assert tuple(np.rint(image[0, y, x] * 255)) == expected
        shown.add(tuple(amounts.get(frame, 0.0) for frame in pages))
    assert len(shown) == 5
    assert np.array_equal(show(trace)[0], whole)


def test_every_chunk_has_a_thumbnail_that_the_browser_can_fetch(made: FilmResult) -> None:
    _, _, sent = show(made.trace)
    assert [thumbnail["chunk"] for thumbnail in sent["thumbnails"]] == [0, 1, 2, 3, 4]
    for thumbnail in sent["thumbnails"]:
        assert thumbnail["src"].startswith("/view?filename=0000")
        assert "subfolder=longreel%2Finspected%2Fthumbs&type=output" in thumbnail["src"]
    files = sorted((made.folder / "thumbs").iterdir())
    assert [path.name for path in files] == [f"{chunk:05d}.jpg" for chunk in range(5)]
    with Image.open(files[2]) as picture:
        assert (picture.format, picture.size) == ("JPEG", (96, 48))
    assert all(path.stat().st_size < 6000 for path in files)


def test_missing_and_damaged_thumbnails_are_no_error(made: FilmResult, tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_bytes(made.trace.read_bytes())
    (tmp_path / "thumbs").mkdir()
    (tmp_path / "thumbs" / "00001.jpg").write_bytes(b"no picture")
    image, _, sent = show(tmp_path / "trace.jsonl")
    assert image.shape == (1, 512, 640, 3)
    assert sent["thumbnails"] == []


def test_without_a_vae_thumbnails_are_the_hosts_own_preview(model: ModelPatcher, tmp_path: Path) -> None:
    filmed = film_on_disk(model, planned("[1.5s] a beach")).make(tmp_path)
    assert len(list((filmed.folder / "thumbs").iterdir())) == 2
    assert "decode" not in read_trace(filmed.trace)[1][0]["milliseconds"]


def test_a_missing_trace_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="Render the film first"):
        show(tmp_path / "trace.jsonl")


def test_markup_in_prompts_and_names_stays_data(model: ModelPatcher, tmp_path: Path) -> None:
    filmed = film_on_disk(model, planned(f"[1.5s] {MARKUP}"), project="b 'n' &amp;").make(tmp_path)
    _, told, sent = show(filmed.trace)
    assert sent["shots"][0]["prompt"] == told["shots"][0]["prompt"] == MARKUP
    assert sent["project"] == "b 'n' &amp;"


def test_why_a_frame_was_brought_back_and_what_was_vetoed_is_told(model: ModelPatcher, tmp_path: Path) -> None:
    memory = MemoryConfig(3, 1, prompt_bank=PromptBankConfig(frames=2, variety=0.0, vetoes="1.2s"))
    board = planned("pin: 0.5s\n[2.25s] a beach\n[1.5s] a town")
    filmed = film_on_disk(attach_memory(model, memory), board).make(tmp_path)
    _, _, sent = show(filmed.trace)
    assert (sent["pins"], sent["vetoes"]) == ("0.5s", "1.2s")
    last = sent["chunks"][-1]
    why = {read[4] for read in last["reads"]}
    assert why == {"sink", "pin", "prompt"}
    assert [read[0] for read in last["reads"] if read[4] == "pin"] == [2]
    assert last["excluded"] == {"vetoed": [5]}
    assert 5 not in [read[0] for read in last["reads"]]


def stop_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt, as a user does, behind that many chunks."""
    finished = Recorder.finished

    def cancelling(self: Recorder, done: Any, guider: Any) -> None:
        finished(self, done, guider)
        if done.chunk.index == chunks - 1:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(Recorder, "finished", cancelling)


def test_a_resumed_film_keeps_the_lines_of_its_trace_and_shows_them_again(
    model: ModelPatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD))
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path)
    before = (tmp_path / "film" / "trace.jsonl").read_bytes()
    shown: list[int] = []
    said: list[str] = []
    resumed = film.make(tmp_path, said.append, lambda folder, header, line: shown.append(line["chunk"]))
    assert resumed.trace.read_bytes().startswith(before)
    assert shown == [0, 1, 2, 3, 4]
    whole = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD), project="whole").make(tmp_path)
    for ours, theirs in zip(read_trace(resumed.trace)[1], read_trace(whole.trace)[1], strict=True):
        for key in ("read_frames", "bank", "selected", "drift", "remembered"):
            assert ours.get(key) == theirs.get(key)
    oldest = min(frame for frame, _ in read_trace(whole.trace)[1][-1]["bank"])  # not frame 0, which is the sink
    assert oldest > 0
    assert any(f"15 frames remembered, looks back {4 * (12 - oldest) / 16:.1f} s" in text for text in said)
    remembered = [text.rpartition("\n")[2] for text in said[1:]]
    assert remembered[0] == "3 frames remembered"  # also where nothing, or the sink alone, is read
    assert all("frames remembered" in text for text in remembered)


def test_what_the_pictures_of_the_last_finished_chunk_cost_is_still_told_after_a_stop(
    model: ModelPatcher, vae: comfy.sd.VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD), vae=vae)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path)
    before = read_trace(tmp_path / "film" / "trace.jsonl")[1]
    after = read_trace(film.make(tmp_path).trace)[1]
    assert after[:3] == before
    assert all(event["milliseconds"]["decode"] > 0 for event in after)


def test_a_trace_that_cannot_be_read_stops_no_film_and_a_new_one_begins(
    model: ModelPatcher, tmp_path: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = film_on_disk(attach_memory(model, SEARCHING), planned(BOARD))
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path)
    trace = tmp_path / "film" / "trace.jsonl"
    trace.write_bytes(b"nonsense" + trace.read_bytes()[8:])
    sent: list[int] = []
    monkeypatch.setattr(runner, "report", lambda event, data: sent.extend(chunk["index"] for chunk in data["chunks"]))
    monkeypatch.setattr(runner.server, "client_id", "browser")
    with LiveInspection("7") as live:
        made = film.make(tmp_path, lambda text: None, live.finished)
    assert sent == [event["chunk"] for event in read_trace(made.trace)[1]] == [3, 4]
    assert draw_inspection(inspect_film(*read_trace(made.trace)), {}).size == (1280, 1024)


def test_live_messages_come_at_most_twice_a_second_and_tell_each_chunk_once(
    runner: Runner, made: FilmResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []
    clock = itertools.count(0.0, 0.2)
    monkeypatch.setattr(runner, "report", lambda event, data: sent.append(data) if event == EVENT else None)
    header, events = read_trace(made.trace)
    monkeypatch.setattr(runner.server, "client_id", "browser")
    with LiveInspection("7", now=lambda: next(clock)) as live:
        for event in events:
            live.finished(made.folder, header, event)
    assert [chunk["index"] for message in sent for chunk in message["chunks"]] == [0, 1, 2, 3, 4]
    assert len(sent) < len(events)
    assert SECONDS_BETWEEN == 0.5
    assert sent[0]["sampler"] == "7"
    merged = {**sent[-1]["inspection"], "chunks": [chunk for message in sent for chunk in message["chunks"]]}
    whole = inspect_film(header, events)
    assert merged == {key: value for key, value in whole.items() if key != "thumbnails"}
    monkeypatch.setattr(runner.server, "client_id", None)
    sent.clear()
    with LiveInspection("7") as live:
        live.finished(made.folder, header, events[0])
    assert sent == []


def test_the_browser_sees_chunks_while_the_shipped_workflow_runs(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, Any]] = []
    monkeypatch.setattr(runner, "report", lambda event, data: events.append((event, copy.deepcopy(data))))
    prompt = read_json(API_FOLDER / TINY.name)
    nodes = {node["class_type"]: (name, node["inputs"]) for name, node in prompt.items()}
    nodes["LongReelStoryboard"][1]["text"] = "[1.5s] anna walks left in the meadow"
    sampler, inputs = nodes["LongReelChunkedARSampler"]
    inputs.update({"project": "live", "width": 64, "height": 48})
    rendered = runner.run(prompt)
    messages = [data for event, data in events if event == EVENT]
    assert [chunk["index"] for message in messages for chunk in message["chunks"]] == [0, 1]
    assert {message["sampler"] for message in messages} == {sampler}
    assert all(message["prompt_id"] for message in messages)
    assert {thumbnail["chunk"] for message in messages for thumbnail in message["thumbnails"]} == {0, 1}
    inspector, _ = nodes["LongReelMemoryInspector"]
    (inspection,) = rendered.outputs[inspector]["longreel"]
    assert inspection["project"] == "live"
    assert inspection["chunks"] == [chunk for message in messages for chunk in message["chunks"]]
