"""How a family of ordinary models reads history that encoders told: one small class for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor


class HistoryFamily(Protocol):
    """What memory encoders need to know of the models that read their tokens.

    `shows_pictures` says whether the family's VAE can decode a film that is still being made, `reads_once` whether history that
    looks at itself alone is the same in every call, `reads_hidden` whether its layers read an encoder's hidden states, `others` what else
    of a prompt or a call would add to its tokens, and is called so.
    """

    name: str
    shows_pictures: bool
    reads_once: bool
    reads_hidden: bool
    others: dict[str, str]

    @property
    def with_tokens(self) -> Callable[..., Any]:
        """The DIFFUSION_MODEL wrapper under which history joins the sequence of a call."""
        ...

    def knows(self, model: ModelPatcher) -> bool:
        """Whether the model is one of the family's."""
        ...

    def shape(self, network: Any) -> tuple[int, int]:
        """Width of the network and channels of its latents."""
        ...

    def layers(self, network: Any) -> int:
        """How many layers read history."""
        ...

    def embed(self, network: Any, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """The model's own embedding: latents `[1, C, T, H, W]` to `[1, width, T, H / 2, W / 2]`; `dtype` is what it computes in."""
        ...


def check_alone(inputs: dict[str, Any], others: dict[str, str]) -> None:
    """Raises ValueError where `inputs` of a call hold something of `others`, which would lengthen the sequence, too."""
    found = [name for key, name in others.items() if inputs.get(key) is not None]
    if found:
        raise ValueError(
            f"A memory encoder cannot be combined with {' and '.join(found)}: both add to the tokens of the film. Remove "
            "the node that adds them to the conditioning, or disconnect the memory encoder."
        )
