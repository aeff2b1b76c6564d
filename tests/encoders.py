"""Tiny memory encoders with random weights, through their files, for films in the real host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned, prompt
from torch import Tensor

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.encoder_file import save_encoder
from longreel.memory.encoder_spec import EncoderSpec, Modulation, Rate
from longreel.memory.history_session import Reading
from longreel.memory.training.initialise import initialise_encoder
from longreel.nodes.film import Film
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.encoder_model import LoadedEncoder, load_encoder
from longreel.nodes.host.keys import OVERRIDE

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
OWN = 3 * 4 * 8 // 4  # tokens of a chunk of `three_shots`
FRAME = OWN // 3
LIVELY = 6.0
ENCODER = EncoderSpec(width=128, stages=(8, 16), heads=2, rate=Rate(2, 2, 2), modulation=Modulation.CLEAN, base="tiny")


def encoders_in(folder: Path) -> Callable[..., LoadedEncoder]:
    """Writes an encoder with the changes that it is given, and loads it as the node does; `silent` cross-attention adds nothing yet."""

    def load(
        config: HistoryConfig | None = None,
        dtype: torch.dtype | None = None,
        name: str = "encoder",
        silent: bool = False,
        **changes: Any,
    ) -> LoadedEncoder:
        spec = dataclasses.replace(ENCODER, **changes)
        encoder = MemoryEncoder(spec).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        initialise_encoder(encoder, generator)
        if isinstance(encoder.high, HighResolutionBranch):
            encoder.high.project.weight.normal_(generator=generator)
        if encoder.cross is not None and not silent:
            for layer in encoder.cross.layers:
                layer.project.weight.normal_(generator=generator)
        path = folder / f"{name}.safetensors"
        save_encoder(path, spec, encoder.state_dict())
        return load_encoder(path, config or HistoryConfig(), dtype)

    return load


def encoders_read(folder: Path, reading: Reading) -> Callable[..., LoadedEncoder]:
    """The same for encoders whose tokens read their own prompts and are read so often, beside a window of one frame."""
    load = encoders_in(folder)

    def read(config: HistoryConfig | None = None, **changes: Any) -> LoadedEncoder:
        loaded = load(config or HistoryConfig(1), **{"own_prompts": True, **changes})
        return dataclasses.replace(loaded, reading=reading)

    return read


def under(model: ModelPatcher, mask_of: Callable[[int], Tensor]) -> ModelPatcher:
    """A model whose self-attention over frames and history, of so many tokens, is told this mask beside its own."""

    def masked(
        attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, mask: Tensor | None = None, **rest: Any
    ) -> Tensor:
        if k.shape[1] == q.shape[1] > OWN:
            hidden = mask_of(q.shape[1])
            mask = hidden if mask is None else mask + hidden
        made: Tensor = attention(q, k, v, *args, mask=mask, **rest)
        return made

    clone = model.clone()
    clone.model_options["transformer_options"][OVERRIDE] = masked
    return clone


def lively_wan() -> ModelPatcher:
    """A fresh network passes on what it was given; in this one the layers have their say, so that what history sees matters."""
    weights = host_modules().new_wan(SPEC).state_dict()
    return build_tiny_wan(weights={key: LIVELY * weight if "mod" in key else weight for key, weight in weights.items()})


def three_shots(model: ModelPatcher, encoder: LoadedEncoder, count: int = 7, second: str = "", **changes: Any) -> Film:
    """Three shots of a chunk each, two steps a chunk; the second shot's prompt has `count` words and begins as `second` says."""
    prompts = (prompt(0), prompt(1, count), prompt(2, 4))
    board = planned(f"[0.75s] a beach\n[0.75s{second}] a town\n[0.75s] a forest", prompts=prompts)
    levels = torch.tensor([1.0, 0.8333, 0.0])
    return film_on_disk(model, board, **{"encoder": encoder, "sigmas": levels, **changes})


def batched(film: Film) -> Film:
    """The film with a negative prompt of as many words as the first shots have, which the host then puts into one batch with them."""
    return dataclasses.replace(film, storyboard=dataclasses.replace(film.storyboard, negative=prompt(99)))


def one_after_the_other(model: ModelPatcher) -> ModelPatcher:
    """A model whose prompt and negative the host never puts into one batch."""

    def apart(args: dict[str, Any]) -> list[Tensor]:
        network, x, sigma, options = args["model"], args["input"], args["sigma"], args["model_options"]
        prompt, negative = args["conds"]
        own, _ = comfy.samplers.calc_cond_batch(network, [prompt, None], x, sigma, options)
        _, other = comfy.samplers.calc_cond_batch(network, [None, negative], x, sigma, options)
        return [own, other]

    clone = model.clone()
    clone.set_model_sampler_calc_cond_batch_function(apart)
    return clone
