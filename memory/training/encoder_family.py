"""What the training of a memory encoder knows of the family of models that reads its tokens; the host's side implements it."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn

from ..encoded_history import History

Family: TypeAlias = Literal["wan", "hunyuan"]
"""Networks of which there are tiny ones, as their files are named."""


class EncoderFamily(Protocol):
    """A family of models beside which encoders are trained."""

    @property
    def lora_targets(self) -> str:
        """The pattern of the matrices' whole names that adapters are put on, one of `LORA_TARGETS`."""
        ...

    def embedding(self, network: Any) -> nn.Module:
        """The layer that embeds patches: latents `[B, C, T, H, W]` to `[B, width, T, H / 2, W / 2]`."""
        ...

    def flow(self, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        """The model's flow, with gradients, for frames `x` `[B, C, t, h, w]` at noise `levels` `[B]` under `text` `[B, W, 4096]`,
        beside a history of each or without one, as a film calls the model. What else a large model reads of a prompt lies behind its words."""
        ...
