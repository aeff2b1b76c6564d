"""Attention over pages in two parts: torch's own kernel over the dense tokens, ours over the lists, merged."""

from __future__ import annotations

from torch import Tensor

from ..dense_attention import dense_attention
from ..merge_states.triton_kernel import merge_states
from ..pages import PageLists, Pages, rows_of
from ..state import AttentionState, ReadState
from .triton_kernel import page_attention as fused_attention


def page_attention(
    q: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, group_tokens: int
) -> AttentionState | ReadState:
    """As the reference, in the type of the queries; with the log-sum-exp of the lists where they are not alone."""
    own = fused_attention(q, pages, lists, 0, group_tokens)
    if dense_tokens == 0:
        return own
    k, v = (rows_of(x)[:, :dense_tokens] for x in (pages.k, pages.v))  # [H, T, D]
    return ReadState(*merge_states(dense_attention(q, k, v), own), own.lse)
