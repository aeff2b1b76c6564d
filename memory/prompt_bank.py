"""Which frames the coming prompt brings back: integers and scores, no tensors.

MemFlow (arXiv 2512.14699) keeps a bank of a few past frames, chosen by the prompt of what comes next. Here nothing
is dropped for ever: every frame of the film stays in the store and may be chosen again in any later shot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LIKENESS_POOL = 64
"""Best frames that are compared with each other at least: likeness costs a product for each pair."""


@dataclass(frozen=True, slots=True)
class PromptBankConfig:
    """`frames` are brought back for each chunk. `variety` from 0 to 1 is how much a frame loses by looking like one that is
    in the bank already. With `anchors`, frames of shots that mention a character of the coming shot come first.

    `pins` and `vetoes` are moments of the film as an artist writes them, and are read beside these frames. Raises ValueError when a number makes no sense.
    """

    frames: int = 3
    variety: float = 0.3
    anchors: bool = False
    pins: str = ""
    vetoes: str = ""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"The prompt bank needs at least 1 frame, got {self.frames}. Turn 'bank' up.")
        if not 0 <= self.variety <= 1:
            raise ValueError(f"Variety needs to be from 0 to 1, got {self.variety}.")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a chunk would like to see: a score for every older frame, those that show who is mentioned (`anchored`), frames
    that it must read and must not.
    """

    scores: Mapping[int, float] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()
    anchored: frozenset[int] = frozenset()

    def worth(self, frame: int) -> float:
        """By what frames are ranked: anchored ones first, each after its score."""
        return self.scores.get(frame, 0.0) + (frame in self.anchored)


class Brought(NamedTuple):
    """Why a frame was brought back: `pin`, `anchor` or `prompt`, and its score, None where nothing was scored."""

    why: str
    score: float | None


def choose_bank(
    frames: Iterable[int],
    wish: Wish,
    config: PromptBankConfig,
    likeness: Callable[[Sequence[int]], Sequence[Sequence[float]]],
) -> tuple[int, ...]:
    """At most `config.frames` of these frames, oldest first: the best that differ from each other, none that is vetoed.

    `likeness` gives the cosine, 0 to 1, of every pair of the frames it is handed. Among equals the newer frame wins.
    """
    free = {frame for frame in frames if frame not in wish.vetoed}
    pool = sorted(free, key=lambda frame: (-wish.worth(frame), -frame))[: max(LIKENESS_POOL, 2 * config.frames)]
    alike = likeness(pool) if config.variety > 0 and len(pool) > config.frames else None
    taken: list[int] = []
    waiting = list(range(len(pool)))
    while waiting and len(taken) < config.frames:
        best = max(waiting, key=lambda at: (_worth(pool[at], at, taken, wish, config, alike), -at))
        taken.append(best)
        waiting.remove(best)
    return tuple(sorted(pool[at] for at in taken))


def _worth(
    frame: int,
    at: int,
    taken: Sequence[int],
    wish: Wish,
    config: PromptBankConfig,
    alike: Sequence[Sequence[float]] | None,
) -> float:
    worth = wish.worth(frame)
    if alike is None or not taken:
        return worth
    return worth - config.variety * max(alike[at][other] for other in taken)
