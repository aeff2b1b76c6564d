"""What a model family is to LongReel, and which family a model belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.config import KVSpec
from ...memory.positions import PositionPolicy


class PromptNeeds(NamedTuple):
    """What a family needs of a prompt: numbers a word, numbers of its one vector for all (0: none), and how to get them."""

    width: int
    pooled_width: int
    remedy: str


class HostAdapter(Protocol):
    """One model family of the host.

    `positions` is the policy that suits it. `joins_text` says that text and picture are one sequence, so that words are
    read with every chunk; otherwise text is read apart. `keeps_text` says that its keys and values are kept for a shot. `no_vae` is why films of this family cannot be decoded while they are
    made, and what to do instead, or None.
    """

    name: str
    positions: PositionPolicy
    joins_text: bool
    keeps_text: bool
    no_vae: str | None

    def refusal(self, model: ModelPatcher) -> str | None:
        """Why this family cannot take the model, or None when it can."""
        ...

    def kv_spec(self, model: ModelPatcher, height: int, width: int) -> KVSpec:
        """Keys and values of the model for latents of this height and width."""
        ...

    def prompts(self, model: ModelPatcher) -> PromptNeeds:
        """What the model reads of a prompt."""
        ...

    def time_scale(self, model: ModelPatcher) -> float:
        """What the times of frames are multiplied by."""
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
        "checkpoint, for instance a Wan 2.1 1.3B or 14B causal one (Self-Forcing, LongLive, Causal-Forcing), or HunyuanVideo or "
        "Kandinsky 5 text-to-video."
    )
