"""Which remembered frames a chunk reads, and among which it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .config import MemoryConfig
from .transitions import Reach

EVERYTHING = Reach()


class Choice(NamedTuple):
    """Frames, oldest first: `read` are read by everybody, pages of `bank` frames by whom they concern."""

    read: tuple[int, ...]
    bank: tuple[int, ...]


def select_frames(
    remembered: Sequence[int],
    start_frame: int,
    chunk_frames: int,
    config: MemoryConfig,
    reach: Reach = EVERYTHING,
) -> Choice:
    """Sink and window for everybody; what lies between them is the bank, if the memory has one.

    The sink is the oldest `sink_frames` of the film, the window the newest frames that it leaves beside the chunk.
    `remembered` are readable frames in any order, `start_frame` is the chunk's first frame in the film (an index in the
    chunk would never let anything out of the window, as in OmniMem's released cache) and `chunk_frames` the planned length
    of a chunk. A window of None reads everything before the chunk. `reach` is what a cut has left.
    """
    older = [frame for frame in sorted(remembered) if frame < start_frame]
    behind = start_frame if config.window_frames is None else config.window_frames - chunk_frames
    window_start = max(start_frame - behind, reach.window_from)
    read = tuple(frame for frame in older if frame < config.sink_frames or frame >= window_start)
    if config.bank is None:
        return Choice(read, ())
    oldest = max(reach.bank_from, 0 if config.bank.look_back is None else start_frame - config.bank.look_back)
    taken = set(read) if config.bank.exclude_window else set()
    return Choice(read, tuple(frame for frame in older if frame >= oldest and frame not in taken))


def cut_away(
    remembered: Sequence[int], start_frame: int, chunk_frames: int, config: MemoryConfig, reach: Reach
) -> frozenset[int]:
    """Frames that a chunk would read or choose from, had a cut not closed them; arguments as those of `select_frames`."""
    if reach == EVERYTHING:
        return frozenset()
    whole, left = (select_frames(remembered, start_frame, chunk_frames, config, at) for at in (EVERYTHING, reach))
    closed = {frame for frame in remembered if frame < reach.bank_from} if config.prompt_bank is not None else set()
    return frozenset({*whole.read, *whole.bank, *closed}.difference(*left))
