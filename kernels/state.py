"""What attention over a set of keys leaves behind: enough to join it with attention over another set."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class AttentionState(NamedTuple):
    """Output of attention and the logarithm of the sum of its exponentials; an empty set gives 0 and -inf."""

    out: Tensor  # [L, H, D]
    lse: Tensor  # [L, H] float32, natural logarithm


class ReadState(NamedTuple):
    """What attention over dense tokens and lists leaves behind.

    `listed` is the log-sum-exp `[L, H]` over the lists alone, or None where they were not made apart, or there was nothing
    else: the share of a query's attention that went to its list is exp(listed - lse).
    """

    out: Tensor  # [L, H, D]
    lse: Tensor  # [L, H] float32, natural logarithm
    listed: Tensor | None = None
