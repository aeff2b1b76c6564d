"""Which pages a group of queries reads: those whose mean key agrees most with its mean query."""

from __future__ import annotations

import torch
from torch import Tensor


def group_means(q: Tensor, group_tokens: int) -> Tensor:
    """Mean query `[H, groups, D]` in float32 of each group of `[L, H, D]`; the last group may be short."""
    return torch.stack([part.float().mean(dim=0) for part in q.split(group_tokens)], dim=1)


def select_pages(queries: Tensor, summaries: Tensor, limit: int) -> Tensor:
    """Pages `[H, groups, K]` with the highest scores, in ascending order."""
    scores = queries @ summaries.float().mT  # [H, groups, N]
    return best_pages(scores, limit)


def shortlist_pages(queries: Tensor, summaries: Tensor, limit: int) -> Tensor:
    """Pages `[H, M]` with the highest sum over all groups of what attention to the summaries gives them."""
    scores = queries @ summaries.float().mT / queries.shape[-1] ** 0.5
    return best_pages(scores.softmax(dim=-1).sum(dim=1), limit)


def best_pages(scores: Tensor, limit: int) -> Tensor:
    """The highest of scores `[..., N]`, of equal ones the lower page, in ascending order."""
    best: Tensor = scores.sort(dim=-1, descending=True, stable=True).indices[..., :limit]
    return best.sort(dim=-1).values.int()
