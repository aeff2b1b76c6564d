"""Where the frames that a chunk reads lie in the working set: integers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """A remembered frame as it is read: where it is stored, and at which time index it is rotated."""

    frame: int
    slot: int
    time: float
    version: int


@dataclass(frozen=True, slots=True)
class Copy:
    """One frame to be brought into the working set."""

    placement: Placement
    place: int


def assign_places(
    resident: Sequence[Placement | None], wanted: Sequence[Placement]
) -> tuple[list[Placement | None], list[Copy]]:
    """Places 0..len(wanted)-1 filled with `wanted`, and the copies that are needed to get there.

    What already lies in such a place at the same time index stays where it is, so that with absolute positions
    only new frames move. Attention does not care about the order of what it reads.
    """
    count = len(wanted)
    places: list[Placement | None] = [*resident[:count], *[None] * (count - len(resident[:count]))]
    needed = set(wanted)
    kept: set[Placement] = set()
    for index, placement in enumerate(places):
        if placement in needed and placement not in kept:
            kept.add(placement)
        else:
            places[index] = None
    free = [index for index, placement in enumerate(places) if placement is None]
    copies = []
    for placement, place in zip((p for p in wanted if p not in kept), free, strict=True):
        places[place] = placement
        copies.append(Copy(placement, place))
    return places, copies
