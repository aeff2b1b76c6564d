"""Attention over pages as one loop without branches: dense tokens first, then the pages of the group's own list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dispatch import architecture
from ..pages import PageLists, Pages, rows_of
from ..state import AttentionState
from ..tiles import Tile, attention_tile

LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["tokens", "dense_tokens"])
def _attend(
    q, k, v, lengths, slots, counts, out, lse,
    q_row, q_head, page_head, page_row, lengths_head, slots_head, slots_group, counts_head,
    tokens, heads, dense_tokens, scale,
    GROUP: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0) // tl.cdiv(GROUP, QUERIES)
    in_group = (tl.program_id(0) % tl.cdiv(GROUP, QUERIES)) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1).to(tl.int64)
    row = (group * GROUP + in_group).to(tl.int64)
    live = ((in_group < GROUP) & (row < tokens))[:, None]
    channel = tl.arange(0, D)[None, :]
    key = tl.arange(0, KEYS)
    # Integer slots and counts: loaded addresses or a branch on a slot would stop the pipelining of the loop.
    slots += head * slots_head + group * slots_group
    lengths += head * lengths_head
    k += head * page_head
    v += head * page_head
    queries = tl.load(q + row[:, None] * q_row + head * q_head + channel, live, other=0.0)
    tiles_of_page = tl.cdiv(PAGE, KEYS)
    dense_tiles = tl.cdiv(dense_tokens, KEYS)
    tiles = dense_tiles + tl.load(counts + head * counts_head + group) * tiles_of_page

    most = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, D], tl.float32)
    for tile in range(0, tiles):
        own = tile >= dense_tiles
        place = tl.where(own, tile - dense_tiles, 0)
        slot = tl.load(slots + place // tiles_of_page, own, other=0)
        skip = (place % tiles_of_page) * KEYS
        first = tl.where(own, slot.to(tl.int64) * PAGE + skip, tl.cast(tile, tl.int64) * KEYS)
        left = tl.where(own, tl.load(lengths + slot, own, other=0) - skip, dense_tokens - tile * KEYS)
        read = key < left
        at = first + key
        keys = tl.load(k + at[:, None] * page_row + channel, read[:, None], other=0.0)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(read[None, :], scores, float("-inf"))
        new_most = tl.maximum(most, tl.max(scores, 1))
        # Finite from the first tile on: every page and the dense tokens begin with a token that is read.
        weights = tl.exp2(scores - new_most[:, None])
        decay = tl.exp2(most - new_most)
        total = total * decay + tl.sum(weights, 1)
        values = tl.load(v + at[:, None] * page_row + channel, read[:, None], other=0.0)
        sums = tl.dot(weights.to(values.dtype), values, sums * decay[:, None], input_precision="ieee")
        most = new_most

    sums = sums / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + (row[:, None] * heads + head) * D + channel, sums.to(out.dtype.element_ty), live)
    tl.store(lse + row * heads + head, (most + tl.log2(total)) * LN_2, (in_group < GROUP) & (row < tokens))


def page_attention(
    q: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, group_tokens: int, tile: Tile | None = None
) -> AttentionState:
    """As the reference, in the type of the queries; `tile` overrides what the tables say."""
    tokens, heads, dim = q.shape
    page_tokens = pages.k.shape[2]
    tile = (tile or attention_tile(architecture(q.device))).fitted(group_tokens, page_tokens)
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((tokens, heads), dtype=torch.float32, device=q.device)
    grid = (lists.slots.shape[1] * triton.cdiv(group_tokens, tile.queries), heads)
    slots, counts = lists.slots.contiguous(), lists.counts.contiguous()
    with torch.cuda.device_of(q):
        _attend[grid](
            q, pages.k, pages.v, pages.lengths, slots, counts, out, lse,
            q.stride(0), q.stride(1), *rows_of(pages.k).stride()[:2], pages.lengths.stride(0),
            slots.stride(0), slots.stride(1), counts.stride(0),
            tokens, heads, dense_tokens, LOG2_E / dim**0.5,
            GROUP=group_tokens, PAGE=page_tokens, D=dim, QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return AttentionState(out, lse)
