"""Short hashes by which a render recognises the model, prompts and pictures it was made with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType
from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

SAMPLE_VALUES = 64
SAMPLE_TENSORS = 16
DEPTH = 8
PLAIN = (int, float, str, bool)


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
    How far functions and objects can be told apart stands at `described`.
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
    digest.update(described([patcher.object_patches, patcher.wrappers, patcher.model_options]).encode())
    return digest.hexdigest()


def described(value: Any, depth: int = DEPTH) -> str:
    """A text that is the same for equal settings.

    Values are told as they are, functions by name and by what they close over, host modules and dataclasses by their
    plain values. Of other objects only the type is told: they may count calls, and would never be the same twice.
    """
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = sorted((repr(key), described(entry, depth - 1)) for key, entry in value.items())
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(described(entry, depth - 1) for entry in value) + "]"
    if isinstance(value, (*PLAIN, torch.dtype, type(None))):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_fingerprint(value)
    if isinstance(value, MethodType):
        return described([value.__func__, value.__self__], depth - 1)
    if isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or ()]
        return f"{value.__module__}.{value.__qualname__}{described(inside, depth - 1)}"
    plain: dict[str, Any] = {}
    if isinstance(value, nn.Module):
        plain = {key: entry for key, entry in vars(value).items() if isinstance(entry, PLAIN)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return f"{type(value).__module__}.{type(value).__qualname__}{described(plain, depth - 1)}"


def _original_weights(patcher: ModelPatcher) -> Mapping[str, Tensor]:
    """The weights as they were loaded.

    A quantised weight under a LoRA is read as the host computes with it: merging changes its scale.
    """
    patched = tuple(patcher.patches)
    state = patcher.model.state_dict()
    weights: dict[str, Tensor] = {key: weight for key, weight in state.items() if not key.startswith(patched)}
    for key in patched:
        kept = patcher.backup.get(key)
        weights[key] = comfy.utils.get_attr(patcher.model, key) if kept is None else kept.weight
    return weights


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
