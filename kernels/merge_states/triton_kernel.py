"""Merge of states in one pass over both outputs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..state import AttentionState

ROWS = 32  # of 128 channels in 4 warps: 32 numbers a thread


@triton.jit
def _merge(a_out, b_out, a_lse, b_lse, out, lse, rows, D: tl.constexpr, D_TILE: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, D_TILE)
    live = row < rows
    at = row[:, None] * D + channel[None, :]
    inside = live[:, None] & (channel < D)[None, :]
    la = tl.load(a_lse + row, live, other=0.0)
    lb = tl.load(b_lse + row, live, other=0.0)
    # Two empty sets: a finite stand-in for their maximum keeps -inf - -inf, which is not a number, away.
    most = tl.maximum(la, lb)
    stand_in = tl.where(most == float("-inf"), 0.0, most)
    ea, eb = tl.exp(la - stand_in), tl.exp(lb - stand_in)
    total = ea + eb
    weight = tl.where(total > 0, eb / tl.where(total > 0, total, 1.0), 0.0)[:, None]
    oa = tl.load(a_out + at, inside, other=0.0).to(tl.float32)
    ob = tl.load(b_out + at, inside, other=0.0).to(tl.float32)
    tl.store(out + at, (oa * (1.0 - weight) + ob * weight).to(out.dtype.element_ty), inside)
    tl.store(lse + row, stand_in + tl.log(total), live)


def merge_states(a: AttentionState, b: AttentionState) -> AttentionState:
    """As the reference, in the type of the outputs."""
    a, b = AttentionState(*(x.contiguous() for x in a)), AttentionState(*(x.contiguous() for x in b))
    state = AttentionState(torch.empty_like(a.out), torch.empty_like(a.lse))
    rows, channels = a.lse.numel(), a.out.shape[-1]
    with torch.cuda.device_of(a.out):
        _merge[(triton.cdiv(rows, ROWS),)](
            a.out, b.out, a.lse, b.lse, *state, rows,
            D=channels, D_TILE=triton.next_power_of_2(channels), ROWS=ROWS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return state
