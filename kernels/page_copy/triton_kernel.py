"""Copy of pages in one pass: a program moves one page of one head, keys and values."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..pages import Pages, rows_of
from ..tiles import power_of_two

TOKENS = 32  # of 128 channels in 4 warps: 32 numbers a thread


@triton.jit
def _copy(
    k, v, k_scale, v_scale, k_mean, lengths, slots, turns, rotation, first_rows, k_out, v_out,
    page_head, page_row, lengths_head, slots_head, turns_head, out_head, out_row,
    PAGE: tl.constexpr, D: tl.constexpr, D_TILE: tl.constexpr, PAIRS: tl.constexpr, TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + head * slots_head + page).to(tl.int64)
    length = tl.load(lengths + head * lengths_head + slot)
    first = tl.load(first_rows + page).to(tl.int64)
    channel = tl.arange(0, D_TILE)
    exists = channel < D
    partner = channel ^ 1  # the other channel of its pair
    odd = channel % 2
    in_time = channel < 2 * PAIRS
    turn = rotation + tl.load(turns + head * turns_head + page) * PAIRS * 4 + (channel // 2) * 4 + odd * 2
    of_own = tl.load(turn + odd, in_time, other=1.0)[None, :]
    of_partner = tl.load(turn + 1 - odd, in_time, other=0.0)[None, :]
    for start in range(0, PAGE, TOKENS):
        token = start + tl.arange(0, TOKENS)
        live = token < length
        inside = live[:, None] & exists[None, :]
        row = head * page_head + (slot * PAGE + token)[:, None] * page_row
        keys = tl.load(k + row + channel[None, :], inside, other=0).to(tl.float32)
        partners = tl.load(k + row + partner[None, :], inside & in_time[None, :], other=0).to(tl.float32)
        values = tl.load(v + row + channel[None, :], inside, other=0)
        if k_scale is not None:
            at_scale = (head * SLOTS + slot) * PAGE + token
            scale = tl.load(k_scale + at_scale, live, other=0.0)[:, None]
            keys = keys * scale + tl.load(k_mean + head * D + channel, exists, other=0.0)[None, :]
            partners = partners * scale + tl.load(k_mean + head * D + partner, in_time, other=0.0)[None, :]
            values = values.to(tl.float32) * tl.load(v_scale + at_scale, live, other=0.0)[:, None]
        keys = keys * of_own + partners * of_partner
        at = head * out_head + (first + token)[:, None] * out_row + channel[None, :]
        tl.store(k_out + at, keys.to(k_out.dtype.element_ty), inside)
        tl.store(v_out + at, values.to(v_out.dtype.element_ty), inside)


def copy_pages(
    pages: Pages, slots: Tensor, turns: Tensor, rotation: Tensor, first_rows: Tensor, k_out: Tensor, v_out: Tensor
) -> None:
    """As the reference; pages may lie in pinned host memory."""
    heads, slot_count, page_tokens, dim = pages.k.shape
    k_scale, v_scale, k_mean = pages.rounding or (None, None, None)
    with torch.cuda.device_of(k_out):
        _copy[(slots.shape[1], heads)](
            pages.k, pages.v, k_scale, v_scale, k_mean, pages.lengths, slots, turns, rotation, first_rows, k_out, v_out,
            *rows_of(pages.k).stride()[:2], pages.lengths.stride(0), slots.stride(0), turns.stride(0),
            k_out.stride(0), k_out.stride(1),
            PAGE=page_tokens, D=dim, D_TILE=power_of_two(dim), PAIRS=rotation.shape[1], TOKENS=TOKENS, SLOTS=slot_count,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
