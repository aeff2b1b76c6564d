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


def model_fingerprint(patcher: ModelPatcher) -> str:
    """Hash of a model's classes, of samples of its weights, and of the LoRAs, patches and wrappers on it.

    Weights are taken as they were loaded, so the hash does not depend on whether a LoRA is merged at the moment.
    Functions are known by name and objects by their plain values; what else they do cannot be seen.
    """
    digest = hashlib.sha256(type(patcher.model).__name__.encode())
    weights = _original_weights(patcher)
    matrices = [key for key in sorted(weights) if weights[key].ndim > 1]
    for key in _spread(matrices or sorted(weights)):
        digest.update(key.encode())
        _add_sample(digest, weights[key])
    for key in sorted(patcher.patches):
        digest.update(key.encode())
        for patch in patcher.patches[key]:
            digest.update(repr((patch[0], patch[2])).encode())
            for tensor in _tensors(patch[1]):
                _add_sample(digest, tensor)
    digest.update(_described([patcher.object_patches, patcher.wrappers, patcher.model_options]).encode())
    return digest.hexdigest()


def _described(value: Any) -> str:
    """A text that is the same for equal settings: values as they are, functions and objects by name and plain values."""
    if isinstance(value, Mapping):
        pairs = sorted((repr(key), _described(entry)) for key, entry in value.items())
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_described(entry) for entry in value) + "]"
    if isinstance(value, (int, float, str, bool, torch.dtype, type(None))):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_fingerprint(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    attributes = getattr(value, "__dict__", {})
    plain = {key: entry for key, entry in attributes.items() if isinstance(entry, (int, float, str, bool))}
    return f"{named.__module__}.{named.__qualname__}{_described(plain)}"


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
