"""Small HunyuanVideo films on tiny real models."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from film import Film, prompt, render
from torch import Tensor

from longreel.memory.config import MemoryConfig
from longreel.memory.positions import PositionPolicy
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH, TinyHunyuanSpec

SPEC = TinyHunyuanSpec(width=256, double_layers=2, single_layers=2, seed=3)
ANCHORED = PositionPolicy.ANCHORED
FULL = MemoryConfig(window_frames=None, sink_frames=0, positions=ANCHORED)


def drawn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(seed: int, count: int = 7, **extras: Any) -> list[Any]:
    """A CONDITIONING as HunyuanVideo's text encoders give it: a vector for each word and one for all."""
    ((vectors, _),) = prompt(seed, count)
    return [[vectors, {"pooled_output": drawn(1000 + seed, 1, CLIP_WIDTH), **extras}]]


def hunyuan_film(model: ModelPatcher, *args: Any, **settings: Any) -> Film:
    """`render` with prompts that this family reads, and everything remembered where nothing else is said."""
    own = {"config": FULL, "negative": words(99, 3), "prompts": (words(0), words(1)), "sigmas": (1.0, 0.8333, 0.0)}
    return render(model, *args, **{**own, **settings})
