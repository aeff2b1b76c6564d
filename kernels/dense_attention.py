"""Attention that also returns its log-sum-exp, by the best that torch has on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from .state import AttentionState

SCORE_BYTES = 256 * 2**20
FLASH_DTYPES = (torch.float16, torch.bfloat16)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> AttentionState:
    """Attention of queries `[L, H, D]` over all keys and values `[H, T, D]`."""
    out, lse = attention_with_lse(q.transpose(0, 1)[None], k[None], v[None])
    return AttentionState(out[0].transpose(0, 1), lse[0].transpose(0, 1))


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Output `[B, H, L, D]` and log-sum-exp `[B, H, L]` in float32 over keys and values `[B, H, T, D]`.

    `mask` broadcasts to `[B, H, L, T]` and is added to the scores.
    """
    # torch gives the log-sum-exp away only below its public function; the fallback needs neither of the two.
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask)
        return out, lse.float()
    if q.device.type == "cuda" and mask is None and q.dtype in FLASH_DTYPES:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        return out, lse
    return attention_by_products(q, k, v, mask)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same from matrix products in float32, a slice of queries at a time."""
    batch, heads, tokens, dim = q.shape
    outs, lses = [], []
    k_turned, v_wide = k.float().mT, v.float()
    step = max(1, SCORE_BYTES // (4 * batch * heads * k.shape[2]))
    for start in range(0, tokens, step):
        scores = q[:, :, start : start + step].float() @ k_turned / dim**0.5  # [B, H, step, T]
        if mask is not None:
            scores += mask
        lse = scores.logsumexp(dim=-1)
        outs.append((scores.sub_(lse[..., None]).exp_() @ v_wide).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)
