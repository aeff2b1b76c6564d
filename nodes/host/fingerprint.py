"""Short hashes by which a render recognises the model, prompts and pictures it was made with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import comfy.hooks
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .keys import SETTINGS

SAMPLE_VALUES = 64
SAMPLE_TENSORS = 16
DEPTH = 8
PLAIN = (int, float, str, bool)
TOLD_AS_THEY_ARE = (*PLAIN, bytes, range, slice, torch.dtype, torch.device, Enum, type(None))


def conditioning_fingerprint(conditioning: Iterable[Any]) -> str:
    """Hash of a CONDITIONING: its text vectors, every value, and what else it carries."""
    digest = hashlib.sha256()
    for vectors, extras in conditioning:
        _add_tensor(digest, vectors)
        digest.update(described(extras).encode())
    return digest.hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Hash of every value of a tensor."""
    digest = hashlib.sha256()
    _add_tensor(digest, tensor)
    return digest.hexdigest()


def model_fingerprint(patcher: ModelPatcher) -> str:
    """Hash of a model's classes, of samples of its weights, and of the LoRAs, patches and wrappers on it.

    Weights are taken as they were loaded, so the hash does not depend on whether a LoRA is merged at the moment.
    How far functions and objects can be told apart stands at `described`. What memory is to do is left out: a film tells it
    itself.
    """
    digest = hashlib.sha256(type(patcher.model).__name__.encode())
    weights = _original_weights(patcher)
    matrices = [key for key in sorted(weights) if weights[key].ndim > 1]
    for key in _spread(matrices or sorted(weights)):
        digest.update(key.encode())
        _add_sample(digest, weights[key])
    for key in sorted(patcher.patches):
        digest.update(key.encode())
        _add_patches(digest, patcher.patches[key])
    options = {**patcher.model_options["transformer_options"]}
    options.pop(SETTINGS, None)
    rest = {**patcher.model_options, "transformer_options": options}
    digest.update(described([patcher.object_patches, patcher.wrappers, rest]).encode())
    return digest.hexdigest()


def described(value: Any, depth: int = DEPTH) -> str:
    """A text that is the same for equal settings.

    Values are told as they are, functions by name and by what they are bound to, host modules and dataclasses by their
    plain values, LoRAs of a prompt by weights and strength. Of other objects only the type is told: they may count
    calls, and would never be the same twice.
    """
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = sorted((repr(key), described(entry, depth - 1)) for key, entry in value.items())
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(described(entry, depth - 1) for entry in value) + "]"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(described(entry, depth - 1) for entry in value)) + "}"
    if isinstance(value, TOLD_AS_THEY_ARE):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_fingerprint(value)
    if isinstance(value, MethodType):
        return described([value.__func__, value.__self__], depth - 1)
    if isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or ()]
        bound = [*inside, *(value.__defaults__ or ()), value.__kwdefaults__]
        return f"{value.__module__}.{value.__qualname__}{described(bound, depth - 1)}"
    if isinstance(value, partial):
        return described([value.func, value.args, value.keywords], depth - 1)
    if isinstance(value, comfy.hooks.HookGroup):
        return described([_hook_settings(hook) for hook in value.hooks], depth - 1)
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


def _hook_settings(hook: comfy.hooks.Hook) -> dict[str, Any]:
    """What a hook of a prompt does, without what it keeps while it runs."""
    numbers = {key: entry for key, entry in vars(hook).items() if type(entry) in (int, float, str)}
    schedule = [(frame.strength, frame.start_percent, frame.guarantee_steps) for frame in hook.hook_keyframe.keyframes]
    what = {name: getattr(hook, name, None) for name in ("weights", "transformers_dict")}
    return {**numbers, **what, "type": type(hook).__name__, "schedule": schedule}


def _add_patches(digest: Any, patches: Any) -> None:
    """Weight patches: numbers, tensors, adapters that hold `weights`, and tuples and lists of all these."""
    patches = getattr(patches, "weights", patches)
    if isinstance(patches, Tensor):
        _add_sample(digest, patches)
    elif isinstance(patches, (tuple, list)):
        for part in patches:
            _add_patches(digest, part)
    elif isinstance(patches, TOLD_AS_THEY_ARE):
        digest.update(repr(patches).encode())


def _add_tensor(digest: Any, tensor: Tensor) -> None:
    digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def _add_sample(digest: Any, tensor: Tensor) -> None:
    digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, flat.numel() // SAMPLE_VALUES)][:SAMPLE_VALUES]
    digest.update(sample.cpu().contiguous().view(torch.uint8).numpy().tobytes())
