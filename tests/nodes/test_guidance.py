"""Guidance keeps one history for the prompt and one for the negative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import prompt, render
from numerics import GUIDANCE_ERROR, relative_error

from longreel.memory.chunks import plan_frames
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan


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
