"""What a model without a causal memory reads of its film: tokens of history, and where and when they lie."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .encoder_spec import Modulation


class History(NamedTuple):
    """Tokens `[1 or B, M, width]` that join the model's own, and their positions `[M, 3]`: frame, row and column.

    Frames count from the first of those being made, so history lies below 0; `target_frames` `[T]` are the times of those
    being made where they are not simply 0, 1, 2, ...
    """

    tokens: Tensor
    positions: Tensor
    modulation: Modulation
    target_frames: Tensor | None = None
