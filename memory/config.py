"""Settings of a memory: what the user chose (`MemoryConfig`) and what the model is (`KVSpec`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .positions import PositionPolicy

PAGE_TOKENS = 64
SMALL_PAGE_TOKENS = 8
MIN_PAGES_PER_FRAME = 6
LONGEST_TRAINED_FRAMES = 21  # latent frames of the 81-frame clips that Wan 2.1 was trained on


def page_tokens_for(frame_tokens: int) -> int:
    """Tokens of a page: 64 where a frame still has six pages of that size, 8 in tiny frames."""
    return PAGE_TOKENS if frame_tokens >= MIN_PAGES_PER_FRAME * PAGE_TOKENS else SMALL_PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Keys and values of one model at one picture size, as the host adapter reports them."""

    layers: int
    heads: int
    head_dim: int
    frame_tokens: int
    page_tokens: int
    time_channels: int
    theta: float
    dtype: torch.dtype
    device: torch.device

    @property
    def pages_per_frame(self) -> int:
        """Pages of a frame; the last one may be ragged."""
        return -(-self.frame_tokens // self.page_tokens)

    @property
    def frame_bytes(self) -> int:
        """Bytes of the keys and values of one stored frame over all layers, padding of its last page included."""
        tokens = self.pages_per_frame * self.page_tokens
        return 2 * self.layers * tokens * self.heads * self.head_dim * self.dtype.itemsize

    @property
    def read_frame_bytes(self) -> int:
        """Bytes of the keys and values of one frame in the working set over all layers."""
        return 2 * self.layers * self.frame_tokens * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How much of the film is remembered; every count is latent frames.

    `window_frames` counts the chunk being made, as LongLive and MemFlow do; None reads everything.
    Raises ValueError when a count makes no sense.
    """

    window_frames: int | None = 9
    sink_frames: int = 3
    positions: PositionPolicy = PositionPolicy.ABSOLUTE
    trained_frames: int = LONGEST_TRAINED_FRAMES

    def __post_init__(self) -> None:
        if self.window_frames is not None and self.window_frames < 1:
            raise ValueError(f"The window needs at least 1 frame, got {self.window_frames}. Turn the window up.")
        if self.sink_frames < 0:
            raise ValueError(f"The sink needs 0 or more frames, got {self.sink_frames}.")
        if self.trained_frames < 1:
            raise ValueError(f"The trained length needs at least 1 frame, got {self.trained_frames}.")

    def check_chunk(self, chunk_frames: int) -> None:
        """Raises ValueError when a chunk of this many frames does not fit into the window or the trained length."""
        if self.window_frames is not None and chunk_frames > self.window_frames:
            raise ValueError(
                f"A chunk of {chunk_frames} frames is longer than the window of {self.window_frames} frames: the window "
                f"counts the chunk being made. Set 'window' of Sparse KV Memory to {chunk_frames} or more (add that node "
                "if it is not there), or turn 'chunk' of Storyboard down."
            )
        if self.positions is PositionPolicy.CLAMPED and chunk_frames >= self.trained_frames:
            raise ValueError(
                f"Positions 'clamped' need a trained length above the chunk's {chunk_frames} frames, got "
                f"{self.trained_frames}. Turn 'trained_frames' of Sparse KV Memory up, or choose other positions."
            )

    def history_frames(self, chunk_frames: int, film_frames: int) -> int:
        """Older frames that a chunk may read at most, sink and window together, in a film of this length."""
        older = max(film_frames - chunk_frames, 0)
        if self.window_frames is None:
            return older
        return min(self.sink_frames + self.window_frames - chunk_frames, older)
