"""Pages as tensors: what is stored, and what each group of queries reads of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rounding(NamedTuple):
    """How 8-bit pages become numbers again: key = code x scale + mean, value = code x scale; all float32."""

    k_scale: Tensor  # [H, N, P]
    v_scale: Tensor  # [H, N, P]
    k_mean: Tensor  # [H, D]


class Pages(NamedTuple):
    """Keys and values of one layer. What lies in a page behind its length is never read."""

    k: Tensor  # [H, N, P, D]
    v: Tensor  # [H, N, P, D]
    lengths: Tensor  # [H, N] int32, tokens of a page: 1 to P
    rounding: Rounding | None = None  # of int8 keys and values


class PageLists(NamedTuple):
    """Slots that each head reads for each group of queries: the first `counts` ones. What lies behind is never read."""

    slots: Tensor  # [H, groups, K] int32
    counts: Tensor  # [H, groups] int32


def rows_of(x: Tensor) -> Tensor:
    """Pages `[H, N, P, D]` as tokens one behind another, `[H, N x P, D]`, without a copy."""
    return x.view(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


def count_listed(lists: PageLists, counts: Tensor, first_slot: int = 0) -> None:
    """Add to `counts` `[H, N]` int32 how many groups of each head list each slot, from `first_slot` on; lists need to be full.

    Two small operations on the lists' own device, nothing waits for them. Sums of integers do not depend on their order.
    """
    slots = lists.slots.flatten(1)
    places = torch.sub(slots, first_slot, out=torch.empty_like(slots, dtype=torch.int64))
    counts.scatter_add_(1, places, counts.new_ones(()).expand_as(places))


def check_lists(lists: PageLists, page_count: int, first_page: int) -> None:
    """Raises ValueError when a list names a page twice, or one outside `first_page` to `page_count`.

    Reads values: on a GPU this waits for all work that is under way.
    """
    slots, counts = lists.slots.long(), lists.counts
    width = slots.shape[-1]
    if bool(((counts < 0) | (counts > width)).any()):
        raise ValueError(f"A list of pages needs a count from 0 to its width {width}, got {counts.tolist()}.")
    place = torch.arange(width, device=slots.device)
    listed = place < counts[..., None]  # [H, groups, K]
    outside = listed & ((slots < first_page) | (slots >= page_count))
    if bool(outside.any()):
        raise ValueError(
            f"Lists need pages {first_page} to {page_count - 1}, got page {int(slots[outside][0])}. Pages before "
            f"{first_page} hold tokens that every query reads, and listing them would count them twice."
        )
    ordered = torch.where(listed, slots, -1 - place).sort(dim=-1).values
    twice = ordered[..., 1:] == ordered[..., :-1]
    if bool(twice.any()):
        raise ValueError(f"A list may name a page once, got page {int(ordered[..., 1:][twice][0])} twice.")


def check_pages(pages: Pages) -> None:
    """Raises ValueError when keys, values and lengths do not fit together, or do not lie as kernels read them."""
    heads, slots, page_tokens, _ = pages.k.shape
    if pages.v.shape != pages.k.shape or pages.lengths.shape != (heads, slots):
        raise ValueError(
            f"Pages need values {list(pages.k.shape)} and lengths [{heads}, {slots}], "
            f"got {list(pages.v.shape)} and {list(pages.lengths.shape)}."
        )
    strides = pages.k.stride()
    apart = min(slots, page_tokens) > 1 and strides[1] != page_tokens * strides[2]
    if apart or pages.v.stride() != strides or strides[3] != 1:
        raise ValueError(
            "Pages need keys and values that lie alike, channels side by side and each page right behind the one "
            f"before, got strides {strides} and {pages.v.stride()}."
        )
    if pages.lengths.stride(1) != 1 or pages.lengths.dtype != torch.int32:
        raise ValueError(f"Pages need int32 lengths that lie side by side, got {pages.lengths.dtype}.")
    rounded = pages.k.dtype is torch.int8
    if rounded != (pages.rounding is not None):
        raise ValueError(f"Pages of {pages.k.dtype} need {'their' if rounded else 'no'} rounding.")
