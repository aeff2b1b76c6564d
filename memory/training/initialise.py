"""Seeded starting weights for tiny host models; the modules come from outside, the host is never imported."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import LargePatchifier, MemoryEncoder
from ..encoder_spec import Rate

TRUNK_GAIN = 0.6
"""Gain of every matrix that does not carry text; with 1.0 the prompt is drowned by the trunk."""
GATE_GAIN = 0.1
"""Gain of what modulates and gates the layers of a HunyuanVideo; Wan has learned offsets instead."""
RESIDUAL_GAIN = 0.1
"""Gain of the last convolution of a VAE residual branch, so that a fresh VAE starts close to its skip path."""


def _normal_(weight: Tensor, gain: float, generator: torch.Generator) -> None:
    fan_in = weight[0].numel()
    weight.normal_(0.0, gain / math.sqrt(fan_in), generator=generator)


@torch.no_grad()
def initialise_wan(model: Any, generator: torch.Generator) -> None:
    """Fill a host `WanModel` in place: text and cross-attention at 1/sqrt(fan-in), the rest at 0.6 of it."""
    for name, parameter in model.named_parameters():
        if name.endswith("modulation"):
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        elif parameter.ndim >= 2:
            carries_text = "text_embedding" in name or "cross_attn" in name
            _normal_(parameter, 1.0 if carries_text else TRUNK_GAIN, generator)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    _pass_noise_through(model.patch_embedding.weight, model.head.head.weight, generator, channels_last=True)


def _pass_noise_through(embed: Tensor, head: Tensor, generator: torch.Generator, *, channels_last: bool) -> None:
    """Let a fresh model answer with what it was given: at high noise that is most of the flow it has to predict.

    The embedding `[D, C, 1, p, p]` is an isometry and the head `[p * p * C, D]`, or `[C * p * p, D]`, its transpose; the
    factor undoes the head's normalisation of unit noise.
    """
    width, numbers = embed.shape[0], embed[0].numel()
    tall = torch.randn(max(width, numbers), min(width, numbers), generator=generator)
    basis = torch.linalg.qr(tall).Q
    embed.copy_((basis if width >= numbers else basis.T).reshape(embed.shape))
    order = (2, 3, 4, 1, 0) if channels_last else (1, 2, 3, 4, 0)
    head.copy_(embed.permute(order).reshape(numbers, width) * math.sqrt(numbers / width))


@torch.no_grad()
def initialise_vae(vae: nn.Module, generator: torch.Generator) -> None:
    """Fill a host `WanVAE` in place: 1/sqrt(fan-in), residual branches nearly silent."""
    for name, parameter in vae.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("gamma"):
            parameter.fill_(1.0)
        else:
            _normal_(parameter, RESIDUAL_GAIN if name.endswith("residual.6.weight") else 1.0, generator)


@torch.no_grad()
def initialise_hunyuan(model: Any, generator: torch.Generator) -> None:
    """Fill a host `HunyuanVideo` in place: what carries text at 1/sqrt(fan-in), the rest at 0.6 of it.

    What modulates and gates is a tenth as large, so that a fresh model passes on what it was given.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            carries_text = name.startswith(("txt_in", "vector_in")) or ".txt_" in name
            modulates = "mod" in name or "adaLN" in name
            _normal_(parameter, GATE_GAIN if modulates else 1.0 if carries_text else TRUNK_GAIN, generator)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)
    _pass_noise_through(model.img_in.proj.weight, model.final_layer.linear.weight, generator, channels_last=False)


SILU_GAIN = 1.68
"""Gain that keeps the size of what goes through a SiLU."""


@torch.no_grad()
def initialise_encoder(encoder: MemoryEncoder, generator: torch.Generator, embedding: Any = None) -> None:
    """Fill a memory encoder in place: its high-resolution branch is silent at first, so it begins as the other one alone.

    A large patchifier begins as the same: as the model's patch `embedding` of averaged latents, where that is given.
    """
    if isinstance(encoder.high, LargePatchifier) and embedding is not None:
        _tile(encoder.high, embedding, encoder.spec.rate)
        return
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias") or name.endswith("project.weight"):
            parameter.zero_()
        elif parameter.ndim >= 2:
            gain = RESIDUAL_GAIN if name.endswith("out.weight") else SILU_GAIN if "convolutions" in name else 1.0
            _normal_(parameter, gain, generator)
        else:
            parameter.fill_(1.0)


def _tile(large: LargePatchifier, embedding: Any, rate: Rate) -> None:
    """Every weight of the model's embedding over all the latents that become one, shared out among them."""
    spread = embedding.weight.repeat_interleave(rate.frames, 2)
    spread = spread.repeat_interleave(rate.rows, 3).repeat_interleave(rate.columns, 4)
    large.patch.weight.copy_(spread / math.prod(rate))
    large.patch.bias.copy_(embedding.bias)
