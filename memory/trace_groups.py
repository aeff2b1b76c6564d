"""Neighbouring layers, heads and steps that a trace tells of together: a few groups, however large the model."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LAYER_GROUPS = 8
MOST_HEAD_GROUPS = 12
MOST_STEP_GROUPS = 4

Group = tuple[int, int]
"""First and last layer, head or step; both belong to it."""


def layer_groups(layers: int) -> list[Group]:
    """At most 8 groups of equally many layers; the last one may have fewer."""
    return _groups(layers, MOST_LAYER_GROUPS)


def head_groups(heads: int) -> list[Group]:
    """At most 12 groups of equally many heads; the last one may have fewer."""
    return _groups(heads, MOST_HEAD_GROUPS)


def step_groups(steps: int) -> list[Group]:
    """At most 4 groups of equally many steps of a chunk; the last one may have fewer."""
    return _groups(steps, MOST_STEP_GROUPS)


def group_of_each(groups: Sequence[Group]) -> list[int]:
    """For each layer, head or step the group that it belongs to."""
    return [group for group, (first, last) in enumerate(groups) for _ in range(first, last + 1)]


def _groups(count: int, most: int) -> list[Group]:
    size = -(-count // most)
    return [(first, min(first + size, count) - 1) for first in range(0, count, size)]
