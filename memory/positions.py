"""Position policies: which time each frame is given when a chunk reads it.

Keys are kept free of time and rotated when they are read, so the film decides anew at each chunk how far away a frame
seems. `absolute` is what the model would do by itself. `contiguous` (LongLive's and MemFlow's relative positions) lays
sink, bank, window and current chunk back to back, so no gap is ever seen. `clamped` keeps true distances as far as the
model was trained and no farther: whatever is older sits at the far edge. Several frames may share that edge; they keep
their order but not their spacing, and the model sees them as equally old, which is what it can know about them. `anchored` is
for models whose text has a place in time, at 0 (HunyuanVideo): as `contiguous`, but no frame is ever farther from the
text than in a clip of the trained length, so that frames too many share 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise


class PositionPolicy(Enum):
    """The policies by the names that settings use."""

    ABSOLUTE = "absolute"
    CONTIGUOUS = "contiguous"
    CLAMPED = "clamped"
    ANCHORED = "anchored"


@dataclass(frozen=True, slots=True)
class Times:
    """Time indices in frames, one for each frame that is read and one for each frame of the current chunk."""

    read: tuple[int, ...]
    current: tuple[int, ...]


def assign_times(policy: PositionPolicy, read: Sequence[int], current: range, trained_frames: int) -> Times:
    """The times of the frames that are read and of the current chunk, in the order given.

    `read` are absolute frames, oldest first, each once and all before `current`. `trained_frames` is the length of the
    clips that the model was trained on; `clamped` and `anchored` look at it."""
    if not current or current.step != 1:
        raise ValueError(f"needed the current chunk's frames in a row; got {current}; pass the chunk's own range")
    if any(earlier >= later for earlier, later in pairwise([*read, current.start])) or min(read, default=0) < 0:
        raise ValueError(
            f"needed frames that are read oldest first, each once, before frame {current.start}; got {list(read)}; "
            "sort them and leave the current chunk out"
        )
    if policy is PositionPolicy.ABSOLUTE:
        return absolute(read, current)
    if policy is PositionPolicy.CONTIGUOUS:
        return contiguous(read, current)
    check_trained_length(current, trained_frames)
    if policy is PositionPolicy.ANCHORED:
        return anchored(read, current, trained_frames)
    return clamped(read, current, trained_frames)


def absolute(read: Sequence[int], current: range) -> Times:
    """Every frame at its own time in the film."""
    return Times(tuple(read), tuple(current))


def contiguous(read: Sequence[int], current: range) -> Times:
    """All frames back to back, the oldest at 0."""
    return Times(tuple(range(len(read))), tuple(range(len(read), len(read) + len(current))))


def clamped(read: Sequence[int], current: range, trained_frames: int) -> Times:
    """Every frame at its own time, but none farther from the newest one than frames of a training clip are."""
    edge = current[-1] - (trained_frames - 1)  # the frames of a clip of N are at most N - 1 apart
    return Times(tuple(max(frame, edge) for frame in read), tuple(current))


def anchored(read: Sequence[int], current: range, trained_frames: int) -> Times:
    """All frames back to back, the newest at the end of a training clip at the latest, what does not fit at its start."""
    times = contiguous(read, current)
    excess = max(0, len(read) + len(current) - trained_frames)
    return Times(*(tuple(max(0, time - excess) for time in part) for part in (times.read, times.current)))


def check_trained_length(current: range, trained_frames: int) -> None:
    """Raises ValueError where a clip of the trained length has no room for anything beside the chunk."""
    if trained_frames <= len(current):
        raise ValueError(
            f"needed a trained length above the chunk's {len(current)} frames; got {trained_frames}; "
            "choose shorter chunks or another position policy"
        )
