"""Attention over pages with torch operations: dense attention, and folded attention over gathered pages, merged."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..dense_attention import attention_with_lse, dense_attention
from ..merge_states.torch_path import merge_states
from ..pages import PageLists, Pages, rows_of
from ..state import AttentionState, ReadState

# Gathered keys and values of a slice of groups: on a CPU they should stay in its cache.
SLICE_BYTES = {"cpu": 16 * 2**20}
GPU_SLICE_BYTES = 256 * 2**20


def page_attention(
    q: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, group_tokens: int
) -> AttentionState | ReadState:
    """As the reference, in the type of the queries; with the log-sum-exp of the lists where they are not alone."""
    own = own_attention(q, pages, lists, group_tokens)
    if dense_tokens == 0:
        return own
    k, v = (rows_of(x)[:, :dense_tokens] for x in (pages.k, pages.v))  # [H, T, D]
    return ReadState(*merge_states(dense_attention(q, k, v), own), own.lse)


def own_attention(q: Tensor, pages: Pages, lists: PageLists, group_tokens: int) -> AttentionState:
    """Attention over the listed pages alone: each head and group is an element of a batch with gathered keys."""
    tokens, heads, _ = q.shape
    groups, width = lists.slots.shape[1:]
    rows, mask = listed_rows(pages, lists, q.dtype)  # [H, groups, K x P] both
    short = groups * group_tokens - tokens
    folded = (
        pad(q, (0, 0, 0, 0, 0, short)).unflatten(0, (groups, group_tokens)).permute(2, 0, 1, 3)
    )  # [H, groups, G, D]
    out = torch.zeros_like(folded, memory_format=torch.contiguous_format)
    lse = torch.full(out.shape[:3], -torch.inf, device=q.device)
    group_bytes = 2 * max(rows.shape[-1], 1) * q.shape[-1] * q.itemsize
    step = max(1, SLICE_BYTES.get(q.device.type, GPU_SLICE_BYTES) // group_bytes)
    for head in range(heads if width else 0):
        k, v = rows_of(pages.k)[head], rows_of(pages.v)[head]  # [N x P, D]
        for start in range(0, groups, step):
            at = (head, slice(start, start + step))
            k_read, v_read = k[rows[at]][:, None], v[rows[at]][:, None]  # [step, 1, K x P, D]
            part, part_lse = attention_with_lse(folded[at][:, None], k_read, v_read, mask[at][:, None, None])
            out[at], lse[at] = part[:, 0], part_lse[:, 0]
    empty = (lists.counts == 0)[..., None]  # what was gathered for them is anything
    out.masked_fill_(empty[..., None], 0.0)
    lse.masked_fill_(empty, -torch.inf)
    unfolded = out.permute(1, 2, 0, 3).flatten(0, 1)[:tokens]  # [L, H, D]
    return AttentionState(unfolded, lse.permute(1, 2, 0).flatten(0, 1)[:tokens])


def listed_rows(pages: Pages, lists: PageLists, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows `[H, groups, K x P]` of the pages that each group reads, and what is added to their scores: 0 or -inf.

    Rows that are not to be read are replaced by one that is, so that nothing uninitialised meets a product.
    """
    page_tokens = pages.k.shape[2]
    listed = torch.arange(lists.slots.shape[-1], device=lists.slots.device) < lists.counts[..., None]
    slots = torch.where(listed, lists.slots, lists.slots[..., :1]).long()
    slots = torch.where(lists.counts[..., None] > 0, slots, 0)
    lengths = pages.lengths.gather(1, slots.flatten(1)).view(slots.shape)[..., None]  # [H, groups, K, 1]
    token = torch.arange(page_tokens, device=slots.device)
    rows = slots[..., None] * page_tokens + torch.minimum(token, lengths - 1)
    live = listed[..., None] & (token < lengths)
    mask = torch.zeros(live.shape, dtype=dtype, device=live.device).masked_fill_(~live, -torch.inf)
    return rows.flatten(2), mask.flatten(2)
