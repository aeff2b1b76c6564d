"""A memory encoder is trained beside the host's own Wan."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...memory.encoded_history import History
from ...memory.training.causal import TRAIN_TIMESTEPS
from ...memory.training.lora import LORA_TARGETS
from .wan_history import with_history


class TrainedWan:
    """Films of a batch are one call, each beside its own history."""

    lora_targets = LORA_TARGETS["wan"]

    def embedding(self, network: Any) -> nn.Module:
        """The host's patch embedding."""
        layer: nn.Module = network.patch_embedding
        return layer

    def flow(self, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        """See `EncoderFamily`."""
        options = {} if history is None else with_history(network, history, {})
        flow: Tensor = network(x, levels * TRAIN_TIMESTEPS, text, transformer_options=options)
        return flow
