"""Intervals that hold a mean or a share with 95 % confidence."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Interval = tuple[float, float]

Z = 1.959964
"""Standard deviations to each side that hold 95 % of a normal distribution."""
RESAMPLES = 4000


def mean(values: Sequence[float]) -> float:
    """The mean; ValueError without values."""
    if not values:
        raise ValueError("A mean needs at least one value, got none. Measure a film first.")
    return sum(values) / len(values)


def mean_interval(values: Sequence[float]) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), seeded: for scores that are no normal numbers, and differences."""
    x = torch.tensor(values, dtype=torch.float64)
    draws = torch.randint(len(x), (RESAMPLES, len(x)), generator=torch.Generator().manual_seed(0))
    low, high = x[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def share_interval(hits: Sequence[float]) -> Interval:
    """Wilson's interval (1927) of a share of 0s and 1s: it has a width also where all films agree."""
    count, share = len(hits), mean(hits)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    centre, scale = share + Z**2 / (2 * count), 1 + Z**2 / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
