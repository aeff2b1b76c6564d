"""A memory encoder is trained beside the host's own HunyuanVideo, whose words, picture and history are one sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ...memory.encoded_history import History, Stretch
from ...memory.training.adds_apart import AddsApart
from ...memory.training.causal import TRAIN_TIMESTEPS
from ...memory.training.lora import LORA_TARGETS
from ...memory.training.words import pooled_words
from .hunyuan_history import Call, anchored, with_history
from .hunyuan_video import CLIP_WIDTH

USUAL_GUIDANCE = 6.0
"""Strength of distilled guidance that the host gives a film whose prompts say none."""


def with_pooled(words: Tensor, pooled: Tensor) -> Tensor:
    """Words `[W, C]` and behind them, as further rows, one vector `[768]` for all of them, filled up with zeros."""
    width = words.shape[-1]
    return torch.cat([words, pad(pooled, (0, -len(pooled) % width)).view(-1, width).to(words)])


def kept_apart(text: Tensor) -> tuple[Tensor, Tensor]:
    """Words `[B, W, C]` and the vector `[B, 768]` that `with_pooled` put behind them."""
    rows = -(-CLIP_WIDTH // text.shape[-1])
    return text[:, :-rows], text[:, -rows:].flatten(1)[:, :CLIP_WIDTH]


def made_apart(text: Tensor) -> tuple[Tensor, Tensor]:
    """Words `[B, W, C]` and one vector `[B, 768]` for all of them, as the demo's text encoder makes it."""
    return text, pooled_words(text, text.new_full((1, 1), text.shape[1]))


class TrainedHunyuan:
    """Films of a batch are a call each, because those of one call share their history's prompts. `apart` gives the words of a text and
    the vector for all of them."""

    lora_targets = LORA_TARGETS["hunyuan"]

    def __init__(self, apart: Callable[[Tensor], tuple[Tensor, Tensor]] = made_apart) -> None:
        self._apart = apart

    def embedding(self, network: Any) -> nn.Module:
        """The host's patch embedding, which flattens nothing yet."""
        layer: nn.Module = network.img_in.proj
        return layer

    def flow(self, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        """See `EncoderFamily`."""
        times = levels * TRAIN_TIMESTEPS
        guidance = torch.full_like(times, USUAL_GUIDANCE) if network.params.guidance_embed else None
        flows = []
        for row in range(len(x)):
            own = slice(row, row + 1)
            words, pooled = self._apart(text[own])
            call = Call(times[own], pooled, None if guidance is None else guidance[own])
            options: dict[str, Any] = {}
            if history is not None:
                options = with_history(network, anchored(self._film_of(history, row), x.shape[2]), options, call)
            given = {"y": call.pooled, "guidance": call.guidance, "transformer_options": options}
            with AddsApart():
                flows.append(network(x[own], call.timesteps, words, **given))
        return torch.cat(flows)

    def _film_of(self, history: History, row: int) -> History:
        """What one film of a batch reads; every prompt of its own brings its one vector."""
        read = history.prompts[0 if len(history.prompts) == 1 else row] if history.prompts else ()
        texts = {id(text): text for _, text, _ in read if text is not None}
        apart = {key: [part[0] for part in self._apart(text[None])] for key, text in texts.items()}
        told = tuple(Stretch(count, *apart.get(id(text), (None, None))) for count, text, _ in read)
        tokens = history.tokens if len(history.tokens) == 1 else history.tokens[row : row + 1]
        return history._replace(tokens=tokens, prompts=(told,) if told else ())
