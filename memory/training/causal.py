"""Makes a plain host `WanModel` causal over chunks while it is trained, through the host's attention hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .clips import ClipBatch, word_bias

TRAIN_TIMESTEPS = 1000.0
"""The host's flow models take sigma times this as the timestep."""


def _heads(x: Tensor, heads: int) -> Tensor:
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H, L, D]
    return split


def causal_attention(chunk_tokens: int, text_bias: Tensor) -> Callable[..., Tensor]:
    """An attention override: a chunk sees itself and older chunks, and reads its own prompt only.

    `chunk_tokens` tokens make a chunk; `text_bias` is `[B * C, 1, 1, W]`, W words a chunk.
    """
    words = text_bias.shape[-1]

    def attend(_host: object, q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
        chunks = q.shape[1] // chunk_tokens
        if k.shape[1] == q.shape[1]:
            q, k, v = _heads(q, heads), _heads(k, heads), _heads(v, heads)
            parts = []
            for chunk in range(chunks):
                own, seen = slice(chunk * chunk_tokens, (chunk + 1) * chunk_tokens), (chunk + 1) * chunk_tokens
                parts.append(functional.scaled_dot_product_attention(q[:, :, own], k[:, :, :seen], v[:, :, :seen]))
            return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        batch = q.shape[0]
        q = _heads(q.reshape(batch * chunks, chunk_tokens, -1), heads)
        k, v = (_heads(x.reshape(batch * chunks, words, -1), heads) for x in (k, v))
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=text_bias)
        return read.transpose(1, 2).reshape(batch, chunks * chunk_tokens, -1)

    return attend


def predict_flow(model: nn.Module, latents: Tensor, sigmas: Tensor, batch: ClipBatch) -> Tensor:
    """The model's flow (noise minus picture) for `latents` `[B, 16, T, h, w]` at `sigmas` `[B, T]` in 0..1."""
    tokens = batch.chunk_frames * (latents.shape[-2] // 2) * (latents.shape[-1] // 2)
    attend = causal_attention(tokens, word_bias(batch.text_mask).to(latents))
    options = {"optimized_attention_override": attend}
    flow: Tensor = model(latents, sigmas * TRAIN_TIMESTEPS, batch.text.to(latents), transformer_options=options)
    return flow
