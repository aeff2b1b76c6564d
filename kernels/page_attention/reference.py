"""Attention of queries over tokens that everybody reads and over the pages that their group lists, one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import PageLists, Pages
from ..state import AttentionState


def page_attention(q: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, group_tokens: int) -> AttentionState:
    """Output `[L, H, D]` and log-sum-exp `[L, H]`, in float32 or better, head by head and group by group."""
    kind = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=kind, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=kind, device=q.device)
    for head in range(q.shape[1]):
        for group in range(lists.slots.shape[1]):
            rows = slice(group * group_tokens, (group + 1) * group_tokens)
            k, v = (read_tokens(x[head], pages, lists, dense_tokens, head, group).to(kind) for x in (pages.k, pages.v))
            if len(k):
                scores = q[rows, head].to(kind) @ k.T / q.shape[-1] ** 0.5  # [rows, keys]
                out[rows, head] = scores.softmax(dim=-1) @ v
                lse[rows, head] = scores.logsumexp(dim=-1)
    return AttentionState(out, lse)


def read_tokens(x: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, head: int, group: int) -> Tensor:
    """What a group reads of one head's keys or values `[N, P, D]`, as `[keys, D]`."""
    listed = lists.slots[head, group, : int(lists.counts[head, group])].tolist()
    own = [x[slot, : int(pages.lengths[head, slot])] for slot in listed]
    return torch.cat([x.flatten(0, 1)[:dense_tokens], *own])
