"""Joining attention over two sets of keys."""

from __future__ import annotations

from ..dispatch import Operation, facts_of, implementations
from ..state import AttentionState

OPERATION = Operation("merge_states", implementations(__name__))


def merge_states(a: AttentionState, b: AttentionState, implementation: str | None = None) -> AttentionState:
    """Attention over two disjoint sets of keys, from attention over each, in the type of the outputs.

    Raises ValueError when the shapes differ and NoImplementationError when the wanted implementation cannot run.
    """
    if a.out.shape != b.out.shape or a.lse.shape != b.lse.shape:
        raise ValueError(f"States to merge need equal shapes, got {tuple(a.out.shape)} and {tuple(b.out.shape)}.")
    state: AttentionState = OPERATION.choose(facts_of(a.out), implementation)(a, b)
    return state


__all__ = ["OPERATION", "merge_states"]
