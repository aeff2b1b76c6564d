"""The smaller video of an encoder's low-resolution branch: the film's pictures at a fraction of their size and rate."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .chunks import PICTURES_PER_FRAME


def small_pictures(pictures: Tensor, size: tuple[int, int, int], scale: int) -> Tensor:
    """Pictures `[F, H, W, 3]` of a piece, evenly chosen and shrunk to those of `size` latents: frames, rows and columns.

    A latent is `scale` pixels wide and high; the first latent frame is one picture, as a VAE has it.
    """
    frames, rows, columns = size
    kept = torch.linspace(0, len(pictures) - 1, PICTURES_PER_FRAME * (frames - 1) + 1).round().long()
    small = interpolate(pictures[kept].movedim(-1, 1), size=(rows * scale, columns * scale), mode="area")
    return small.movedim(1, -1)


def told_pieces(frames: int, chunk_frames: int, step: int) -> Iterator[tuple[int, int]]:
    """First frame and end of every piece that is encoded at once when a film of so many frames goes on by `chunk_frames`.

    A piece is a multiple of `step` frames; what is left of a chunk waits for the next one.
    """
    first = 0
    for film in (*range(chunk_frames, frames, chunk_frames), frames):
        end = first + (film - first) // step * step
        if end > first:
            yield first, end
        first = end
