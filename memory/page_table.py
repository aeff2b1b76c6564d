"""Which slots hold which frame: the bookkeeping of a memory, in integers only.

A frame's pages lie in one run of neighbouring slots, so a frame is found by its first slot. A commit
reserves free slots, writes them, and publishes them; until then nobody reads them, and slots that are
readable are never handed out (design decision 5).
"""

from __future__ import annotations

from collections.abc import Iterable


class PageTable:
    """Slots of a pool of `capacity_frames` frames of `pages_per_frame` pages each."""

    def __init__(self, capacity_frames: int, pages_per_frame: int) -> None:
        self.capacity_frames = capacity_frames
        self.pages_per_frame = pages_per_frame
        self._free = list(range((capacity_frames - 1) * pages_per_frame, -1, -pages_per_frame))
        self._published: dict[int, int] = {}
        self._reserved: dict[int, int] = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Readable frames, oldest first."""
        return tuple(sorted(self._published))

    @property
    def reserved(self) -> tuple[int, ...]:
        """Frames that are being written, oldest first."""
        return tuple(sorted(self._reserved))

    def first_slot(self, frame: int) -> int:
        """First slot of a readable frame; KeyError when it is not remembered."""
        return self._published[frame]

    def reserved_slot(self, frame: int) -> int:
        """First slot of a frame being written; KeyError when it was not reserved."""
        return self._reserved[frame]

    def reserve(self, frames: Iterable[int]) -> None:
        """Give each frame free slots to be written; what is readable stays as it is.

        Raises ValueError when a frame is already there and RuntimeError when the pool is too small.
        """
        frames = tuple(frames)
        for frame in frames:
            if frame in self._published or frame in self._reserved:
                raise ValueError(f"Frame {frame} is already in memory.")
        if len(frames) > len(self._free):
            raise RuntimeError(f"Memory needs {len(frames)} free frames, has {len(self._free)}.")
        for frame in frames:
            self._reserved[frame] = self._free.pop()

    def publish(self) -> None:
        """Make the reserved frames readable."""
        self._published.update(self._reserved)
        self._reserved.clear()

    def abandon(self) -> None:
        """Give the reserved slots back, as after a commit that failed."""
        self._free.extend(self._reserved.values())
        self._reserved.clear()

    def evict(self, frames: Iterable[int]) -> None:
        """Forget these readable frames and free their slots."""
        for frame in frames:
            self._free.append(self._published.pop(frame))

    def check(self) -> None:
        """Raises RuntimeError when a slot is lost, shared or out of range."""
        used = [*self._published.values(), *self._reserved.values(), *self._free]
        expected = range(0, self.capacity_frames * self.pages_per_frame, self.pages_per_frame)
        if sorted(used) != list(expected):
            raise RuntimeError(f"The page table lost or shared a slot: {sorted(used)} instead of {list(expected)}.")
