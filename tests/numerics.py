"""Every tolerance of the tests, with its reason. Errors are max |a - b| / max |b| unless a name says otherwise."""

from __future__ import annotations

from torch import Tensor

# One forward in float32: the same products in another order of summation.
FORWARD_ERROR = 1e-5
# A rollout feeds each chunk's rounding into the next ones.
ROLLOUT_ERROR = 1e-4
# Guidance of 5 multiplies the rounding between the two histories by 5, through every chunk.
GUIDANCE_ERROR = 1e-3
# Pictures of 0 to 1, absolute: the same operations in the same groups, so on one machine the bits are equal.
STREAMED_PICTURE_ERROR = 1e-5
# Standard deviation below which a decoded picture of random latents counts as flat, so that comparing it proves nothing.
NOT_FLAT = 0.01


def relative_error(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value of `b`, in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max())
