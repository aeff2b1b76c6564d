"""Writing keys and values into pages, with the mean by which a page is found."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Operation, facts_of, implementations
from ..pages import Pages, check_pages

OPERATION = Operation("write_pages", implementations(__name__))


def write_pages(
    k: Tensor,
    v: Tensor,
    source: Tensor,
    slots: Tensor,
    pages: Pages,
    k_means: Tensor,
    v_means: Tensor | None = None,
    *,
    implementation: str | None = None,
) -> None:
    """Write tokens of `k` and `v` `[L, H, D]` into the pages of these slots, and each page's mean beside them.

    Place p of the m-th page takes token `source[m, p]`, `[M, P]` int32; `slots` is `[M]` int32. How many places count
    is the slot's length, the same in all heads. `k_means` and `v_means` are `[H, N, D]` of any float type; 8-bit pages
    round each token to its own scale after `rounding.k_mean` was taken from the keys.

    Raises ValueError when shapes do not fit and NoImplementationError when the wanted implementation cannot run.
    """
    check_pages(pages)
    heads, slot_count, page_tokens, dim = pages.k.shape
    if k.shape[1:] != (heads, dim) or k.shape != v.shape:
        raise ValueError(f"Pages need keys and values [L, {heads}, {dim}], got {list(k.shape)} and {list(v.shape)}.")
    if source.shape != (len(slots), page_tokens):
        raise ValueError(f"{len(slots)} pages need tokens [{len(slots)}, {page_tokens}], got {list(source.shape)}.")
    for means in (k_means, *([] if v_means is None else [v_means])):
        if means.shape != (heads, slot_count, dim) or not means.is_contiguous():
            raise ValueError(f"Means need a contiguous [{heads}, {slot_count}, {dim}], got {list(means.shape)}.")
    OPERATION.choose(facts_of(k), implementation)(k, v, source, slots, pages, k_means, v_means)


__all__ = ["OPERATION", "write_pages"]
