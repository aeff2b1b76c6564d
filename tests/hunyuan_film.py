"""Small HunyuanVideo films on tiny real models."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from film import Film, prompt, render
from torch import Tensor, nn

from longreel.memory.config import MemoryConfig
from longreel.memory.positions import PositionPolicy
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH, TinyHunyuanSpec, build_tiny_hunyuan, new_hunyuan

SPEC = TinyHunyuanSpec(width=256, double_layers=2, single_layers=2, seed=3)
ANCHORED = PositionPolicy.ANCHORED
LIVELY = 6.0
FULL = MemoryConfig(window_frames=None, sink_frames=0, positions=ANCHORED)


def drawn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively_network(spec: TinyHunyuanSpec) -> nn.Module:
    """A fresh network passes on what it was given; in this one the layers have their say, so that what they read matters."""
    network = new_hunyuan(spec)
    for name, weight in network.named_parameters():
        if "mod" in name:
            weight.data.mul_(LIVELY)
    return network


def lively_hunyuan(spec: TinyHunyuanSpec) -> ModelPatcher:
    """The same as the host loads it."""
    return build_tiny_hunyuan(weights=lively_network(spec).state_dict())


def words(seed: int, count: int = 7, **extras: Any) -> list[Any]:
    """A CONDITIONING as HunyuanVideo's text encoders give it: a vector for each word and one for all."""
    ((vectors, _),) = prompt(seed, count)
    return [[vectors, {"pooled_output": drawn(1000 + seed, 1, CLIP_WIDTH), **extras}]]


def hunyuan_film(model: ModelPatcher, *args: Any, **settings: Any) -> Film:
    """`render` with prompts that this family reads, and everything remembered where nothing else is said."""
    own = {"config": FULL, "negative": words(99, 3), "prompts": (words(0), words(1)), "sigmas": (1.0, 0.8333, 0.0)}
    return render(model, *args, **{**own, **settings})
