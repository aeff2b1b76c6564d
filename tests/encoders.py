"""Tiny memory encoders with random weights, through their files, for films in the real host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.encoder_file import save_encoder
from longreel.memory.encoder_spec import EncoderSpec, Modulation, Rate
from longreel.memory.training.initialise import initialise_encoder
from longreel.nodes.host.build import TinyWanSpec
from longreel.nodes.host.encoder_model import LoadedEncoder, load_encoder

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
ENCODER = EncoderSpec(width=128, stages=(8, 16), heads=2, rate=Rate(2, 2, 2), modulation=Modulation.CLEAN, base="tiny")


def encoders_in(folder: Path) -> Callable[..., LoadedEncoder]:
    """Writes an encoder with the changes that it is given, and loads it as the node does."""

    def load(
        config: HistoryConfig | None = None, dtype: torch.dtype | None = None, name: str = "encoder", **changes: Any
    ) -> LoadedEncoder:
        spec = dataclasses.replace(ENCODER, **changes)
        encoder = MemoryEncoder(spec).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        initialise_encoder(encoder, generator)
        if isinstance(encoder.high, HighResolutionBranch):
            encoder.high.project.weight.normal_(generator=generator)
        path = folder / f"{name}.safetensors"
        save_encoder(path, spec, encoder.state_dict())
        return load_encoder(path, config or HistoryConfig(), dtype)

    return load
