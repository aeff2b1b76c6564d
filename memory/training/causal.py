"""Makes a plain host `WanModel` causal over chunks while it is trained, through the host's attention hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from .clips import ClipBatch, word_bias

TRAIN_TIMESTEPS = 1000.0
"""The host's flow models take sigma times this as the timestep."""
Predict = Callable[[nn.Module, Tensor, Tensor, ClipBatch, "ReadingLesson | None"], Tensor]
"""What a family's `predict_flow` is."""


class Reader(Protocol):
    """Reads a chunk in place of a softmax over everything."""

    def read(self, chunk: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output `[B, H, L, D]` of a chunk's queries over `k` and `v` `[B, H, older + L, D]`, its own tokens last."""
        ...


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, L, D]
    return split


class ReadingLesson:
    """Tells one head of every second layer whom to read: the earlier pictures of the character that is being drawn.

    A returning character is a needle: left alone, attention learns to average everybody first and may stay there. What is
    asked is that the tokens of the character attend to its own earlier tokens; `loss` is the mean of -log of that share.
    """

    HEAD = 0

    def __init__(self, batch: ClipBatch) -> None:
        """Whom to read follows from the labels of the batch."""
        tokens = functional.avg_pool2d(batch.mask, 2).flatten(2) > 0.5  # [B, T, h / 2 * w / 2]
        self.tokens = tokens.unflatten(1, (-1, batch.chunk_frames)).flatten(2)  # [B, C, chunk tokens]
        self.returns = batch.returns
        self._layer = 0
        self._sum = batch.mask.new_zeros(())
        self._count = batch.mask.new_zeros(())

    @property
    def loss(self) -> Tensor:
        """Mean over the tokens that have something to read, 0 without any."""
        return self._sum / self._count.clamp_min(1)

    def begin_layer(self) -> bool:
        """Whether this layer is taught."""
        self._layer += 1
        return self._layer % 2 == 0

    def listen(self, chunk: int, q: Tensor, keys: Tensor) -> None:
        """Judge a chunk's queries `[B, N, H, tokens, D]` over `keys` `[B, N, H, past + tokens, D]`."""
        q, keys = q[:, :, self.HEAD], keys[:, :, self.HEAD]
        logits = q @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5  # [B, N, tokens, past + tokens]
        past = (self.returns[:, chunk, :chunk, None] & self.tokens[:, :chunk]).flatten(1)  # [B, past]
        wanted = functional.pad(past, (0, q.shape[-2])).to(q.device)[:, None, None]
        asked = (self.tokens[:, chunk] & past.any(1, keepdim=True)).to(q.device)[:, None]  # [B, 1, tokens]
        share = logits.masked_fill(~wanted, -1e9).logsumexp(-1) - logits.logsumexp(-1)  # [B, N, tokens]
        self._sum = self._sum - (share * asked).sum().to(self._sum.device)
        self._count = self._count + asked.expand_as(share).sum().to(self._count.device)


def causal_attention(
    chunk_tokens: int,
    text_bias: Tensor,
    copies: int = 1,
    lesson: ReadingLesson | None = None,
    reader: Reader | None = None,
) -> Callable[..., Tensor]:
    """An attention override: a chunk sees itself and the older chunks of its clip's first copy, and its own prompt only.

    `chunk_tokens` tokens make a chunk; the batch holds `copies` of every clip, one after another, the first of them the
    history that all read; `text_bias` is `[B * copies * C, 1, 1, W]`, W words a chunk. A `lesson` listens to the others.
    A `reader` reads in its own way; without one a softmax goes over everything.
    """
    words = text_bias.shape[-1]

    def attend(_host: object, q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
        chunks = q.shape[1] // chunk_tokens
        if k.shape[1] == q.shape[1]:
            # Split once: the gradient of a slice would be as large as the whole film, for every chunk anew.
            q_own, k_own, v_own = (
                _heads(x, heads).unflatten(0, (-1, copies)).split(chunk_tokens, dim=3) for x in (q, k, v)
            )  # C times [B, copies, H, tokens, D]
            k_past, v_past = ([x[:, :1].expand(-1, copies, -1, -1, -1) for x in own] for own in (k_own, v_own))
            parts = []
            taught = lesson is not None and lesson.begin_layer()
            for chunk in range(chunks):
                keys = torch.cat([*k_past[:chunk], k_own[chunk]], dim=3)
                values = torch.cat([*v_past[:chunk], v_own[chunk]], dim=3)
                if taught and chunk and lesson is not None:
                    lesson.listen(chunk, q_own[chunk][:, 1:], keys[:, 1:])
                q_flat, k_flat, v_flat = (x.flatten(0, 1) for x in (q_own[chunk], keys, values))
                if reader is None:
                    parts.append(functional.scaled_dot_product_attention(q_flat, k_flat, v_flat))
                else:
                    parts.append(reader.read(chunk, q_flat, k_flat, v_flat))
            return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        batch = q.shape[0]
        q = _heads(q.reshape(batch * chunks, chunk_tokens, -1), heads)
        k, v = (_heads(x.reshape(batch * chunks, words, -1), heads) for x in (k, v))
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=text_bias)
        return read.transpose(1, 2).reshape(batch, chunks * chunk_tokens, -1)

    return attend


def predict_flow(
    model: nn.Module,
    latents: Tensor,
    sigmas: Tensor,
    batch: ClipBatch,
    lesson: ReadingLesson | None = None,
    reader: Reader | None = None,
) -> Tensor:
    """The model's flow (noise minus picture) for `latents` `[B * copies, 16, T, h, w]` at `sigmas` `[B * copies, T]`.

    Sigmas lie in 0..1. All copies of a clip read the first one's older chunks (teacher forcing, when that one is clean).
    A `reader` has to listen to the model.
    """
    tokens = batch.chunk_frames * (latents.shape[-2] // 2) * (latents.shape[-1] // 2)
    copies = len(latents) // len(batch.text)
    bias = word_bias(batch.text_mask.repeat_interleave(copies, dim=0)).to(latents)
    options = {"optimized_attention_override": causal_attention(tokens, bias, copies, lesson, reader)}
    text = batch.text.repeat_interleave(copies, dim=0).to(latents)
    flow: Tensor = model(latents, sigmas * TRAIN_TIMESTEPS, text, transformer_options=options)
    return flow
