"""Gather remembered pages and turn their keys to the time at which they are read.

Rotary embedding (RoFormer, eq. 34) turns each pair of channels by position x frequency. Time and space own disjoint
pairs, so a key stored with its spatial turn alone becomes a key at any time by turning its leading time pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..pages import Pages


def time_rotation(times: Sequence[float], time_channels: int, theta: float, device: torch.device) -> Tensor:
    """Rotations `[len(times), time_channels / 2, 2, 2]` in float32, computed in float64 so that frame 100,000 is exact."""
    pairs = time_channels // 2
    exponent = torch.arange(pairs, dtype=torch.float64) * 2.0 / time_channels
    angle = torch.tensor(times, dtype=torch.float64)[:, None] * theta**-exponent  # [T, pairs]
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.stack((cos, -sin), dim=-1), torch.stack((sin, cos), dim=-1))
    rotation = torch.stack(rows, dim=-2)  # [T, pairs, 2, 2]
    return rotation.to(device=device, dtype=torch.float32)


def gather_frame(k_source: Tensor, v_source: Tensor, rotation: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    """Copy one frame's values, and its keys turned by `rotation`, into the working set.

    Sources and outputs are `[L, H, D]`, `rotation` is `[time_channels / 2, 2, 2]` float32. Writes `k_out` and `v_out`.
    """
    channels = 2 * rotation.shape[0]
    pairs = k_source[..., :channels].float().unflatten(-1, (-1, 2))  # [L, H, pairs, 2]
    turned = rotation[..., 0] * pairs[..., 0:1] + rotation[..., 1] * pairs[..., 1:2]  # [L, H, pairs, 2]
    k_out[..., :channels] = turned.flatten(-2).to(k_out.dtype)
    k_out[..., channels:] = k_source[..., channels:]
    v_out.copy_(v_source)


def copy_pages(
    pages: Pages, slots: Tensor, turns: Tensor, rotation: Tensor, first_rows: Tensor, k_out: Tensor, v_out: Tensor
) -> None:
    """Copy page by page: back to numbers first, mean included, then turned."""
    for head, page in itertools.product(*map(range, slots.shape)):
        slot = int(slots[head, page])
        length, first = int(pages.lengths[head, slot]), int(first_rows[page])
        k, v = pages.k[head, slot, :length], pages.v[head, slot, :length]  # [length, D]
        if pages.rounding is not None:
            k_scale, v_scale, k_mean = pages.rounding
            k = k * k_scale[head, slot, :length, None] + k_mean[head]
            v = v * v_scale[head, slot, :length, None]
        rows = slice(first, first + length)
        gather_frame(k, v, rotation[int(turns[head, page])], k_out[head, rows], v_out[head, rows])
