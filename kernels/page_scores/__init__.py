"""Which pages are read: mean queries against the means of pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Operation, facts_of, implementations
from ..pages import PageLists
from .torch_path import group_means, shortlist_pages

OPERATION = Operation("select_pages", implementations(__name__))


def select_pages(
    queries: Tensor, summaries: Tensor, limit: int, *, first_slot: int = 0, implementation: str | None = None
) -> PageLists:
    """For each head and group the `limit` pages whose summary has the largest product with the mean query.

    `queries` is `[H, groups, D]` float32 from `group_means`, `summaries` `[H, N, D]` the mean keys of all candidates;
    the list names candidate i as slot `first_slot + i`, in ascending order. Of equal scores the lower slot wins; fewer
    candidates than `limit` are all listed.

    Raises ValueError when shapes do not fit and NoImplementationError when the wanted implementation cannot run.
    """
    heads, groups, dim = queries.shape
    if summaries.shape[::2] != (heads, dim) or queries.dtype is not torch.float32 or summaries.stride(2) != 1:
        raise ValueError(
            f"Mean queries {list(queries.shape)} need to be float32 and summaries [{heads}, N, {dim}] with channels "
            f"side by side, got {queries.dtype} and {list(summaries.shape)}."
        )
    if limit < 1:
        raise ValueError(f"A selection needs at least 1 page, got {limit}.")
    chosen: Tensor = OPERATION.choose(facts_of(summaries), implementation)(queries, summaries, limit)
    counts = torch.full((heads, groups), chosen.shape[-1], dtype=torch.int32, device=chosen.device)
    return PageLists(chosen + first_slot, counts)


__all__ = ["OPERATION", "group_means", "select_pages", "shortlist_pages"]
