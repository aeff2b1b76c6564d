"""Films that keep all they selected, in the real host, and are made again from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned
from hunyuan_film import ANCHORED, SPEC, hunyuan_film
from torch import Tensor

from longreel.kernels.pages import PageLists
from longreel.memory import bank
from longreel.memory.bank import Bank
from longreel.memory.chunks import plan_chunks
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.inspection import inspect_film
from longreel.memory.picture.words import byte_size
from longreel.memory.selections import COMMIT, Selections, read_selections, save_selections
from longreel.memory.trace import read_trace
from longreel.nodes.film import Film, FilmResult
from longreel.nodes.film_check import check_selections
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.kernels_command import film_lists, read_bench
from longreel.nodes.host import page_tier
from longreel.nodes.host.attach import attach_memory, plan_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.build_hunyuan import build_tiny_hunyuan
from longreel.nodes.recorder import Recorder

CHOOSY = MemoryConfig(3, 1, bank=BankConfig(frames_worth=0.5, shortlist=16, index_frames=3))
BOARD = "[2.25s] a beach\n[1.5s] a town"
CHUNKS = len(plan_chunks((3, 2), 3).chunks)
THREE_STEPS = torch.tensor([1.0, 0.9, 0.6, 0.0])


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return attach_memory(build_tiny_wan(TinyWanSpec(width=128, layers=2, ffn=256, seed=3)), CHOOSY)


def film(model: ModelPatcher, **settings: Any) -> Film:
    """A film of 5 chunks that keeps its selections; under guidance, so with two streams."""
    given = {"sigmas": THREE_STEPS, "cfg": 5.0, "width": 128, "height": 96, "keep_selections": True, **settings}
    return film_on_disk(model, planned(BOARD), **given)


def bill_of_a_chunk(film: Film) -> int:
    sampler = film.film_sampler(None, None)
    return plan_memory(film.guider(), sampler).selection_bytes(sampler.model_calls(len(film.sigmas) - 1))


def kept(made: FilmResult) -> list[Selections]:
    return [read_selections(path) for path in sorted((made.folder / "selections").iterdir())]


@pytest.fixture(scope="module")
def seen_and_made(model: ModelPatcher, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[PageLists], FilmResult]:
    """All lists that the film was given, and the film."""
    seen: list[PageLists] = []
    choose = Bank.choose

    def watching(self: Bank, layer: int, stream: int, *given: Any) -> list[PageLists]:
        seen.extend(lists := choose(self, layer, stream, *given))
        return lists

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bank, "choose", watching)
        return seen, film(model).make(tmp_path_factory.mktemp("kept"))


def test_every_list_of_every_step_layer_head_and_group_is_read_back(
    seen_and_made: tuple[list[PageLists], FilmResult],
) -> None:
    seen, made = seen_and_made
    first = int(min(lists.slots.min() for lists in seen))
    read = [chunk.lists_of(call, first) for chunk in kept(made) for call in range(len(chunk.calls))]
    assert len(read) == len(seen) > 0
    for ours, theirs in zip(read, seen, strict=True):
        assert torch.equal(ours.slots, theirs.slots)
        assert torch.equal(ours.counts, theirs.counts)


def test_a_file_tells_of_each_step_and_of_the_commit(seen_and_made: tuple[list[PageLists], FilmResult]) -> None:
    """Nothing is older than the window before chunk 2, whose window is itself and whose sink is frame 0."""
    files = sorted(path.name for path in (seen_and_made[1].folder / "selections").iterdir())
    assert files == [f"{index:05d}.safetensors" for index in range(1, CHUNKS)]
    last = kept(seen_and_made[1])[-1]
    called = sorted((call.step, call.layer, call.stream) for call in last.calls)
    assert called == [(step, layer, stream) for step in (COMMIT, 0, 1, 2) for layer in range(2) for stream in range(2)]
    assert [call.step for call in last.calls] == [step for step in (0, 1, 2, COMMIT) for _ in range(4)]
    told = inspect_film(*read_trace(seen_and_made[1].trace))["chunks"]
    sizes = [path.stat().st_size for path in sorted((seen_and_made[1].folder / "selections").iterdir())]
    assert [chunk["selection_bytes"] for chunk in told] == [0, *sizes]
    assert (last.facts["first_frame"], last.facts["end_frame"], last.facts["dense_frames"]) == (12, 15, 4)
    assert set(last.frames.flatten()) <= set(last.offered.tolist()) == set(range(1, 12))


class Replay:
    """Takes shortlists and lists from files instead of choosing."""

    def __init__(self, chunks: list[Selections]) -> None:
        self._calls: Iterator[tuple[Selections, int]] = iter(
            [(chunk, call) for chunk in chunks for call in range(len(chunk.calls))]
        )
        self._next = next(self._calls)

    def shortlist(self, ours: Bank, layer: int, stream: int, queries: Tensor) -> Tensor:
        frames, pages = self._next[0].shortlist_of(self._next[1])
        places = torch.tensor([[ours.frames.index(frame) for frame in row] for row in frames.tolist()])
        return (ours._first_slots[places] + pages).int()

    def select(self, queries: Tensor, means: Tensor, limit: int, *, first_slot: int) -> PageLists:
        chunk, call = self._next
        self._next = next(self._calls, (chunk, -1))
        return chunk.lists_of(call, first_slot)


@pytest.mark.parametrize("changed", [False, True])
def test_a_film_made_from_its_kept_selections_has_the_same_bits(
    model: ModelPatcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen_and_made: tuple[list[PageLists], FilmResult],
    changed: bool,
) -> None:
    """Without choosing anything; and with one other page in one list it is another film."""
    made = seen_and_made[1]
    chunks = kept(made)
    if changed:
        lists = chunks[0].lists.copy()
        lists[0, 0] = next(place for place in range(16) if place not in lists[0])
        chunks[0] = replace(chunks[0], lists=lists)
    replay = Replay(chunks)
    monkeypatch.setattr(Bank, "_shortlist", lambda ours, *given: replay.shortlist(ours, *given))
    monkeypatch.setattr(bank, "select_pages", replay.select)
    again = film(model, keep_selections=False).make(tmp_path)
    assert torch.equal(again.latents, made.latents) != changed


def test_keeping_selections_changes_no_bit_and_is_off_unless_it_is_asked_for(
    model: ModelPatcher, tmp_path: Path, seen_and_made: tuple[list[PageLists], FilmResult]
) -> None:
    """Nor is the film another one: with the option on it goes on where it was stopped without."""
    made = seen_and_made[1]
    plain = film(model, keep_selections=False).make(tmp_path)
    assert torch.equal(plain.latents, made.latents)
    assert not (plain.folder / "selections").exists()
    said: list[str] = []
    film(model).make(tmp_path, said.append)
    assert said[0] == f"The film goes on after {CHUNKS} finished chunks."  # which keep none, so nothing is billed


def test_a_film_that_was_stopped_keeps_the_files_of_its_finished_chunks(
    model: ModelPatcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seen_and_made: tuple[list[PageLists], FilmResult],
) -> None:
    finished = Recorder.finished

    def cancelling(self: Recorder, done: Any, guider: Any) -> None:
        finished(self, done, guider)
        if done.chunk.index == 2:
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finished", cancelling)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film(model).make(tmp_path)
    folder = tmp_path / "film" / "selections"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == ["00001.safetensors", "00002.safetensors"]
    (folder / "00003.safetensors").write_bytes(b"of a chunk that was not finished")
    (folder / ".00003.safetensors.part").write_bytes(b"of a write that never finished")
    said: list[str] = []
    handed: list[tuple[bool, bool]] = []

    def watching(self: Recorder, done: Any, guider: Any) -> None:
        handed.append((done.replayed, done.selections is not None))
        finished(self, done, guider)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finished", watching)
        made = film(model).make(tmp_path, said.append)
    assert (
        handed == [(True, False)] * 3 + [(False, True)] * 2
    )  # lists of chunks that were made before are not fetched again
    bill = bill_of_a_chunk(film(model))
    assert said[0].endswith(f" Its selections take up to {byte_size((CHUNKS - 3) * bill)} on disk.")
    whole = {path.name: path.read_bytes() for path in (seen_and_made[1].folder / "selections").iterdir()}
    assert {path.name: path.read_bytes() for path in (made.folder / "selections").iterdir()} == whole
    assert before.items() <= whole.items()


def test_another_film_takes_its_selections_along_and_a_new_one_begins_without(
    model: ModelPatcher, tmp_path: Path
) -> None:
    first = film(model, seed=1, sigmas=torch.tensor([1.0, 0.0])).make(tmp_path)
    names = [path.name for path in sorted((first.folder / "selections").iterdir())]
    other = film(model, seed=2, sigmas=torch.tensor([1.0, 0.0]))
    assert check_selections(other, first.folder, other._settings()) == CHUNKS * bill_of_a_chunk(other)
    second = replace(other, keep_selections=False).make(tmp_path)
    assert [path.name for path in sorted((tmp_path / "film.1" / "selections").iterdir())] == names
    assert not (second.folder / "selections").exists()


def test_selections_that_do_not_fit_onto_the_disk_are_refused_before_anything_is_made(
    model: ModelPatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = page_tier.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(page_tier.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"needs 0.0 GiB with its selections, .* Turn 'keep_selections' .* off"):
        film(model).make(tmp_path / "films")
    assert not (tmp_path / "films").exists()
    assert film(model, keep_selections=False, sigmas=torch.tensor([1.0, 0.0])).make(tmp_path / "films").folder.exists()


def test_the_bill_covers_the_files_of_a_sampler_that_calls_the_model_twice_a_step(
    model: ModelPatcher, tmp_path: Path
) -> None:
    heun = film(model, sampler=comfy.samplers.sampler_object("heun"))
    made = heun.make(tmp_path)
    sizes = [path.stat().st_size for path in (made.folder / "selections").iterdir()]
    assert 0 < max(sizes) <= bill_of_a_chunk(heun)


def test_words_that_are_joined_with_the_picture_have_groups_behind_it(host: object, tmp_path: Path) -> None:
    """HunyuanVideo under guidance: 7 words in one stream, 3 in the other, in groups of 4 as the 144 tokens of a chunk are."""
    plan = plan_chunks((2, 2), 3)
    made = hunyuan_film(
        build_tiny_hunyuan(SPEC), plan, config=replace(CHOOSY, positions=ANCHORED), cfg=5.0, keep_selections=True
    )
    selections = made.chunks[-1].selections
    assert selections is not None
    save_selections(tmp_path / "00003.safetensors", selections)
    read = read_selections(tmp_path / "00003.safetensors")
    assert {(call.stream, call.groups) for call in read.calls} == {(0, 36 + 2), (1, 36 + 1)}
    for at, call in enumerate(read.calls):
        assert read.lists_of(at).slots.shape[1] == call.groups
    given = film_lists(tmp_path / "00003.safetensors", torch.float32)
    assert given.lists.slots.shape[1] == given.case.groups == 36


def test_the_kernel_bench_measures_what_a_film_read_beside_lists_that_are_drawn(
    seen_and_made: tuple[list[PageLists], FilmResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = seen_and_made[1].folder / "selections" / "00004.safetensors"
    given = film_lists(path, torch.float32)
    selections = read_selections(path)
    at = next(at for at, call in enumerate(selections.calls) if call[:3] == (2, 1, 0))
    frames, pages = selections.shortlist_of(at)
    for head, of_head in enumerate(selections.lists_of(at).slots.tolist()):
        for group, places in enumerate(of_head):
            expected = [(int(frames[head, place]), int(pages[head, place])) for place in places]
            slots = given.lists.slots[head, group] - given.case.first_bank_slot
            found = [
                (1 + slot // given.case.pages_per_frame, slot % given.case.pages_per_frame) for slot in slots.tolist()
            ]
            assert found == sorted(expected)
    assert main(["bench", "kernels", "--lists", str(path), "--json", str(tmp_path / "rows.json")]) == 0
    rows = read_bench(tmp_path / "rows.json").rows
    ours = {row.case: row for row in rows if row.implementation == "LongReel, torch"}
    assert list(ours) == [case.name for case in given.cases]
    assert next(iter(ours)) == "chunk 00004 of a film, layer 1, step 2"
    assert all(row.milliseconds is not None for row in ours.values())
    capsys.readouterr()
    assert main(["bench", "kernels", "--lists", str(tmp_path / "rows.json")]) == 1
    assert "--lists needs a file of a film's folder 'selections'" in capsys.readouterr().err
