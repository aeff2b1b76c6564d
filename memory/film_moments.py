"""Moments of a film as an artist writes them: `12.5s, shot 2, 30s-34s`."""

from __future__ import annotations

import re
from fractions import Fraction

from .chunks import PICTURES_PER_FRAME, Plan
from .storyboard import read_seconds

EXAMPLE = "12.5s, shot 2, 30s-34s"
_SHOT = re.compile(r"shot\s+([0-9]{1,6})", re.IGNORECASE)


def read_moments(text: str, plan: Plan, fps: float) -> frozenset[int]:
    """Frames of the film that a list of moments means: the frame at a time, all from one time to another, or a whole shot.

    Times are those of the finished film. Raises ValueError for what cannot be read or lies outside the film.
    """
    frames: set[int] = set()
    for part in (piece.strip() for piece in re.split(r"[,;\n]", text)):
        if part:
            frames.update(_frames_of(part, plan, fps))
    return frozenset(frames)


def _frames_of(part: str, plan: Plan, fps: float) -> range:
    shot = _SHOT.fullmatch(part)
    if shot is not None:
        shots = plan.shots()
        number = int(shot[1])
        if not 1 <= number <= len(shots):
            raise ValueError(
                f"'{part}' needs to be one of the film's {len(shots)} shots. Write shot 1 to shot {len(shots)}."
            )
        chunks = shots[number - 1]
        return range(0 if number == 1 else chunks[0].frames.start, chunks[-1].frames.stop)  # a start image is in shot 1
    times = [read_seconds(end.strip()) for end in part.split("-")]
    known = [time for time in times if time is not None]
    if len(known) != len(times) or len(times) > 2:
        raise ValueError(f"'{part}' needs to be a time, two times or a shot, as in {EXAMPLE}.")
    if len(known) == 2 and known[0] > known[1]:
        raise ValueError(f"'{part}' ends before it begins. Write the earlier time first.")
    first, last = (_frame_at(time, plan, fps, part) for time in (known[0], known[-1]))
    return range(first, last + 1)


def _frame_at(time: Fraction, plan: Plan, fps: float, part: str) -> int:
    picture = int(time * Fraction(str(fps)))
    if picture >= plan.pixel_frames:
        seconds = plan.pixel_frames / fps
        raise ValueError(f"'{part}' lies behind the film, which is {seconds:.1f} s long. Choose an earlier time.")
    return -(-picture // PICTURES_PER_FRAME)  # picture 0 is frame 0, pictures 1 to 4 are frame 1
