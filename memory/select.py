"""Which remembered frames a chunk reads."""

from __future__ import annotations

from collections.abc import Sequence

from .config import MemoryConfig


def select_sink_and_window(
    remembered: Sequence[int], start_frame: int, chunk_frames: int, config: MemoryConfig
) -> tuple[int, ...]:
    """Oldest `sink_frames` of the film and the newest frames that the window leaves beside the chunk, oldest first.

    `remembered` are readable frames in any order, `start_frame` is the first frame of the chunk and `chunk_frames`
    the planned length of a chunk. A window of None reads everything before the chunk.
    """
    older = [frame for frame in sorted(remembered) if frame < start_frame]
    if config.window_frames is None:
        return tuple(older)
    window_start = start_frame - (config.window_frames - chunk_frames)
    return tuple(frame for frame in older if frame < config.sink_frames or frame >= window_start)
