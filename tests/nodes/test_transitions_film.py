"""Shots that begin with a cut or a blend, in the real host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned, prompt

from longreel.memory.config import MemoryConfig
from longreel.memory.inspection import inspect_film
from longreel.memory.prompt_bank import PromptBankConfig
from longreel.memory.trace import read_trace
from longreel.nodes.film import Film
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.conditioning import blended
from longreel.nodes.recorder import Recorder

MEMORY = MemoryConfig(window_frames=6, sink_frames=1, prompt_bank=PromptBankConfig(frames=2, variety=0.0))


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return attach_memory(build_tiny_wan(TinyWanSpec(width=128, layers=2, ffn=128, seed=3)), MEMORY)


def film(model: ModelPatcher, transition: str, **settings: Any) -> Film:
    """Shot 3 asks for what shot 1 showed, and begins as the test says."""
    behind = f", {transition}" if transition else ""
    text = f"[0s-1.5s] a beach\n[1.5s-3s] a town\n[3s-5.25s{behind}] a beach"
    storyboard = planned(text, prompts=(prompt(0, words=7), prompt(1, words=4), prompt(0, words=7)))
    return film_on_disk(model, storyboard, **settings)


def events(made: Film, folder: Path) -> list[dict[str, Any]]:
    return read_trace(made.make(folder).trace)[1]


def test_a_cut_drops_the_window_and_keeps_sink_and_bank(model: ModelPatcher, tmp_path: Path) -> None:
    first = events(film(model, "cut"), tmp_path)[4]
    assert first["transition"] == "cut"
    assert first["brought_frames"] == [4, 5]
    assert first["read_frames"] == [0, 4, 5]
    assert first["excluded"] == {"cut": [[9, 11]]}


def test_a_clean_cut_closes_the_bank_too(model: ModelPatcher, tmp_path: Path) -> None:
    told = events(film(model, "cut clean"), tmp_path)
    assert told[4]["read_frames"] == [0]
    assert told[4]["excluded"] == {"cut": [[1, 11]]}
    assert told[5]["read_frames"] == [0, 12, 13, 14]


def test_recache_leaves_what_lies_before_a_cut_as_it_was(model: ModelPatcher, tmp_path: Path) -> None:
    storyboard = planned("[0s-1.5s] a beach\n[1.5s-2.25s, cut] a town\n[2.25s-3.75s, recache] a road")
    made = film_on_disk(model, storyboard).make(tmp_path).trace
    told = read_trace(made)[1]
    assert told[3]["recached_frames"] == [6, 7, 8]
    chunks = inspect_film(*read_trace(made))["chunks"]
    assert [chunk["recached"] for chunk in chunks] == [[], [], [], [6, 7, 8], []]


def test_what_is_pinned_is_read_after_a_clean_cut_too(model: ModelPatcher, tmp_path: Path) -> None:
    bank = PromptBankConfig(frames=2, variety=0.0, pins="0.5s")
    pinning = attach_memory(model, replace(MEMORY, prompt_bank=bank))
    assert events(film(pinning, "cut clean"), tmp_path)[4]["read_frames"] == [0, 2]


def test_without_a_cut_the_window_goes_on(model: ModelPatcher, tmp_path: Path) -> None:
    first = events(film(model, "keep"), tmp_path)[4]
    assert first["transition"] == "keep"
    assert set(first["read_frames"]) >= {0, 9, 10, 11}


def test_a_blend_is_made_under_prompts_between_the_two(model: ModelPatcher, tmp_path: Path) -> None:
    mixed = film(model, "blend 1.5s")
    prompts = mixed.guider().prompts
    assert len(prompts) == 5
    before, after = prompts[1], prompts[2]
    padded = torch.cat([before, torch.zeros(len(after) - len(before), before.shape[1])])
    assert torch.allclose(prompts[3], padded * (2 / 3) + after / 3, atol=1e-5)
    assert torch.allclose(prompts[4], padded / 3 + after * (2 / 3), atol=1e-5)
    plain, blend = film(model, "keep").make(tmp_path / "plain"), mixed.make(tmp_path / "blend")
    assert torch.equal(plain.latents[:, :, :12], blend.latents[:, :, :12])
    assert not torch.equal(plain.latents[:, :, 12:15], blend.latents[:, :, 12:15])
    chunks = inspect_film(*read_trace(blend.trace))["chunks"]
    assert [chunk["blend"] for chunk in chunks] == [None, None, None, None, 0.33333, 0.66667, None]


@pytest.mark.parametrize("transition", ["cut", "cut clean", "blend 1.5s", "recache"])
def test_a_film_with_transitions_goes_on_with_the_same_bits(
    model: ModelPatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transition: str
) -> None:
    whole = film(model, transition).make(tmp_path / "whole")
    finished = Recorder.finished

    def cancelling(self: Recorder, done: Any, guider: Any) -> None:
        finished(self, done, guider)
        if done.chunk.index == 4:
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finished", cancelling)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film(model, transition).make(tmp_path / "resumed")
    resumed = film(model, transition).make(tmp_path / "resumed")
    assert torch.equal(resumed.latents, whole.latents)


def test_each_transition_makes_another_film(model: ModelPatcher, tmp_path: Path) -> None:
    ways = ("keep", "recache", "blend 1.5s", "cut", "cut clean")
    made = [film(model, way).make(tmp_path / way.replace(" ", "_")).latents for way in ways]
    for index, one in enumerate(made):
        assert not any(torch.equal(one, other) for other in made[index + 1 :])


def test_a_blend_of_nothing_is_the_first_prompt_and_of_all_the_second() -> None:
    before, after = prompt(0), prompt(1)
    assert torch.equal(blended(before, after, 0.0)[0][0], before[0][0])
    assert torch.equal(blended(before, after, 1.0)[0][0], after[0][0])


def test_a_start_image_does_not_shift_a_cut(model: ModelPatcher, tmp_path: Path) -> None:
    made = film(model, "cut clean", start=torch.zeros(1, 16, 1, 4, 8))
    made = replace(made, project="started")
    assert events(made, tmp_path)[4]["read_frames"] == [0]
