"""Gates: weights by which a trained checkpoint mixes what it reads, token by token and head by head.

OmniMem reads in three branches, each with its own softmax: `compression` over the means of all pages, `selection` over
the pages that were chosen, `window` over the newest frames. Its output is the sum of the three, each times its gate.
DecMem leaves the window as it is and adds the selection times its gate. A gate is the sigmoid of a linear function of the
hidden state that queries, keys and values are made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor
from torch.nn.functional import linear

from .config import KVSpec

LARGEST_LOGIT = 10.0
FRESH_DEVIATION = 1e-3


class GateForm(Enum):
    """Whose branches are gated."""

    OMNIMEM = "omnimem"
    DECMEM = "decmem"

    @property
    def branches(self) -> tuple[str, ...]:
        """The gates of a head, in the order of the rows of the weights."""
        return ("compression", "selection", "window") if self is GateForm.OMNIMEM else ("selection",)


MODULES = {"g_proj": GateForm.OMNIMEM, "omnimem_gates": GateForm.OMNIMEM, "decmem_gates": GateForm.DECMEM}
"""What gates are called inside a layer's self-attention: by OmniMem's training code, and by ours."""
KEY = re.compile(r"(?:.*\.)?blocks\.(\d+)\.self_attn\.(" + "|".join(MODULES) + r")\.(weight|bias)")
ADVICE = "Take a checkpoint whose gates are whole, or set 'gates' of Sparse KV Memory to 'off'."


@dataclass(frozen=True, slots=True)
class Gates:
    """The gates of all layers in float32; row `head x branches + branch` belongs to a branch of a head."""

    form: GateForm
    weights: Tensor  # [layers, H x branches, C]
    biases: Tensor  # [layers, H x branches]

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.weights.nbytes + self.biases.nbytes

    def to(self, device: torch.device) -> Gates:
        """The same gates on this device."""
        return Gates(self.form, self.weights.to(device), self.biases.to(device))

    def values(self, layer: int, x: Tensor) -> Tensor:
        """Gates `[B, L, H, branches]`, 0 to 1, in float32, of the hidden state `[B, L, C]` of a layer."""
        logits = linear(x.float(), self.weights[layer], self.biases[layer]).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        values: Tensor = logits.sigmoid().unflatten(-1, (-1, len(self.form.branches)))
        return values

    def mix(self, values: Tensor, branches: Mapping[str, Tensor]) -> Tensor:
        """Output `[..., H, D]` of branches of that shape and their gates `[..., H, branches]`.

        A branch that is not there adds nothing, one that this form has no gate for is added as it is.
        """
        gate_of = dict(zip(self.form.branches, values.unbind(-1), strict=True))  # each [..., H]
        parts = [
            branch.float() * gate_of[name][..., None] if name in gate_of else branch.float()
            for name, branch in branches.items()
        ]
        return torch.stack(parts).sum(dim=0).to(branches["window"].dtype)

    def check(self, spec: KVSpec) -> None:
        """Raises ValueError when these are not gates of this model."""
        layers, rows, width = self.weights.shape
        needed = (spec.layers, spec.heads * len(self.form.branches), spec.heads * spec.head_dim)
        if (layers, rows, width) != needed:
            raise ValueError(
                f"Gates of this model need {needed[0]} layers of weights [{needed[1]}, {needed[2]}], got {layers} of "
                f"[{rows}, {width}]: they were made for another model. {ADVICE}"
            )

    def named(self) -> dict[str, Tensor]:
        """The weights by the keys of our own files, for `find_gates`."""
        place = [f"blocks.{layer}.self_attn.{self.form.value}_gates" for layer in range(len(self.weights))]
        return {f"{name}.weight": weight for name, weight in zip(place, self.weights, strict=True)} | {
            f"{name}.bias": bias for name, bias in zip(place, self.biases, strict=True)
        }


def gate_keys(keys: Iterable[str]) -> list[str]:
    """The keys of a checkpoint that belong to gates."""
    return [key for key in keys if KEY.fullmatch(key)]


def find_gates(state: Mapping[str, Tensor]) -> Gates | None:
    """The gates among the weights of a checkpoint, or None where it has none.

    Raises ValueError for gates of both forms, of missing layers, of wrong shapes, and for numbers that are none.
    """
    parts: dict[tuple[int, str], Tensor] = {}
    names: dict[str, GateForm] = {}
    for key in gate_keys(state):
        match = KEY.fullmatch(key)
        assert match is not None
        layer, name, part = match.groups()
        names[name] = MODULES[name]
        parts[int(layer), part] = state[key]
    if not names:
        return None
    if len(names) > 1:
        raise ValueError(f"A checkpoint needs gates of one kind, got {' and '.join(sorted(names))}. {ADVICE}")
    ((name, form),) = names.items()
    layers = max(layer for layer, _ in parts) + 1
    missing = [
        f"blocks.{layer}.self_attn.{name}.{part}"
        for layer in range(layers)
        for part in ("weight", "bias")
        if (layer, part) not in parts
    ]
    if missing:
        raise ValueError(
            f"The gates of this checkpoint need {layers} whole layers, got none for {missing[0]}. {ADVICE}"
        )
    _check_parts(parts, name, len(form.branches))
    weights, biases = (
        torch.stack([parts[layer, part].float() for layer in range(layers)]) for part in ("weight", "bias")
    )
    return Gates(form, weights, biases)


def _check_parts(parts: Mapping[tuple[int, str], Tensor], name: str, branches: int) -> None:
    rows, width = parts[0, "weight"].shape[0], parts[0, "weight"].shape[-1]
    if rows % branches:
        raise ValueError(f"The gates '{name}' need {branches} rows a head, got {rows} rows. {ADVICE}")
    for (layer, part), tensor in parts.items():
        needed = [rows, width] if part == "weight" else [rows]
        if list(tensor.shape) != needed:
            raise ValueError(
                f"The gates of this checkpoint need blocks.{layer}.self_attn.{name}.{part} to be {needed}, got "
                f"{list(tensor.shape)}. {ADVICE}"
            )
        if not tensor.float().isfinite().all():
            raise ValueError(
                f"The gates of this checkpoint need finite numbers, got others in blocks.{layer}.self_attn.{name}.{part}. "
                f"{ADVICE}"
            )


def fresh_gates(form: GateForm, layers: int, heads: int, width: int, generator: torch.Generator) -> Gates:
    """Gates before any training: nearly one half everywhere."""
    rows = heads * len(form.branches)
    weights = torch.randn(layers, rows, width, generator=generator) * FRESH_DEVIATION
    return Gates(form, weights, torch.zeros(layers, rows))
