"""Matrices of a small model kept in 8 bits, so that its files stay small: whole numbers and one scale a row."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST = 127
_SCALE = ".eight_bit_scale"


def in_eight_bits(weights: Mapping[str, Tensor], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """`weights` with every matrix whose name begins with one of `parts` as int8 `[N, K]` beside its scale `[N, 1]`."""
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not (name.startswith(parts) and tensor.ndim == 2):
            kept[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
        kept[name] = (tensor.float() / scale).round().to(torch.int8)
        kept[name + _SCALE] = scale
    return kept


def out_of_eight_bits(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `in_eight_bits` was given, rounded to its 255 levels a row, in bfloat16; other weights as they are."""
    return {
        name: tensor if (scale := weights.get(name + _SCALE)) is None else (tensor.float() * scale).to(torch.bfloat16)
        for name, tensor in weights.items()
        if not name.endswith(_SCALE)
    }
