"""What a model family is to LongReel, and which family a model belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.config import KVSpec


class HostAdapter(Protocol):
    """One model family of the host."""

    name: str

    def refusal(self, model: ModelPatcher) -> str | None:
        """Why this family cannot take the model, or None when it can."""
        ...

    def kv_spec(self, model: ModelPatcher, height: int, width: int) -> KVSpec:
        """Keys and values of the model for latents of this height and width."""
        ...

    def text_width(self, model: ModelPatcher) -> int:
        """Numbers a word of the prompts that the model reads."""
        ...

    def text_refusal(self, model: ModelPatcher) -> str | None:
        """Why what this clone makes of its prompts cannot score frames, or None when it can."""
        ...

    def text_keys(self, network: Any, prompt: Tensor) -> Tensor:
        """Mean keys `[layers, H, D]` of the words of a prompt `[W, C]` that has no padding; for a model without refusal."""
        ...

    def attach(self, model: ModelPatcher) -> None:
        """Put memory into the attention of this clone; ValueError when another pack holds the place."""
        ...


def choose_adapter(model: ModelPatcher, adapters: Sequence[HostAdapter]) -> HostAdapter:
    """The first family that takes the model; ValueError names every family with its reason."""
    reasons = []
    for adapter in adapters:
        reason = adapter.refusal(model)
        if reason is None:
            return adapter
        reasons.append(f"{adapter.name}: {reason}")
    kind = type(model.model).__name__
    raise ValueError(
        f"LongReel cannot give memory to this model ({kind}). " + " ".join(reasons) + " Load a Wan text-to-video "
        "checkpoint, for instance a Wan 2.1 1.3B or 14B causal one (Self-Forcing, LongLive, Causal-Forcing)."
    )
