"""Trained weights as they ship: safetensors in bf16, some matrices in 8 bits, in pieces that any host of code accepts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..whole_file import explained, whole_file
from .eight_bit import in_eight_bits

SHARD_BYTES = 15 * 1024 * 1024
EIGHT_BIT = {"hunyuan": ("txt_in.", "vector_in.")}
"""What is kept in 8 bits of a part: what HunyuanVideo makes of words is a third of it, and its files would be larger than others."""


def save_weights(weights: Mapping[str, Tensor], folder: Path, part: str, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write `tiny_<part>.safetensors`, or numbered shards of at most `shard_bytes` each; returns what was written.

    Older files of the same part are removed. Raises ProjectError where the disk refuses.
    """
    halves = {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    kept = in_eight_bits(halves, EIGHT_BIT.get(part, ()))
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in kept.items():
        size = tensor.numel() * tensor.element_size()
        if filled + size > shard_bytes and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += size
    with explained(f"write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"tiny_{part}*.safetensors"):
            old.unlink()
    paths = []
    for number, shard in enumerate(shards, start=1):
        suffix = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        paths.append(folder / f"tiny_{part}{suffix}.safetensors")
        with whole_file(paths[-1]) as path:
            save_file(shard, path)
    return paths


def weights_fingerprint(*parts: dict[str, Tensor]) -> str:
    """Sixteen digits that stand for these weights."""
    digest = hashlib.sha256()
    for weights in parts:
        for name in sorted(weights):
            digest.update(name.encode())
            digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
