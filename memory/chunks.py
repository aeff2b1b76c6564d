"""The plan of a film: which frames are made together, and which shot each of them belongs to.

Integers only. Seconds become chunks once, in `snap_shots`; after that nothing is measured in seconds. While it
snaps, every frame counts as four pictures; in the decoded film the very first frame is a single picture, so everything
plays up to three pictures earlier than that, and `snapped_times` tells the times as they are in the film.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, groupby, pairwise
from typing import TypedDict

PICTURES_PER_FRAME = 4  # the temporal stride of the Wan and HunyuanVideo VAEs
_SEED_MASK = 2**63 - 1  # every backend of torch.Generator.manual_seed takes these


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames that are denoised together; `frames` are absolute, `index` and `shot` count from 0."""

    index: int
    frames: range
    shot: int


class ShotSummary(TypedDict):
    """Where one shot lies in a plan: first and end, the end not included."""

    chunks: tuple[int, int]
    frames: tuple[int, int]


class PlanSummary(TypedDict):
    """A plan as it is written into a manifest: ready for JSON and enough to compare two plans."""

    frames_per_chunk: int
    seeded_frames: int
    total_frames: int
    pixel_frames: int
    shots: list[ShotSummary]


@dataclass(frozen=True, slots=True)
class Plan:
    """The chunks of a film, in order and without gaps, behind `seeded_frames` frames that are given (a start image).

    Only the last chunk may be shorter than `frames_per_chunk`. A chunk never holds frames of two shots."""

    chunks: tuple[Chunk, ...]
    frames_per_chunk: int
    seeded_frames: int = 0

    def __post_init__(self) -> None:
        if self.frames_per_chunk < 1:
            raise ValueError(
                f"needed at least 1 frame for a chunk; got {self.frames_per_chunk}; choose 3 for most models"
            )
        if self.seeded_frames < 0:
            raise ValueError(f"needed 0 or more seeded frames; got {self.seeded_frames}; give the start image's frames")
        if not self.chunks:
            raise ValueError("needed a film of at least one chunk; got none; make the film longer")
        frame, shot = self.seeded_frames, 0
        for index, chunk in enumerate(self.chunks):
            is_last = index == len(self.chunks) - 1
            size = len(chunk.frames)
            fits = 0 < size <= self.frames_per_chunk if is_last else size == self.frames_per_chunk
            expected = range(frame, frame + size)
            if chunk.index != index or chunk.frames != expected or not fits or chunk.shot not in (shot, shot + 1):
                raise ValueError(
                    f"needed chunk {index} to follow the one before it; got {chunk}; plan with plan_chunks"
                )
            frame, shot = expected.stop, chunk.shot

    @property
    def total_frames(self) -> int:
        """Frames of the whole film, seeded ones included."""
        return self.chunks[-1].frames.stop

    @property
    def pixel_frames(self) -> int:
        """Pictures of the decoded film: 4(T-1)+1."""
        return PICTURES_PER_FRAME * (self.total_frames - 1) + 1

    @property
    def longest_chunk(self) -> int:
        """Frames of the longest chunk."""
        return max(len(chunk.frames) for chunk in self.chunks)

    def shots(self) -> list[tuple[Chunk, ...]]:
        """The chunks of each shot."""
        return [tuple(chunks) for _, chunks in groupby(self.chunks, key=lambda chunk: chunk.shot)]

    def summary(self) -> PlanSummary:
        """The plan as plain data, one row a shot."""
        return {
            "frames_per_chunk": self.frames_per_chunk,
            "seeded_frames": self.seeded_frames,
            "total_frames": self.total_frames,
            "pixel_frames": self.pixel_frames,
            "shots": [
                {
                    "chunks": (chunks[0].index, chunks[-1].index + 1),
                    "frames": (chunks[0].frames.start, chunks[-1].frames.stop),
                }
                for chunks in self.shots()
            ],
        }


def snap_shots(durations_seconds: Sequence[float], fps: float, frames_per_chunk: int) -> tuple[int, ...]:
    """Chunks of each shot, boundaries and the film's end snapped to the nearest chunk start (the later one at a tie).

    The running total is rounded, not each length, so no boundary is off by more than half a chunk however many shots
    there are. A shot that would get no chunk raises ValueError."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"needed a frame rate above 0; got {fps}; choose 16 for Wan")
    if frames_per_chunk < 1:
        raise ValueError(f"needed at least 1 frame for a chunk; got {frames_per_chunk}; choose 3 for most models")
    chunk_seconds = frames_per_chunk * PICTURES_PER_FRAME / _exact(fps)
    ends = accumulate(_exact(seconds) for seconds in durations_seconds)
    boundaries = [0, *(math.floor(end / chunk_seconds + Fraction(1, 2)) for end in ends)]
    counts = tuple(end - start for start, end in pairwise(boundaries))
    for shot, (count, seconds) in enumerate(zip(counts, durations_seconds, strict=True), start=1):
        if count < 1:
            shortest = math.ceil(chunk_seconds * 100) / 100
            raise ValueError(
                f"shot {shot} is too short: needed about {shortest:g} s, the length of a chunk "
                f"({frames_per_chunk} frames of {PICTURES_PER_FRAME} pictures at {fps:g} pictures a second); "
                f"got {seconds:g} s; make the shot at least {shortest:g} s long, join it with the one beside it, or "
                "choose fewer frames per chunk"
            )
    return counts


def plan_chunks(chunks_per_shot: Sequence[int], frames_per_chunk: int, seeded_frames: int = 0) -> Plan:
    """The plan of a film whose shots have these numbers of whole chunks."""
    shots = [shot for shot, count in enumerate(chunks_per_shot) for _ in range(count)]
    starts = (seeded_frames + index * frames_per_chunk for index in range(len(shots)))
    chunks = tuple(
        Chunk(index, range(start, start + frames_per_chunk), shot)
        for index, (start, shot) in enumerate(zip(starts, shots, strict=True))
    )
    return Plan(chunks, frames_per_chunk, seeded_frames)


def plan_frames(total_frames: int, frames_per_chunk: int, seeded_frames: int = 0) -> Plan:
    """The plan of one shot that ends the film at `total_frames`, seeded ones included; the last chunk may be shorter."""
    if frames_per_chunk < 1:
        raise ValueError(f"needed at least 1 frame for a chunk; got {frames_per_chunk}; choose 3 for most models")
    starts = range(seeded_frames, total_frames, frames_per_chunk)
    chunks = tuple(
        Chunk(index, range(start, min(start + frames_per_chunk, total_frames)), 0) for index, start in enumerate(starts)
    )
    return Plan(chunks, frames_per_chunk, seeded_frames)


def snapped_times(plan: Plan, fps: float) -> tuple[tuple[float, float], ...]:
    """Start and end of each shot in seconds of the decoded film; seeded frames belong to the first shot."""
    starts = [0, *(first_picture(chunks[0].frames.start) for chunks in plan.shots()[1:])]
    seconds = [float(picture / _exact(fps)) for picture in [*starts, plan.pixel_frames]]
    return tuple(pairwise(seconds))


def first_picture(frame: int) -> int:
    """The index of the first picture that a frame becomes: frame 0 is one picture, every other one four."""
    return max(0, PICTURES_PER_FRAME * (frame - 1) + 1)


def chunk_seed(seed: int, chunk_index: int, stream: str = "noise") -> int:
    """The seed of one random stream of one chunk, below 2^63, the same on every machine and in every version.

    It does not depend on how long the film is, so a longer film starts with the chunks of the shorter one."""
    digest = hashlib.sha256(f"longreel/{stream}/{seed}/{chunk_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") & _SEED_MASK


def _exact(number: float) -> Fraction:
    """The decimal that was written, not the binary number next to it: 0.1 is a tenth."""
    return Fraction(str(number))
