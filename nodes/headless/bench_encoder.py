"""The tiny model as an ordinary one that remembers through a memory encoder, for the recall bench. Import it after `boot_host`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

from ...memory.encoded_history import HistoryConfig
from ...memory.encoder_spec import Rate, smaller_frames
from ...memory.history_session import Reading
from ...memory.training.encoder_family import Family
from ...memory.training.encoder_settings import BASES
from ...memory.training.export import weights_fingerprint
from ...memory.training.recall_policies import UNTRAINED, WHOLE, WINDOW_CHUNKS, encoder_policies
from ...memory.training.storyworld import FPS, FRAME_STRIDE
from ..host.build import ENCODER_LORA, TINY_ENCODER, build_tiny_wan, with_lora
from ..host.build_hunyuan import build_tiny_hunyuan
from ..host.encoder_check import reads_once
from ..host.encoder_model import LoadedEncoder, attach_encoder, encoder_of, family_of, load_encoder
from .train_encoder import ENCODER_FILE, LORA_FILE

FRAMES_PER_SECOND = FPS // FRAME_STRIDE
_TIMED, _TIMED_FRAMES = 9, 24
_ALL = 1_000_000  # frames


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A row of the bench: an ordinary model beside an encoder, and how much of the film it reads whole."""

    name: str
    fingerprint: str
    model: ModelPatcher
    encoder: LoadedEncoder

    def remembering(self) -> ModelPatcher:
        """The model with this memory."""
        return attach_encoder(self.model, self.encoder)

    def described(self) -> dict[str, Any]:
        """What changes a measured number, as JSON."""
        config = self.encoder.config
        told = {"encoder": self.fingerprint, "spec": self.encoder.spec.to_json(), "window_frames": config.window_frames}
        return {**told, **self.encoder.reading.described}

    def cost(self, size: tuple[int, int]) -> dict[str, float]:
        """Tokens of a second of history, milliseconds to encode it, and bytes of the encoder."""
        module, spec, network = self.encoder.patcher.model, self.encoder.spec, self.model.model.diffusion_model
        embed = partial(family_of(self.model, self.encoder).embed, network, dtype=torch.float32)
        latents = torch.randn(1, spec.channels, _TIMED_FRAMES, *size, generator=torch.Generator().manual_seed(0))
        seconds = []
        with torch.inference_mode():
            for _ in range(_TIMED):
                started = time.perf_counter()
                tokens: Tensor = module(latents, embed)
                seconds.append(time.perf_counter() - started)
        film = _TIMED_FRAMES / FRAMES_PER_SECOND
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        return {
            "tokens_per_second": tokens.shape[1] / film,
            "milliseconds_per_second": 1000 * sorted(seconds)[_TIMED // 2] / film,
            "bytes": weights,
        }


def encoded_models(
    folders: Mapping[str, Path | None], weights: Mapping[str, Tensor], chunk_frames: int, family: Family = "wan"
) -> tuple[EncodedModel, ...]:
    """The rows of encoders that `longreel train encoder` left in `folders`, by name, and those without training.

    None in place of a folder is the encoder that ships, for Wan.

    Raises ValueError for a folder without an encoder, or with one of another model.
    """
    base = build_tiny_wan(weights=weights) if family == "wan" else build_tiny_hunyuan(weights=weights)
    window = WINDOW_CHUNKS * chunk_frames
    made = []
    for own_prompts, name in zip((True, False), WHOLE, strict=True):
        spec = replace(smaller_frames(Rate(2, 2, 2)), own_prompts=own_prompts, proportional=False)
        # Everything is whole, so the encoder is asked for nothing: no token of it fits into the newest frame.
        made.append(EncodedModel(name, "none", base, encoder_of(spec, {}, HistoryConfig(_ALL, 1))))
    for name, rate in UNTRAINED.items():
        made.append(EncodedModel(name, "none", base, encoder_of(smaller_frames(rate), {}, HistoryConfig(0))))
    for name, folder in folders.items():
        path, lora = (folder / ENCODER_FILE, folder / LORA_FILE) if folder else (TINY_ENCODER, ENCODER_LORA)
        if not path.is_file() or not lora.is_file():
            raise ValueError(
                f"--encoder needs a folder with {ENCODER_FILE} and {LORA_FILE}, got {folder}. Name one that `longreel train "
                "encoder finetune` wrote."
            )
        adapted, loaded = with_lora(base, lora), load_encoder(path, HistoryConfig(0), torch.float32)
        reader, made_for = family_of(base, loaded), loaded.spec
        width, _ = reader.shape(base.model.diffusion_model)
        if made_for.width != width or (made_for.base in BASES.values() and made_for.base != BASES[family]):
            raise ValueError(
                f"{path} is of width {made_for.width} and made for {made_for.base}, the model of {width} and {BASES[family]}. Take one "
                "trained for it."
            )
        digest = weights_fingerprint(load_file(lora), loaded.patcher.model.state_dict())
        alone, beside_window, once, committed = encoder_policies(name)
        made.append(EncodedModel(alone, digest, adapted, loaded))
        made.append(EncodedModel(beside_window, digest, adapted, replace(loaded, config=HistoryConfig(window))))
        if reader.reads_once and reads_once(made_for):
            for row, how in ((once, Reading.ONCE_A_CHUNK), (committed, Reading.ONCE_A_FILM)):
                made.append(EncodedModel(row, digest, adapted, replace(loaded, reading=how)))
    return tuple(made)
