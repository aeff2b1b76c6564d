"""How a shot begins, as integers: how far back its chunks may look, and which prompt each of them is made under."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .chunks import PICTURES_PER_FRAME, Plan
from .storyboard import Transition


class Reach(NamedTuple):
    """First frame that the window may hold, and first frame of the bank. The sink is never closed."""

    window_from: int = 0
    bank_from: int = 0


class Blend(NamedTuple):
    """A chunk that is made under a mixture: `weight` of its own shot's prompt, the rest of the shot's before."""

    chunk: int
    shot: int
    weight: float


def reaches(plan: Plan, transitions: Sequence[Transition]) -> tuple[Reach, ...]:
    """What the chunks of each shot may look back at: `cut` drops the window, `cut clean` closes the bank, too, for good."""
    found, reach = [], Reach()
    for chunks, transition in zip(plan.shots(), transitions, strict=True):
        start = chunks[0].frames.start
        if chunks[0].shot > 0 and transition.kind == "cut":
            reach = Reach(start, reach.bank_from)
        elif chunks[0].shot > 0 and transition.kind == "cut clean":
            reach = Reach(start, start)
        found.append(reach)
    return tuple(found)


def blends(plan: Plan, transitions: Sequence[Transition], fps: float) -> tuple[Blend, ...]:
    """Chunks that are made under mixed prompts, as their shot asks: `blend 2s` moves from prompt to prompt in 2 seconds."""
    chunk_seconds = Fraction(plan.frames_per_chunk * PICTURES_PER_FRAME) / Fraction(str(fps))
    found = []
    for chunks, transition in zip(plan.shots(), transitions, strict=True):
        if transition.kind == "blend" and chunks[0].shot > 0:
            count = min(len(chunks), max(1, round(Fraction(str(transition.seconds)) / chunk_seconds)))
            found += [Blend(chunk.index, chunk.shot, (at + 1) / (count + 1)) for at, chunk in enumerate(chunks[:count])]
    return tuple(found)
