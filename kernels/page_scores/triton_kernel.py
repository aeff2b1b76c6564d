"""Scores in one pass, and the best of them by bisection: no sorting, and what is chosen comes out in order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUPS, PAGES, CHANNELS = 16, 64, 32  # of a program that scores; more channels at once would spill
ROW_PAGES = 1024  # scores that a program that selects looks at together
LEAST = tl.constexpr(-(2**31))


@triton.jit(do_not_specialize=["page_count"])
def _score(
    queries, summaries, scores, groups, page_count, summaries_head, summaries_page,
    D: tl.constexpr, CHANNELS: tl.constexpr, PAGES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0) * PAGES + tl.arange(0, PAGES)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    head = tl.program_id(2).to(tl.int64)
    row = (head * groups + group)[:, None]
    page_row = head * summaries_head + page.to(tl.int64)[:, None] * summaries_page
    score = tl.zeros([GROUPS, PAGES], tl.float32)
    for start in range(0, D, CHANNELS):
        channel = (start + tl.arange(0, CHANNELS))[None, :]
        query = tl.load(queries + row * D + channel, (group < groups)[:, None] & (channel < D), other=0.0)
        mean = tl.load(summaries + page_row + channel, (page < page_count)[:, None] & (channel < D), other=0.0)
        score = tl.dot(query, tl.trans(mean.to(tl.float32)), score, input_precision="ieee")
    inside = (group < groups)[:, None] & (page < page_count)[None, :]
    tl.store(scores + row * page_count + page[None, :], score, inside)


@triton.jit
def _ordered(scores, page, page_count):
    bits = (tl.load(scores + page, page < page_count, other=0.0) + 0.0).to(tl.int32, bitcast=True)  # -0 equals 0
    keys = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    return tl.where(page < page_count, keys, LEAST)


@triton.jit(do_not_specialize=["page_count", "limit"])
def _select(scores, chosen, page_count, limit, PAGES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    scores += row * page_count
    chosen += row * limit
    lane = tl.arange(0, PAGES)
    least = tl.full([], LEAST, tl.int64)  # the largest number that at least `limit` keys reach, bit by bit
    for bit in range(32):
        trial = least + (tl.full([], 1, tl.int64) << (31 - bit))
        reached = 0
        for start in range(0, page_count, PAGES):
            reached += tl.sum((_ordered(scores, start + lane, page_count) >= trial).to(tl.int32), 0)
        least = tl.where(reached >= limit, trial, least)
    above = 0
    for start in range(0, page_count, PAGES):
        above += tl.sum((_ordered(scores, start + lane, page_count) > least).to(tl.int32), 0)
    equal, taken = 0, 0
    for start in range(0, page_count, PAGES):
        keys = _ordered(scores, start + lane, page_count)
        ties = (keys == least).to(tl.int32)
        first_ties = (ties > 0) & (equal + tl.cumsum(ties, 0) <= limit - above)
        take = (keys > least) | first_ties
        place = taken + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(chosen + place, start + lane, take)
        equal += tl.sum(ties, 0)
        taken += tl.sum(take.to(tl.int32), 0)


def select_pages(queries: Tensor, summaries: Tensor, limit: int) -> Tensor:
    """As the reference."""
    heads, groups, dim = queries.shape
    page_count = summaries.shape[1]
    kept = min(limit, page_count)
    scores = torch.empty((heads, groups, page_count), dtype=torch.float32, device=queries.device)
    chosen = torch.empty((heads, groups, kept), dtype=torch.int32, device=queries.device)
    with torch.cuda.device_of(queries):
        _score[(triton.cdiv(page_count, PAGES), triton.cdiv(groups, GROUPS), heads)](
            queries.contiguous(), summaries, scores, groups, page_count, *summaries.stride()[:2],
            D=dim, CHANNELS=CHANNELS, PAGES=PAGES, GROUPS=GROUPS, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        _select[(heads * groups,)](scores, chosen, page_count, kept, PAGES=ROW_PAGES, num_warps=4)
    return chosen
