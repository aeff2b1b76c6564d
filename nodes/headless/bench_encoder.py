"""The tiny model as an ordinary one that remembers through a memory encoder, for the recall bench. Import it after `boot_host`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file
from torch import Tensor

from ...memory.encoded_history import HistoryConfig
from ...memory.encoder_file import read_spec
from ...memory.encoder_spec import EncoderSpec, Rate, smaller_frames
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
from .encoder_files import ENCODER_FILE, LORA_FILE, EncoderOnDisk, encoders_in

FRAMES_PER_SECOND = FPS // FRAME_STRIDE
_TIMED, _TIMED_FRAMES = 9, 24
_ALL = 1_000_000  # frames
_COSTS = ("tokens_per_second", "milliseconds_per_second", "bytes")


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """A row of the bench: an ordinary model beside an encoder, and how much of the film it reads whole."""

    name: str
    fingerprint: str
    model: ModelPatcher
    encoder: LoadedEncoder

    def remembering(self, vae: comfy.sd.VAE | None = None) -> ModelPatcher:
        """The model with this memory; `vae` is for encoders that look at pictures."""
        return attach_encoder(self.model, self.encoder, vae)

    def described(self) -> dict[str, Any]:
        """What changes a measured number, as JSON."""
        config = self.encoder.config
        told = {"encoder": self.fingerprint, "spec": self.encoder.spec.to_json(), "window_frames": config.window_frames}
        beside = [
            {"spec": each.spec.to_json(), "longest_frames": each.config.longest_frames} for each in self.encoder.all[1:]
        ]
        return {**told, **self.encoder.reading.described, **({"beside": beside} if beside else {})}

    def cost(self, size: tuple[int, int]) -> dict[str, float]:
        """Tokens of a second of history, milliseconds to encode it, and bytes, of all its encoders.

        One that reaches a few seconds back is counted as long as it tells. What the VAE takes for a smaller video is not counted.
        """
        costs = [_cost(self.model, each, size) for each in self.encoder.all]
        return {name: sum(cost[name] for cost in costs) for name in _COSTS}


def _cost(model: ModelPatcher, encoder: LoadedEncoder, size: tuple[int, int]) -> dict[str, float]:
    module, spec, network = encoder.patcher.model, encoder.spec, model.model.diffusion_model
    embed = partial(family_of(model, encoder).embed, network, dtype=torch.float32)
    latents = torch.randn(1, spec.channels, _TIMED_FRAMES, *size, generator=torch.Generator().manual_seed(0))
    low = None
    if isinstance(spec, EncoderSpec) and spec.looks_at_pictures:
        low = torch.randn(1, spec.channels, *spec.low_size(*latents.shape[2:]))
    seconds = []
    with torch.inference_mode():
        for _ in range(_TIMED):
            started = time.perf_counter()
            tokens: Tensor = module(latents, embed, low)
            seconds.append(time.perf_counter() - started)
    film = _TIMED_FRAMES / FRAMES_PER_SECOND
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    found = (tokens.shape[1] / film, 1000 * sorted(seconds)[_TIMED // 2] / film, weights)
    return dict(zip(_COSTS, found, strict=True))


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
        files = encoders_in(folder) if folder else [EncoderOnDisk(TINY_ENCODER, read_spec(TINY_ENCODER))]
        lora = folder / LORA_FILE if folder else ENCODER_LORA
        if not files or not lora.is_file():
            raise ValueError(
                f"--encoder needs a folder with {ENCODER_FILE} and {LORA_FILE}, got {folder}. Name one that `longreel train "
                "encoder finetune` wrote."
            )
        adapted, loaded = with_lora(base, lora), _loaded(files)
        reader = family_of(base, loaded)
        width, _ = reader.shape(base.model.diffusion_model)
        for path, spec, _ in files:
            if spec.width != width or (spec.base in BASES.values() and spec.base != BASES[family]):
                raise ValueError(
                    f"{path} is of width {spec.width} and made for {spec.base}, the model of {width} and {BASES[family]}. Take "
                    "one trained for it."
                )
        digest = weights_fingerprint(load_file(lora), *(each.patcher.model.state_dict() for each in loaded.all))
        alone, beside_window, once, committed = encoder_policies(name)
        made.append(EncodedModel(alone, digest, adapted, loaded))
        made.append(EncodedModel(beside_window, digest, adapted, replace(loaded, config=HistoryConfig(window))))
        if reader.reads_once and all(reads_once(each.spec) for each in loaded.all):
            for row, how in ((once, Reading.ONCE_A_CHUNK), (committed, Reading.ONCE_A_FILM)):
                made.append(EncodedModel(row, digest, adapted, replace(loaded, reading=how)))
    return tuple(made)


def _loaded(files: list[EncoderOnDisk]) -> LoadedEncoder:
    """These encoders as Memory Encoder Loaders in a chain hand them over."""
    (path, _, longest), *beside = files
    loaded = load_encoder(path, HistoryConfig(0, longest), torch.float32)
    return replace(loaded, beside=_loaded(beside)) if beside else loaded
