"""Writing of pages in one pass: a program reads the tokens of one page and head, and writes page and mean."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..pages import Pages, rows_of
from ..tiles import power_of_two

TOKENS = 32  # of 128 channels in 4 warps: 32 numbers a thread


@triton.jit
def _round(x):
    scale = tl.max(tl.abs(x), 1) * (1.0 / 127.0)
    codes = tl.floor(tl.div_rn(x, tl.where(scale > 0, scale, 1.0)[:, None]) + 0.5)
    return codes.to(tl.int8), scale


@triton.jit
def _write(
    k, v, source, slots, lengths, k_pages, v_pages, k_scale, v_scale, k_mean, k_means, v_means,
    k_row, k_head, v_row, v_head, page_head, page_row, means_head,
    PAGE: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, TOKENS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + page).to(tl.int64)
    length = tl.load(lengths + slot)
    channel = tl.arange(0, D_TILE)
    k_sum = tl.zeros([D_TILE], tl.float32)
    v_sum = tl.zeros([D_TILE], tl.float32)
    for start in range(0, PAGE, TOKENS):
        token = start + tl.arange(0, TOKENS)
        live = token < length
        inside = live[:, None] & (channel < D)[None, :]
        row = tl.load(source + page * PAGE + token, live, other=0).to(tl.int64)[:, None]
        keys = tl.load(k + row * k_row + head * k_head + channel[None, :], inside, other=0.0)
        values = tl.load(v + row * v_row + head * v_head + channel[None, :], inside, other=0.0)
        k_sum += tl.sum(keys.to(tl.float32), 0)
        v_sum += tl.sum(values.to(tl.float32), 0)
        at = head * page_head + (slot * PAGE + token[:, None]) * page_row + channel[None, :]
        if k_scale is not None:
            mean = tl.load(k_mean + head * D + channel, channel < D, other=0.0)
            at_scale = (head * SLOTS + slot) * PAGE + token
            keys, scale = _round(tl.where(inside, keys.to(tl.float32) - mean[None, :], 0.0))
            tl.store(k_scale + at_scale, scale, live)
            values, scale = _round(values.to(tl.float32))
            tl.store(v_scale + at_scale, scale, live)
        tl.store(k_pages + at, keys, inside)
        tl.store(v_pages + at, values, inside)
    at_mean = head * means_head + slot * D + channel
    tl.store(k_means + at_mean, (k_sum / length).to(k_means.dtype.element_ty), channel < D)
    if v_means is not None:
        tl.store(v_means + at_mean, (v_sum / length).to(v_means.dtype.element_ty), channel < D)


def write_pages(
    k: Tensor, v: Tensor, source: Tensor, slots: Tensor, pages: Pages, k_means: Tensor, v_means: Tensor | None
) -> None:
    """As the reference."""
    heads, slot_count, page_tokens, dim = pages.k.shape
    k_scale, v_scale, k_mean = pages.rounding or (None, None, None)
    with torch.cuda.device_of(k):
        _write[(len(slots), heads)](
            k, v, source.contiguous(), slots, pages.lengths, pages.k, pages.v, k_scale, v_scale, k_mean, k_means, v_means,
            k.stride(0), k.stride(1), v.stride(0), v.stride(1), *rows_of(pages.k).stride()[:2], k_means.stride(0),
            PAGE=page_tokens, D=dim, D_TILE=power_of_two(dim), TOKENS=TOKENS, SLOTS=slot_count,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
