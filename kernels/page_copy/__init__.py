"""Moving pages: storing, gathering and rotating keys and values."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Operation, facts_of, implementations
from ..pages import Pages, check_pages
from .reference import gather_frame, time_rotation

OPERATION = Operation("copy_pages", implementations(__name__))


def copy_pages(
    pages: Pages,
    slots: Tensor,
    turns: Tensor,
    rotation: Tensor,
    first_rows: Tensor,
    k_out: Tensor,
    v_out: Tensor,
    *,
    implementation: str | None = None,
) -> None:
    """Bring pages `slots` `[H, M]` of each head into rows of `k_out` and `v_out` `[H, R, D]`, keys turned to their time.

    The m-th page of a head goes to the rows from `first_rows[m]` on, as many as it is long, and its keys are turned by
    `rotation[turns[h, m]]` of `[T, time_channels / 2, 2, 2]` float32. 8-bit pages become numbers first, mean included.
    Indices are int32 and may be expanded over heads. Pages may lie in host memory, pinned or not; then indices, lengths
    and the mean lie beside the outputs.

    Raises ValueError when shapes do not fit and NoImplementationError when the wanted implementation cannot run.
    """
    check_pages(pages)
    heads, _, _, dim = pages.k.shape
    if slots.shape != turns.shape or slots.shape != (heads, len(first_rows)):
        raise ValueError(
            f"{len(first_rows)} places for pages of {heads} heads need slots and turns [{heads}, {len(first_rows)}], "
            f"got {list(slots.shape)} and {list(turns.shape)}."
        )
    if k_out.shape != v_out.shape or k_out.stride() != v_out.stride() or k_out.shape[::2] != (heads, dim):
        raise ValueError(f"Copies need keys and values [{heads}, R, {dim}] that lie alike, got {list(k_out.shape)}.")
    if implementation is None and pages.k.device != k_out.device and not pages.k.is_pinned():
        implementation = "torch"  # a kernel reads host memory only where it is pinned
    OPERATION.choose(facts_of(k_out), implementation)(pages, slots, turns, rotation, first_rows, k_out, v_out)


__all__ = ["OPERATION", "copy_pages", "gather_frame", "time_rotation"]
