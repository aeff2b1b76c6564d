"""A wish, granted: what a chunk reads when sink, window, pins, vetoes and the prompt bank are one. Integers only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .prompt_bank import Brought, PromptBankConfig, Wish, choose_bank
from .select import Choice
from .transitions import Reach


class Granted(NamedTuple):
    """What a chunk reads, and why frames that are neither sink nor window are among it."""

    choice: Choice
    brought: dict[int, Brought]


def grant(
    wish: Wish,
    choice: Choice,
    older: Sequence[int],
    reach: Reach,
    config: PromptBankConfig | None,
    likeness: Callable[[Sequence[int]], Sequence[Sequence[float]]],
) -> Granted:
    """The choice without vetoed frames, with pinned ones, and with those of the `older` that a prompt bank brings back.

    `older` are all remembered frames before the chunk, oldest first; a cut closes what `reach` leaves out to all but pins.
    """
    read = [frame for frame in choice.read if frame not in wish.vetoed]
    waiting = [frame for frame in older if frame not in choice.read and frame not in wish.vetoed]
    brought = {frame: Brought("pin", wish.scores.get(frame)) for frame in waiting if frame in wish.pinned}
    if config is not None:
        offered = [frame for frame in waiting if frame not in brought and frame >= reach.bank_from]
        for frame in choose_bank(offered, wish, config, likeness):
            brought[frame] = Brought("anchor" if frame in wish.anchored else "prompt", wish.scores.get(frame))
    bank = tuple(frame for frame in choice.bank if frame not in wish.vetoed and frame not in brought)
    return Granted(Choice(tuple(sorted([*read, *brought])), bank), brought)
