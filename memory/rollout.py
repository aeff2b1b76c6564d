"""The chunk loop: begin, denoise, commit, publish. It takes callables and knows no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .chunks import Chunk, Plan
from .prompt_bank import Brought
from .read_tally import BankReads
from .selections import Selections
from .session import RunSession


@dataclass(frozen=True, slots=True)
class FinishedChunk:
    """A chunk whose frames are clean `[B, C, T, H, W]` and remembered.

    `read_frames` were read by every query, those that are `brought` because of a pin or a prompt; with what each chose
    from older ones, it read `frames_worth` in keys of a frame: `bank_reads`, where that was counted, and `selections`, where
    they are kept and the chunk was not `replayed`. `layer_shares` is which
    share of the layers read each of the `read_frames`: all, unless a prompt bank chooses for each layer. `excluded` frames were
    not read because they are `vetoed`, or closed by a `cut`. `milliseconds` by part (`Stopwatch`): recache, denoise and
    commit, and inside them select and copy, pages of the bank. `moved_bytes` came from where memory lies to where it is
    read, `stayed_bytes` were there from the chunk before; `remembered` frames were readable behind the chunk.
    """

    chunk: Chunk
    latents: Tensor
    replayed: bool
    read_frames: tuple[int, ...]
    brought: Mapping[int, Brought]
    frames_worth: float
    recached_frames: tuple[int, ...]
    milliseconds: Mapping[str, float]
    layer_shares: Mapping[int, float] = field(default_factory=dict)
    excluded: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bank_reads: BankReads | None = None
    selections: Selections | None = None
    moved_bytes: int = 0
    stayed_bytes: int = 0
    remembered: int = 0

    @property
    def seconds(self) -> float:
        """How long the chunk took."""
        return sum(self.milliseconds.values()) / 1000

    @property
    def brought_frames(self) -> tuple[int, ...]:
        """Frames that are `brought`, oldest first."""
        return tuple(sorted(self.brought))


class Rollout:
    """A film in the making.

    `denoise(chunk)` returns clean latents, `commit(latents, shot)` runs the model once at t = 0 under the prompt of that
    shot, `load(index)` returns the latents of a chunk that an earlier run finished, or None. Such chunks are committed
    but not denoised, so a resumed film remembers exactly what the uninterrupted one did.
    """

    def __init__(
        self,
        session: RunSession,
        denoise: Callable[[Chunk], Tensor],
        commit: Callable[[Tensor, int], None],
        load: Callable[[int], Tensor | None],
    ) -> None:
        self._session, self._denoise, self._commit, self._load = session, denoise, commit, load
        self._recent: dict[range, Tensor] = {}

    def run(self, plan: Plan, recache_shots: frozenset[int], start: Tensor | None) -> Iterator[FinishedChunk]:
        """Make the plan's chunks in order; `start` `[B, C, plan.seeded_frames, H, W]` is remembered before the first.

        At the first chunk of a shot in `recache_shots` the window is encoded anew under that shot's prompt.
        """
        if start is not None:
            self._remember(range(plan.seeded_frames), start, shot=0)
        shot = 0
        for chunk in plan.chunks:
            memory, watch = self._session.memory, self._session.memory.watch
            recached: tuple[int, ...] = ()
            if chunk.shot != shot and chunk.shot in recache_shots:
                with watch.timed("recache"):
                    recached = self._recache(chunk.shot)
            shot = chunk.shot
            with watch.timed("denoise"):
                self._session.begin(chunk.frames, chunk.shot)
                read_frames, brought, frames_worth = memory.read_frames, memory.brought, memory.frames_worth
                shares, excluded = memory.layer_shares, memory.excluded
                saved = self._load(chunk.index)
                latents = self._denoise(chunk) if saved is None else saved
            with watch.timed("commit"):
                self._write(chunk.frames, latents, chunk.shot)
            yield FinishedChunk(
                chunk,
                latents,
                saved is not None,
                read_frames,
                brought,
                frames_worth,
                recached,
                milliseconds=watch.read(),
                layer_shares=shares,
                excluded=excluded,
                bank_reads=memory.bank_reads(),
                selections=memory.selections(chunk.frames) if saved is None else None,
                moved_bytes=memory.moved_bytes,
                stayed_bytes=memory.stayed_bytes,
                remembered=len(memory.table.frames),
            )

    def _remember(self, frames: range, latents: Tensor, shot: int) -> None:
        self._session.begin(frames, shot)
        self._write(frames, latents, shot)

    def _write(self, frames: range, latents: Tensor, shot: int) -> None:
        with self._session.committing():
            self._commit(latents, shot)
        self._recent[frames] = latents
        read = set(self._session.memory.coming.read)
        self._recent = {past: kept for past, kept in self._recent.items() if read.intersection(past)}

    def _recache(self, shot: int) -> tuple[int, ...]:
        """Frames of the window, encoded anew, oldest first; chunks that hold sink frames or lie before a cut stay as they are.

        Without a window that is all of the film behind the sink.
        """
        memory = self._session.memory
        first = max(memory.config.sink_frames, self._session.reach(shot).window_from)
        pieces = [(frames, latents) for frames, latents in self._recent.items() if frames.start >= first]
        stale = {frame for frames, _ in pieces for frame in frames}
        memory.forget(stale.intersection(memory.table.frames))
        for frames, latents in sorted(pieces, key=lambda piece: piece[0].start):
            self._remember(frames, latents, shot)
        return tuple(sorted(stale))
