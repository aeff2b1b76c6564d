"""Guidance keeps one history for the prompt and one for the negative, and the text of each for a shot."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import FULL, prompt, render
from numerics import GUIDANCE_ERROR, relative_error

from longreel.memory.chunks import plan_chunks, plan_frames
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.guider import FilmGuider


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(TinyWanSpec(width=256, layers=2, ffn=512, seed=3))


def said_twice(conditioning: list[Any]) -> list[Any]:
    """The same text twice over: attention averages over it, so the model answers as to the text once."""
    return [[torch.cat([conditioning[0][0]] * 2, dim=1), {}]]


@pytest.mark.parametrize("negative", [prompt(0), said_twice(prompt(0))], ids=["one batch", "one after the other"])
def test_guidance_by_the_prompt_itself_changes_nothing(model: ModelPatcher, negative: list[Any]) -> None:
    plan = plan_frames(12, 3)
    plain = render(model, plan, prompts=(prompt(0),))
    guided = render(model, plan, prompts=(prompt(0),), negative=negative, cfg=5.0)
    assert relative_error(guided.latents, plain.latents) < GUIDANCE_ERROR


def test_guidance_needs_twice_the_memory(model: ModelPatcher) -> None:
    plain, guided = (render(model, cfg=cfg).peak_bytes for cfg in (1.0, 5.0))
    assert guided == 2 * plain


def test_the_text_of_a_shot_is_projected_once(model: ModelPatcher) -> None:
    calls: list[int] = []
    projection = model.model.diffusion_model.blocks[0].cross_attn.k
    handle = projection.register_forward_hook(lambda *args: calls.append(1))
    try:
        render(model, plan_chunks((2, 2, 1), 3), prompts=tuple(prompt(seed) for seed in (0, 1, 0)))
        once_a_shot = len(calls)
        render(model, plan_chunks((2, 2, 1), 3), prompts=tuple(prompt(seed) for seed in (0, 1, 0)), cfg=5.0)
    finally:
        handle.remove()
    assert once_a_shot == 3
    assert len(calls) - once_a_shot == 6


def test_a_prompt_under_hooks_is_projected_at_every_step(model: ModelPatcher) -> None:
    hooked = FilmGuider(model, [[[prompt(0)[0][0], {"hooks": comfy.hooks.HookGroup()}]]], prompt(99), 1.0)
    assert hooked.text_tokens == 0


class OtherTextAttention:
    """What another pack puts in the place of a layer's cross-attention."""

    def __init__(self, original: Any) -> None:
        self.original, self.calls = original, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.original(*args, **kwargs)


def test_another_packs_cross_attention_keeps_its_place_before_and_after_the_memory(model: ModelPatcher) -> None:
    place = "diffusion_model.blocks.0.cross_attn.forward"
    plain = render(model, prompts=(prompt(0),))
    before, after = model.clone(), attach_memory(model, FULL)
    others = [OtherTextAttention(model.model.diffusion_model.blocks[0].cross_attn.forward) for _ in range(2)]
    before.add_object_patch(place, others[0])
    after.add_object_patch(place, others[1])
    for patched, other in zip((attach_memory(before, FULL), after), others, strict=True):
        film = render(patched, prompts=(prompt(0),), attached=True)
        assert other.calls > 0
        assert torch.equal(film.latents, plain.latents)
