"""The remembered keys and values of a film: a page table, the pool it manages, and the working set of the chunk.

    pool         [streams, layers, slots x P, H, D]   keys free of time, one run of slots a frame
    working set  [streams, layers, tokens,    H, D]   | frames read, keys turned in time | the chunk being made |

A stream is one role of the model's batch (cond, uncond); each has its own history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.page_copy import gather_frame, time_rotation
from .config import KVSpec, MemoryConfig
from .page_table import PageTable
from .positions import assign_times
from .select import select_sink_and_window
from .working_set import Copy, Placement, assign_places


class KVMemory:
    """Memory of one run. `begin` a chunk, `read` it in any layer, `reserve`, `write` and `publish` it."""

    def __init__(self, spec: KVSpec, config: MemoryConfig, streams: int, chunk_frames: int, film_frames: int) -> None:
        """Plan a memory for films of `film_frames` in chunks of at most `chunk_frames`; nothing is allocated yet.

        Raises ValueError when a chunk does not fit into the window.
        """
        config.check_chunk(chunk_frames)
        self.spec, self.config, self.streams, self.chunk_frames = spec, config, streams, chunk_frames
        self.read_capacity = config.history_frames(chunk_frames, film_frames)
        self.table = PageTable(min(self.read_capacity + chunk_frames, film_frames), spec.pages_per_frame)
        self.time_scale = 1.0
        self.read_frames: tuple[int, ...] = ()
        self.current_rotation: Tensor | None = None
        self._places: list[Placement | None] = []
        self._versions: dict[int, int] = {}
        self._commits = 0
        self._written: set[tuple[int, int]] = set()
        self._pool: tuple[Tensor, Tensor] | None = None
        self._working: tuple[Tensor, Tensor] | None = None

    @property
    def peak_bytes(self) -> int:
        """Bytes that `allocate` takes, fixed before the run."""
        pool = self.table.capacity_frames * self.spec.frame_bytes
        working = (self.read_capacity + self.chunk_frames) * self.spec.read_frame_bytes
        return self.streams * (pool + working)

    @property
    def allocated(self) -> bool:
        """Whether the memory of the run is taken."""
        return self._pool is not None

    def allocate(self) -> None:
        """Take all memory of the run at once."""
        spec = self.spec
        slots = self.table.capacity_frames * spec.pages_per_frame
        tokens = (self.read_capacity + self.chunk_frames) * spec.frame_tokens
        self._pool = (self._empty(slots * spec.page_tokens), self._empty(slots * spec.page_tokens))
        self._working = (self._empty(tokens), self._empty(tokens))

    def release(self) -> None:
        """Drop every tensor and everything remembered."""
        self._pool = self._working = self.current_rotation = None
        self._places = []

    def begin(self, frames: range) -> None:
        """Choose what the chunk of these frames reads and bring it into the working set, turned to its time."""
        self.read_frames = select_sink_and_window(self.table.frames, frames.start, self.chunk_frames, self.config)
        times = assign_times(self.config.positions, self.read_frames, frames, self.config.trained_frames)
        wanted = [
            Placement(frame, self.table.first_slot(frame), time * self.time_scale, self._versions[frame])
            for frame, time in zip(self.read_frames, times.read, strict=True)
        ]
        self._places, copies = assign_places(self._places, wanted)
        turns = [copy.placement.time for copy in copies] + [time * self.time_scale for time in times.current]
        rotations = time_rotation(turns, self.spec.time_channels, self.spec.theta, self.spec.device)
        self.current_rotation = rotations[len(copies) :]  # [T, pairs, 2, 2], one for each frame being made
        self._gather(copies, rotations)

    def read(self, layer: int, stream: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, read + L, H, D]` that the chunk attends to, its own `[L, H, D]` ones last.

        The result is a view that is valid until the next `read` of the same layer and stream.
        """
        assert self._working is not None
        start = len(self.read_frames) * self.spec.frame_tokens
        end = start + k.shape[0]
        k_work, v_work = self._working[0][stream, layer], self._working[1][stream, layer]
        k_work[start:end] = k
        v_work[start:end] = v
        return k_work[None, :end], v_work[None, :end]

    def reserve(self, frames: range) -> None:
        """Set slots aside for frames that are about to be committed."""
        self.table.reserve(frames)
        self._written.clear()

    def write(self, layer: int, stream: int, k_timeless: Tensor, v: Tensor) -> None:
        """Store one layer's keys, free of time, and values `[L, H, D]` in the reserved slots."""
        assert self._pool is not None
        self._written.add((layer, stream))
        tokens = self.spec.frame_tokens
        for index, frame in enumerate(self.table.reserved):
            rows = self._rows(self.table.reserved_slot(frame))
            source = slice(index * tokens, (index + 1) * tokens)
            self._pool[0][stream, layer, rows] = k_timeless[source]
            self._pool[1][stream, layer, rows] = v[source]

    def publish(self) -> None:
        """Make the written frames readable from the next chunk on, and forget what no later chunk will read.

        Raises RuntimeError when a layer was not written, as when another node skips the model at t = 0.
        """
        missing = self.streams * self.spec.layers - len(self._written)
        if missing:
            raise RuntimeError(
                f"Memory needs every layer of the model to be run on the finished chunk, but {missing} were skipped. "
                "Remove step caches (TeaCache, MagCache, FBCache) and layer-skipping nodes from the model's wire."
            )
        self._commits += 1
        self._versions.update(dict.fromkeys(self.table.reserved, self._commits))
        self.table.publish()
        frames = self.table.frames
        self.forget(set(frames) - set(select_sink_and_window(frames, frames[-1] + 1, self.chunk_frames, self.config)))

    def abandon(self) -> None:
        """Undo `reserve` after a commit that failed."""
        self.table.abandon()

    def forget(self, frames: Sequence[int] | set[int]) -> None:
        """Evict these frames."""
        self.table.evict(sorted(frames))
        for frame in frames:
            del self._versions[frame]

    def _empty(self, tokens: int) -> Tensor:
        spec = self.spec
        shape = (self.streams, spec.layers, tokens, spec.heads, spec.head_dim)
        return torch.empty(shape, dtype=spec.dtype, device=spec.device)

    def _rows(self, slot: int) -> slice:
        start = slot * self.spec.page_tokens
        return slice(start, start + self.spec.frame_tokens)

    def _gather(self, copies: Sequence[Copy], rotations: Tensor) -> None:
        assert self._pool is not None
        assert self._working is not None
        spec = self.spec
        for copy, rotation in zip(copies, rotations[: len(copies)], strict=True):
            source = self._rows(copy.placement.slot)
            target = slice(copy.place * spec.frame_tokens, (copy.place + 1) * spec.frame_tokens)
            for stream in range(self.streams):
                for layer in range(spec.layers):
                    at = (stream, layer)
                    gather_frame(
                        self._pool[0][(*at, source)],
                        self._pool[1][(*at, source)],
                        rotation,
                        self._working[0][(*at, target)],
                        self._working[1][(*at, target)],
                    )
