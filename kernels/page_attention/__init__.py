"""Attention over selected pages."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import HALVES, OLDEST_TRITON, Implementation, Needs, Operation, facts_of, implementations
from ..pages import PageLists, Pages, check_lists, check_pages
from ..state import ReadState

HEAD_DIMS = (16, 32, 64, 128)
OPERATION = Operation(
    "page_attention",
    (
        # Where dense attention has instructions that Triton does not reach, only the lists are left to our kernel.
        Implementation(
            "split",
            f"{__name__}.split",
            Needs(("cuda",), ("sm90", "sm100", "sm103"), HALVES, HEAD_DIMS, OLDEST_TRITON),
        ),
        *implementations(__name__, HEAD_DIMS),
    ),
)


def page_attention(
    q: Tensor,
    pages: Pages,
    lists: PageLists,
    *,
    dense_tokens: int,
    group_tokens: int,
    implementation: str | None = None,
) -> ReadState:
    """One softmax over the first `dense_tokens` tokens of the pages, and the pages that a head lists for a group.

    `q` is `[L, H, D]`; queries `g x group_tokens` to `(g + 1) x group_tokens` are group g, the last one may be short.
    The dense tokens lie one behind another from slot 0 on, whatever the lengths of those pages; lists name later
    slots only, each once. Neither is checked on a GPU, where reading a list would stop the queue.

    Raises ValueError when shapes do not fit or a list is wrong, and NoImplementationError when nothing can run it.
    """
    check_shapes(q, pages, lists, dense_tokens, group_tokens)
    if q.device.type == "cpu":
        check_lists(lists, pages.k.shape[1], -(-dense_tokens // pages.k.shape[2]))
    run = OPERATION.choose(facts_of(q), implementation)
    return ReadState(*run(q, pages, lists, dense_tokens, group_tokens))


def check_shapes(q: Tensor, pages: Pages, lists: PageLists, dense_tokens: int, group_tokens: int) -> None:
    """Raises ValueError when the arguments of an attention do not fit together."""
    check_pages(pages)
    tokens, heads, head_dim = q.shape
    page_count, page_tokens = pages.k.shape[1:3]
    groups = -(-tokens // group_tokens)
    if pages.k.dtype != q.dtype or pages.k.shape[::3] != (heads, head_dim):
        raise ValueError(
            f"Queries {list(q.shape)} of {q.dtype} need pages [{heads}, N, P, {head_dim}] of that type, "
            f"got {list(pages.k.shape)} of {pages.k.dtype}. 8-bit pages are copied into others before they are read."
        )
    if lists.slots.shape[:2] != (heads, groups) or lists.counts.shape != (heads, groups):
        raise ValueError(
            f"{tokens} queries in groups of {group_tokens} need lists [{heads}, {groups}, K] and counts "
            f"[{heads}, {groups}], got {list(lists.slots.shape)} and {list(lists.counts.shape)}."
        )
    if q.stride(2) != 1:
        raise ValueError(f"Queries need channels side by side, got strides {q.stride()}.")
    if not 0 <= dense_tokens <= page_count * page_tokens:
        raise ValueError(f"There are {page_count * page_tokens} tokens in the pages, {dense_tokens} should be dense.")


__all__ = ["OPERATION", "page_attention"]
