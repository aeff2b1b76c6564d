"""Short hashes by which a render recognises the model, prompts and pictures it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

SAMPLE_VALUES = 64
SAMPLE_TENSORS = 16


def conditioning_fingerprint(conditioning: Iterable[Any]) -> str:
    """Hash of a CONDITIONING: its text vectors, every value, and the names of what else it carries."""
    digest = hashlib.sha256()
    for vectors, extras in conditioning:
        _add_tensor(digest, vectors)
        digest.update(repr(sorted(extras)).encode())
    return digest.hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Hash of every value of a tensor."""
    digest = hashlib.sha256()
    _add_tensor(digest, tensor)
    return digest.hexdigest()


def weights_fingerprint(patcher: ModelPatcher) -> str:
    """Hash of a model's classes, of samples of its weights, and of the LoRAs and patches on it.

    Weights are taken as they were loaded, so the hash does not depend on whether a LoRA is merged at the moment.
    """
    digest = hashlib.sha256(type(patcher.model).__name__.encode())
    weights = _original_weights(patcher)
    for key in _spread(sorted(weights)):
        digest.update(key.encode())
        _add_sample(digest, weights[key])
    for key in sorted(patcher.patches):
        digest.update(key.encode())
        for patch in patcher.patches[key]:
            digest.update(repr((patch[0], patch[2])).encode())
            for tensor in _tensors(patch[1]):
                _add_sample(digest, tensor)
    options = patcher.model_options.get("transformer_options", {})
    digest.update(repr((sorted(options.get("patches", {})), options.get("rope_options"))).encode())
    digest.update(repr(sorted(patcher.object_patches)).encode())
    return digest.hexdigest()


def _original_weights(patcher: ModelPatcher) -> Mapping[str, Tensor]:
    merged = {key: kept.weight for key, kept in patcher.backup.items()}
    return {**patcher.model.state_dict(), **merged}


def _spread(keys: list[str]) -> list[str]:
    """Some of the keys, evenly spread from the first to the last."""
    step = max(1, len(keys) // SAMPLE_TENSORS)
    return keys[::step]


def _tensors(patch: Any) -> list[Tensor]:
    """The tensors of a weight patch: the host keeps them in an adapter's `weights` or in a plain tuple."""
    values = getattr(patch, "weights", patch)
    values = values if isinstance(values, (tuple, list)) else [values]
    return [value for value in values if isinstance(value, Tensor)]


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _add_sample(digest: Any, tensor: Tensor) -> None:
    digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, flat.numel() // SAMPLE_VALUES)][:SAMPLE_VALUES]
    digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
