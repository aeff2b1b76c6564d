"""Scores and selection with torch operations, on any device and without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

LOW = 0xFFFFFFFF


def group_means(q: Tensor, group_tokens: int) -> Tensor:
    """As the reference."""
    groups = -(-len(q) // group_tokens)
    padded = pad(q, (0, 0, 0, 0, 0, groups * group_tokens - len(q))).unflatten(0, (groups, group_tokens))
    sums = padded.sum(dim=1, dtype=torch.float32)  # [groups, H, D]
    sizes = torch.full((groups, 1, 1), float(group_tokens), device=q.device)
    sizes[-1] = len(q) - (groups - 1) * group_tokens
    means: Tensor = sums / sizes
    return means.transpose(0, 1)


def select_pages(queries: Tensor, summaries: Tensor, limit: int) -> Tensor:
    """As the reference."""
    return best_pages(queries @ summaries.float().mT, limit)


def shortlist_pages(queries: Tensor, summaries: Tensor, limit: int) -> Tensor:
    """As the reference."""
    scores = queries @ summaries.float().mT / queries.shape[-1] ** 0.5
    return best_pages(scores.softmax(dim=-1).sum(dim=1), limit)


def best_pages(scores: Tensor, limit: int) -> Tensor:
    """The highest of scores `[..., N]`, of equal ones the lower: a score and its page are one 64-bit number."""
    bits = (scores + 0.0).view(torch.int32)  # adding 0 makes -0 equal to 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    place = torch.arange(scores.shape[-1], device=scores.device)
    keys = (ordered.long() << 32) | (LOW - place)
    best = keys.topk(min(limit, scores.shape[-1]), dim=-1, sorted=False).values
    return (LOW - (best & LOW)).sort(dim=-1).values.int()
