"""What attention over a set of keys leaves behind: enough to join it with attention over another set."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionState(NamedTuple):
    """Output of attention and the logarithm of the sum of its exponentials; an empty set gives 0 and -inf."""

    out: Tensor  # [L, H, D]
    lse: Tensor  # [L, H] float32, natural logarithm
