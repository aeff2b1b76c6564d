"""Where the gates of a model come from, and how they travel with its clones."""

from __future__ import annotations

from pathlib import Path

from comfy.model_patcher import ModelPatcher
from safetensors import safe_open

from ...memory.gates import Gates, find_gates, gate_keys
from .keys import GATES

SUFFIXES = (".safetensors", ".sft")


def bring_gates(model: ModelPatcher, gates: Gates) -> None:
    """Give a model that was not loaded from a file its gates."""
    model.set_attachments(GATES, gates)


def brought_gates(model: ModelPatcher) -> Gates | None:
    """The gates that a model brings, or None: given to it, or else in the checkpoint that it was loaded from.

    The host drops weights that it does not know, but a patcher remembers how it was loaded; only the gates are read
    again. Raises ValueError for gates that are broken.
    """
    given: Gates | None = model.attachments.get(GATES)
    if given is not None:
        return given
    checkpoint = _checkpoint(model)
    if checkpoint is None:
        return None
    with safe_open(checkpoint, framework="pt") as file:
        return find_gates({key: file.get_tensor(key) for key in gate_keys(file.keys())})


def _checkpoint(model: ModelPatcher) -> Path | None:
    """The safetensors file that a loader of the host made this model from, where it still is."""
    if model.cached_patcher_init is None:
        return None
    named = model.cached_patcher_init[1][0]
    if not isinstance(named, str) or Path(named).suffix not in SUFFIXES or not Path(named).is_file():
        return None
    return Path(named)


def use_gates(model: ModelPatcher, gates: Gates | None) -> None:
    """Let this clone mix its branches by these gates, or read with one softmax."""
    options = model.model_options["transformer_options"]
    options.pop(GATES, None)
    if gates is not None:
        options[GATES] = gates


def used_gates(model: ModelPatcher) -> Gates | None:
    """The gates that `use_gates` left on the model, or None."""
    gates: Gates | None = model.model_options["transformer_options"].get(GATES)
    return gates
