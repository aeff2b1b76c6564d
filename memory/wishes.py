"""A wish, granted: what a chunk reads when sink, window, pins, vetoes and the prompt bank are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .prompt_bank import Brought, Likeness, PromptBankConfig, Wish, choose_bank
from .select import Choice
from .transitions import Reach


class Granted(NamedTuple):
    """What each layer reads, or all of them alike where there is one choice, and why frames that are neither sink nor window
    are among it. All choices read equally many frames.
    """

    choices: tuple[Choice, ...]
    brought: dict[int, Brought]


def grant(
    wish: Wish,
    choice: Choice,
    older: Sequence[int],
    reach: Reach,
    config: PromptBankConfig | None,
    likeness: Likeness,
) -> Granted:
    """The choice without vetoed frames, with pinned ones, and with those of the `older` that a prompt bank brings back.

    `older` are all remembered frames before the chunk, oldest first; a cut closes what `reach` leaves out to all but pins.
    Of a bank that is read in parts the frames are offered, page by page.
    """
    read = [frame for frame in choice.read if frame not in wish.vetoed]
    waiting = [frame for frame in older if frame not in choice.read and frame not in wish.vetoed]
    brought = {frame: Brought("pin", wish.score(frame)) for frame in waiting if frame in wish.pinned}
    read += brought
    banks: list[tuple[int, ...]] = [()]
    if config is not None:
        offered = [frame for frame in waiting if frame not in brought and frame >= reach.bank_from]
        banks = [choose_bank(offered, wish, config, likeness, layer) for layer in range(wish.layers)]
        for frame in sorted({frame for bank in banks for frame in bank}):
            brought[frame] = Brought("anchor" if frame in wish.anchored else "prompt", wish.score(frame))
        if config.parts:
            return Granted((Choice(tuple(sorted(read)), banks[0]),), brought)
    pages = tuple(frame for frame in choice.bank if frame not in wish.vetoed and frame not in brought)
    return Granted(tuple(Choice(tuple(sorted([*read, *bank])), pages) for bank in banks), brought)
