"""A memory encoder is trained beside the host's own HunyuanVideo, whose words, picture and history are one sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...memory.encoded_history import History, Stretch
from ...memory.training.causal import TRAIN_TIMESTEPS
from ...memory.training.lora import LORA_TARGETS
from ...memory.training.words import pooled_words
from .hunyuan_history import Call, anchored, with_history

USUAL_GUIDANCE = 6.0
"""Strength of distilled guidance that the host gives a film whose prompts say none."""


class TrainedHunyuan:
    """Films of a batch are a call each, because those of one call share their history's prompts."""

    lora_targets = LORA_TARGETS["hunyuan"]

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
            call = Call(times[own], _pooled(text[own]), None if guidance is None else guidance[own])
            options: dict[str, Any] = {}
            if history is not None:
                options = with_history(network, anchored(_film_of(history, row), x.shape[2]), options, call)
            given = {"y": call.pooled, "guidance": call.guidance, "transformer_options": options}
            flows.append(network(x[own], call.timesteps, text[own], **given))
        return torch.cat(flows)


def _pooled(text: Tensor) -> Tensor:
    """One vector `[B, 768]` for all words `[B, W, 4096]`, as the demo's text encoder makes it."""
    return pooled_words(text, text.new_full((1, 1), text.shape[1]))


def _film_of(history: History, row: int) -> History:
    """What one film of a batch reads; every prompt of its own brings its one vector."""
    read = history.prompts[0 if len(history.prompts) == 1 else row] if history.prompts else ()
    vectors = {id(prompt): _pooled(prompt[None])[0] for _, prompt, _ in read if prompt is not None}
    told = tuple(Stretch(count, prompt, vectors.get(id(prompt))) for count, prompt, _ in read)
    tokens = history.tokens if len(history.tokens) == 1 else history.tokens[row : row + 1]
    return history._replace(tokens=tokens, prompts=(told,) if told else ())
