"""Queries, keys and values of a trained model, so that lists and what they lose can be measured on more than noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..page_copy import time_rotation
from ..page_write.reference import rounded

RECORDED = Path(__file__).with_name("recorded.safetensors")
TENSORS = ("q", "k", "v", "own_k", "own_v")


class Recording(NamedTuple):
    """The last chunk of a film at some of its steps, the commit last, and what was committed before it.

    A head here is one head of one layer; everything is float32, free of time, tokens of a frame in the host's order.
    """

    q: Tensor  # [S, H, L, D]
    k: Tensor  # [H, T, D], the history
    v: Tensor  # [H, T, D]
    own_k: Tensor  # [S, H, L, D]
    own_v: Tensor  # [S, H, L, D]
    facts: Mapping[str, str]
    """frame_tokens, chunk_frames, time_channels, theta, the layers' numbers and which weights it was."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return int(self.facts["frame_tokens"])

    @property
    def frames(self) -> int:
        """Frames of history, without the chunk."""
        return self.k.shape[1] // self.frame_tokens

    @property
    def layers(self) -> list[str]:
        """The layer of each head."""
        numbers = self.facts["layers"].split()
        return [number for number in numbers for _ in range(self.k.shape[0] // len(numbers))]

    def in_time(self, x: Tensor, first_frame: int) -> Tensor:
        """Queries or keys `[..., L, D]` turned to their frames, the first of which is `first_frame`."""
        frames = x.shape[-2] // self.frame_tokens
        channels, theta = int(self.facts["time_channels"]), float(self.facts["theta"])
        rotation = time_rotation(range(first_frame, first_frame + frames), channels, theta, x.device)
        turn = rotation.repeat_interleave(self.frame_tokens, dim=0)  # [L, pairs, 2, 2]
        return torch.cat([turned(x[..., :channels], turn), x[..., channels:]], dim=-1)


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """Channels `[..., L, 2 x pairs]` turned pair by pair by `[L, pairs, 2, 2]`."""
    pairs = x.unflatten(-1, (-1, 2))
    spun: Tensor = rotation[..., 0] * pairs[..., 0:1] + rotation[..., 1] * pairs[..., 1:2]
    return spun.flatten(-2)


def save_recording(path: Path, recording: Recording) -> None:
    """Write it in 8 bits, a scale for each token."""
    tensors: dict[str, Tensor] = {}
    for name in TENSORS:
        codes, scale = rounded(getattr(recording, name).float())
        tensors |= {name: codes.contiguous(), f"{name}_scale": scale.contiguous()}
    save_file(tensors, path, dict(recording.facts))


def load_recording(path: Path = RECORDED) -> Recording:
    """What `save_recording` wrote."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) * file.get_tensor(f"{name}_scale")[..., None] for name in TENSORS}
        return Recording(**tensors, facts=file.metadata())
