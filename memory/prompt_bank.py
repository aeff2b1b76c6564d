"""Which frames the coming prompt brings back: integers and scores, no tensors.

MemFlow (arXiv 2512.14699) keeps a bank of a few past frames, chosen by the prompt of what comes next. Here nothing
is dropped for ever: every frame of the film stays in the store and may be chosen again in any later shot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

LIKENESS_POOL = 64
"""Best frames that are compared with each other at least: likeness costs a product for each pair."""


@dataclass(frozen=True, slots=True)
class PromptBankConfig:
    """`frames` are brought back for each chunk. `variety` from 0 to 1 is how much a frame loses by looking like one that is
    in the bank already. With `anchors`, frames of shots that mention a character of the coming shot come first.

    `pins` and `vetoes` are written as in `film_moments.py`. Raises ValueError when a number makes no sense.
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
    """What a chunk would like to see: a score for every older frame, frames that it must read and must not."""

    scores: Mapping[int, float] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()


def choose_bank(
    frames: Iterable[int],
    wish: Wish,
    config: PromptBankConfig,
    likeness: Callable[[Sequence[int]], Sequence[Sequence[float]]],
) -> tuple[int, ...]:
    """At most `config.frames` of these frames, oldest first: pinned ones, then the best that differ from each other.

    `likeness` gives the cosine, 0 to 1, of every pair of the frames it is handed. Among equals the newer frame wins.
    """
    free = [frame for frame in frames if frame not in wish.vetoed]
    chosen = [frame for frame in free if frame in wish.pinned][: config.frames]
    ranked = sorted(set(free) - set(chosen), key=lambda frame: (-wish.scores.get(frame, 0.0), -frame))
    pool = [*chosen, *ranked[: max(LIKENESS_POOL, 2 * config.frames)]]
    alike = likeness(pool) if config.variety > 0 and len(pool) > config.frames else None
    taken = list(range(len(chosen)))
    waiting = list(range(len(chosen), len(pool)))
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
    score = wish.scores.get(frame, 0.0)
    if alike is None or not taken:
        return score
    return score - config.variety * max(alike[at][other] for other in taken)
