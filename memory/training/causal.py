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


def causal_attention(chunk_tokens: int, text_bias: Tensor, copies: int = 1) -> Callable[..., Tensor]:
    """An attention override: a chunk sees itself and the older chunks of its clip's first copy, and its own prompt only.

    `chunk_tokens` tokens make a chunk; the batch holds `copies` of every clip, one after another, the first of them the
    history that all read; `text_bias` is `[B * copies * C, 1, 1, W]`, W words a chunk.
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
            for chunk in range(chunks):
                keys = torch.cat([*k_past[:chunk], k_own[chunk]], dim=3)
                values = torch.cat([*v_past[:chunk], v_own[chunk]], dim=3)
                q_flat, k_flat, v_flat = (x.flatten(0, 1) for x in (q_own[chunk], keys, values))
                parts.append(functional.scaled_dot_product_attention(q_flat, k_flat, v_flat))
            return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        batch = q.shape[0]
        q = _heads(q.reshape(batch * chunks, chunk_tokens, -1), heads)
        k, v = (_heads(x.reshape(batch * chunks, words, -1), heads) for x in (k, v))
        read = functional.scaled_dot_product_attention(q, k, v, attn_mask=text_bias)
        return read.transpose(1, 2).reshape(batch, chunks * chunk_tokens, -1)

    return attend


def predict_flow(model: nn.Module, latents: Tensor, sigmas: Tensor, batch: ClipBatch) -> Tensor:
    """The model's flow (noise minus picture) for `latents` `[B * copies, 16, T, h, w]` at `sigmas` `[B * copies, T]`.

    Sigmas lie in 0..1. All copies of a clip read the first one's older chunks (teacher forcing, when that one is clean).
    """
    tokens = batch.chunk_frames * (latents.shape[-2] // 2) * (latents.shape[-1] // 2)
    copies = len(latents) // len(batch.text)
    bias = word_bias(batch.text_mask.repeat_interleave(copies, dim=0)).to(latents)
    options = {"optimized_attention_override": causal_attention(tokens, bias, copies)}
    text = batch.text.repeat_interleave(copies, dim=0).to(latents)
    flow: Tensor = model(latents, sigmas * TRAIN_TIMESTEPS, text, transformer_options=options)
    return flow
