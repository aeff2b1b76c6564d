"""Moments of a film as an artist writes them (`12.5s, shot 2, 30s-34s`), and the frames that they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from .chunks import PICTURES_PER_FRAME, Plan
from .storyboard import MOMENTS, read_moment, split_moments


class Marks(NamedTuple):
    """Pins and vetoes in somebody's words; `place` says whose, as in "of the storyboard"."""

    place: str
    pins: str = ""
    vetoes: str = ""


NO_MARKS = Marks("of the Storyboard")


@dataclass(frozen=True, slots=True)
class Moments:
    """Frames that every later chunk reads, and frames that no later shot does."""

    pinned: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()

    def described(self, plan: Plan) -> Mapping[str, list[int]]:
        """As plain JSON, as far as they change a film: nobody reads the frames of its last chunk."""
        read = range(plan.chunks[-1].frames.start)
        return {name: sorted(getattr(self, name).intersection(read)) for name in ("pinned", "vetoed")}


NO_MOMENTS = Moments()


def find_moments(plan: Plan, fps: float, *marks: Marks) -> Moments:
    """Pinned and vetoed frames of all marks together.

    Raises ValueError for moments outside the film, and for frames that are pinned and vetoed.
    """
    pinned: set[int] = set()
    vetoed: set[int] = set()
    for place, pins, vetoes in marks:
        for name, text, frames in (("pin", pins, pinned), ("veto", vetoes, vetoed)):
            try:
                frames |= read_moments(text, plan, fps)
            except ValueError as problem:
                raise ValueError(f"In '{name}' {place}: {problem}") from problem
    both = sorted(pinned & vetoed)
    if both:
        raise ValueError(
            f"{len(both)} latent frames are pinned and vetoed, the first one is frame {both[0]}. Take them out of one list."
        )
    return Moments(frozenset(pinned), frozenset(vetoed))


def read_moments(text: str, plan: Plan, fps: float) -> frozenset[int]:
    """Frames of the film that a list of moments means: the frame at a time, all from one time to another, or a whole shot.

    Times are those of the finished film. Raises ValueError for what cannot be read or lies outside the film.
    """
    return frozenset(frame for part in split_moments(text) for frame in _frames_of(part, plan, fps))


def _frames_of(part: str, plan: Plan, fps: float) -> range:
    try:
        shot, first, last = read_moment(part)
    except ValueError as problem:
        raise ValueError(f"'{part}' needs to be {problem}, as in {MOMENTS}.") from problem
    if shot is None:
        return range(_frame_at(first, plan, fps, part), _frame_at(last, plan, fps, part) + 1)
    shots = plan.shots()
    if not 1 <= shot <= len(shots):
        raise ValueError(
            f"'{part}' needs to be one of the film's {len(shots)} shots. Write shot 1 to shot {len(shots)}."
        )
    chunks = shots[shot - 1]
    return range(0 if shot == 1 else chunks[0].frames.start, chunks[-1].frames.stop)  # a start image is in shot 1


def _frame_at(time: Fraction, plan: Plan, fps: float, part: str) -> int:
    picture = int(time * Fraction(str(fps)))
    if picture >= plan.pixel_frames:
        seconds = plan.pixel_frames / fps
        raise ValueError(f"'{part}' lies behind the film, which is {seconds:.1f} s long. Choose an earlier time.")
    return -(-picture // PICTURES_PER_FRAME)  # picture 0 is frame 0, pictures 1 to 4 are frame 1
