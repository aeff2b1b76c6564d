"""A storyboard with its prompts encoded and its shots snapped to chunks: what travels on the storyboard socket."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..memory.chunks import Plan, plan_chunks, snap_shots, snapped_times
from ..memory.film_moments import Marks
from ..memory.storyboard import Storyboard, Transition

SLOWEST_FPS, FASTEST_FPS = 1.0, 120.0


@dataclass(frozen=True, slots=True)
class PlannedStoryboard:
    """Shots with their CONDITIONING, one negative for all, and the chunks that each shot gets."""

    board: Storyboard
    conditionings: tuple[Any, ...]
    negative: Any
    fps: float
    frames_per_chunk: int
    chunks_per_shot: tuple[int, ...]

    def plan(self, seeded_frames: int = 0) -> Plan:
        """The chunk plan; `seeded_frames` come before the first chunk (a start image)."""
        return plan_chunks(self.chunks_per_shot, self.frames_per_chunk, seeded_frames)

    def seeds(self, film_seed: int) -> tuple[int, ...]:
        """The seed of each shot: its own, or the film's."""
        return tuple(film_seed if shot.seed is None else shot.seed for shot in self.board.shots)

    @property
    def marks(self) -> Marks:
        """Pins and vetoes as they are written."""
        return Marks("of the Storyboard", self.board.pins, self.board.vetoes)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """How each shot begins."""
        return tuple(shot.transition for shot in self.board.shots)

    @property
    def recache_shots(self) -> frozenset[int]:
        """Shots that encode the window anew under their prompt."""
        return frozenset(i for i, shot in enumerate(self.board.shots) if shot.transition.kind == "recache")

    def to_json(self, plan: Plan | None = None) -> str:
        """The storyboard, and when each shot starts and ends in its film: that of `plan`, or one without start image."""
        times = snapped_times(plan or self.plan(), self.fps)
        rows = [
            {"start_seconds": start, "end_seconds": end, "chunks": chunks, "prompt": shot.prompt}
            for (start, end), chunks, shot in zip(times, self.chunks_per_shot, self.board.shots, strict=True)
        ]
        snapped = {"fps": self.fps, "frames_per_chunk": self.frames_per_chunk, "shots": rows}
        return json.dumps({**json.loads(self.board.to_json()), "plan": snapped}, ensure_ascii=False, indent=1)

    def summary(self) -> str:
        """One line a shot, for people."""
        times = snapped_times(self.plan(), self.fps)
        lines = [
            f"shot {number}: {start:.2f}s to {end:.2f}s, {chunks} chunks"
            for number, ((start, end), chunks) in enumerate(zip(times, self.chunks_per_shot, strict=True), start=1)
        ]
        return "\n".join(lines)


def plan_storyboard(
    board: Storyboard, conditionings: tuple[Any, ...], negative: Any, fps: float, frames_per_chunk: int
) -> PlannedStoryboard:
    """Snap the shots to chunks.

    Raises ValueError when the frame rate makes no film, or a shot is too short for a chunk.
    """
    if not SLOWEST_FPS <= fps <= FASTEST_FPS:
        raise ValueError(f"The film needs {SLOWEST_FPS:g} to {FASTEST_FPS:g} fps, got {fps:g}. Use 16 for Wan.")
    chunks = snap_shots([shot.seconds for shot in board.shots], fps, frames_per_chunk)
    return PlannedStoryboard(board, conditionings, negative, fps, frames_per_chunk, chunks)
