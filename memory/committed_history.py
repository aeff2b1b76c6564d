"""History whose keys and values are made once in a film: when it is appended, reading itself and what was there before.

So it never looks at the frames being made, nor at anything newer than itself, and a chunk costs the same wherever it is. Keys stand at
their times in the film, and so do the frames that read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

WINDOW = -1
"""The number of the newest frames, which are no encoder's."""
KeptLayers = dict[int, list[tuple[Tensor, Tensor]]]
"""Keys and values of history's tokens in every layer, by its number, in one or several pieces `[1, m, width]`."""


class PartKey(NamedTuple):
    """Which part of history: the number of its encoder, or `WINDOW`, and its first frame."""

    number: int
    frame: int


class Segment(NamedTuple):
    """Parts of history that are committed at once: tokens `[1, M, width]`, `lengths` of them for each of the `keys`. They wait beside the
    card, because in a film that goes on all of it waits.

    `positions` `[M, 3]` are frames of the film, rows and columns, `prompt` `[W, C]` is what they read, `older` the parts before
    them that they read, too. `counts` `[M + older tokens]` says how often each token counts; None is once.
    """

    keys: tuple[PartKey, ...]
    lengths: tuple[int, ...]
    tokens: Tensor
    positions: Tensor
    prompt: Tensor
    older: tuple[PartKey, ...]
    counts: Tensor | None


class Commits:
    """What is committed of a film's history, and what waits for it, oldest first. State of one run.

    `current` are the parts that the next frames read, in their order, and `film` the time of the first of them.
    """

    def __init__(self) -> None:
        self.waiting: list[Segment] = []
        self.current: tuple[PartKey, ...] = ()
        self.film = 0
        self._kept: dict[PartKey, KeptLayers] = {}
        self._readable: frozenset[PartKey] = frozenset()
        self._known: set[PartKey] = set()

    @property
    def kept(self) -> frozenset[PartKey]:
        """Parts whose keys and values are there."""
        return frozenset(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of all keys and values that are there."""
        layers = (pieces for kept in self._kept.values() for pieces in kept.values())
        return sum(keys.nbytes + values.nbytes for pieces in layers for keys, values in pieces)

    def knows(self, key: PartKey) -> bool:
        """Whether this part waits or was committed."""
        return key in self._known

    def add(self, segment: Segment) -> None:
        """It is committed with the next frames that are made."""
        self.waiting.append(segment)
        self._known.update(segment.keys)

    def keep(self, segment: Segment, layers: KeptLayers) -> None:
        """Keys and values of a segment `[1, M, width]`, which does not wait any longer; what it alone still read is let go."""
        self.waiting.remove(segment)
        for key in segment.keys:
            self._kept[key] = {}
        for layer, pieces in layers.items():
            for keys, values in pieces:
                parts = zip(keys.split(segment.lengths, 1), values.split(segment.lengths, 1), strict=True)
                for key, part in zip(segment.keys, parts, strict=True):
                    self._kept[key][layer] = [part]
        self._let_go()

    def read(self, parts: Sequence[PartKey]) -> KeptLayers:
        """Keys and values of these parts, in this order."""
        read: KeptLayers = {}
        for key in parts:
            for layer, pieces in self._kept[key].items():
                read.setdefault(layer, []).extend(pieces)
        return read

    def forget(self, readable: Iterable[PartKey]) -> None:
        """Nothing is read any more but these, and what waits to be read by them."""
        self._readable = frozenset(readable)
        needed, waiting = set(self._readable), []
        for segment in reversed(self.waiting):
            if not needed.isdisjoint(segment.keys):
                waiting.append(segment)
                needed.update(segment.older)
        self.waiting = waiting[::-1]
        self._let_go()

    def _let_go(self) -> None:
        needed = self._readable.union(*(segment.older for segment in self.waiting))
        self._kept = {key: layers for key, layers in self._kept.items() if key in needed}
