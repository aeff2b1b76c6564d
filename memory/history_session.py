"""The run of a film that remembers through encoders: how often its history is read, and what that takes of the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from .committed_history import KeptLayers
from .encoded_history import EncodedHistory, History


class Reading(Enum):
    """How often a model reads history: in every step, in the first step of a chunk for all others, or when it is appended."""

    EVERY_STEP = "every step"
    ONCE_A_CHUNK = "once a chunk"
    ONCE_A_FILM = "once a film"

    @property
    def described(self) -> dict[str, bool]:
        """By which settings a film on disk knows it; the first is none."""
        return {
            Reading.EVERY_STEP: {},
            Reading.ONCE_A_CHUNK: {"read_once": True},
            Reading.ONCE_A_FILM: {"committed": True},
        }[self]


def history_bytes(tokens: int, width: int, hidden_width: int, dtype: torch.dtype, kept_layers: int) -> int:
    """Bytes on the card: tokens are in pieces and joined once for the frames being made, beside what is kept of layers.

    Hidden states are in the same pieces, and in their place the keys and values that all layers read of them.
    """
    return (2 * (1 + kept_layers) * width + 3 * hidden_width) * tokens * dtype.itemsize


@dataclass(slots=True)
class HistorySession:
    """State of one run: the history, the most tokens that it reads at once, their width and that of hidden states behind them, and the
    tokens of a frame being made.

    `kept_layers` is 0, or of how many layers keys and values are kept: from the first call for the frames being made to the others,
    or, where the history has `commits`, for the whole film.
    """

    history: EncodedHistory
    tokens: int
    width: int
    hidden_width: int
    frame_tokens: int
    dtype: torch.dtype
    kept_layers: int = 0
    host_bytes: int = 0
    tier: str = "card"
    _kept: KeptLayers = field(default_factory=dict)
    _kept_of: History | None = None

    @property
    def reading(self) -> Reading:
        """How often history is read."""
        if not self.kept_layers:
            return Reading.EVERY_STEP
        return Reading.ONCE_A_CHUNK if self.history.commits is None else Reading.ONCE_A_FILM

    @property
    def peak_bytes(self) -> int:
        """Bytes on the card."""
        return history_bytes(self.tokens, self.width, self.hidden_width, self.dtype, self.kept_layers)

    def kept(self, history: History) -> KeptLayers:
        """What calls before this one kept of `history`; what was kept of another is forgotten."""
        if history is not self._kept_of:
            self._kept, self._kept_of = {}, history
        return self._kept

    def forget(self) -> None:
        """Let go of what was kept for a chunk: the next call keeps it anew."""
        self._kept, self._kept_of = {}, None

    def release(self) -> None:
        """Drop every tensor: the run is over."""
        self.forget()
        self.history.release()

    @property
    def coming_bytes(self) -> int:
        """Bytes on the card that the run may still take: all but what is committed."""
        return self.peak_bytes - (0 if self.history.commits is None else self.history.commits.bytes)

    def room(self, device: torch.device) -> Tensor:
        """So many bytes on the device, held as long as this is."""
        return torch.empty(max(0, self.coming_bytes), dtype=torch.uint8, device=device)
