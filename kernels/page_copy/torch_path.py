"""Copy of pages with torch operations: on any device, from host memory too, and without waiting for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import Pages, rows_of


def copy_pages(
    pages: Pages, slots: Tensor, turns: Tensor, rotation: Tensor, first_rows: Tensor, k_out: Tensor, v_out: Tensor
) -> None:
    """As the reference."""
    page_tokens = pages.k.shape[2]
    place = torch.arange(page_tokens, device=pages.k.device)
    lengths = pages.lengths.to(pages.k.device)
    for head, chosen in enumerate(slots.to(pages.k.device).long()):
        last = lengths[head, chosen][:, None] - 1  # [M, 1]
        token = torch.minimum(place, last).long()  # beyond its length a page repeats its last token, into its place
        rows = (chosen[:, None] * page_tokens + token).flatten()  # [M x P]
        k, v = (rows_of(x)[head][rows].to(k_out.device) for x in (pages.k, pages.v))  # [M x P, D]
        if pages.rounding is not None:
            k_scale, v_scale = (x[head].flatten()[rows, None].to(k.device) for x in pages.rounding[:2])
            k, v = k * k_scale + pages.rounding.k_mean[head].to(k.device), v * v_scale
        target = (first_rows.long()[:, None] + token.to(k.device)).flatten()
        turn = rotation[turns[head].long()].repeat_interleave(page_tokens, dim=0)  # [M x P, pairs, 2, 2]
        k_out[head, target] = turned(k, turn).to(k_out.dtype)
        v_out[head, target] = v.to(v_out.dtype)


def turned(k: Tensor, rotation: Tensor) -> Tensor:
    """Keys `[rows, D]` in float32, their leading channels turned by `[rows, pairs, 2, 2]`."""
    channels = 2 * rotation.shape[1]
    pairs = k[:, :channels].float().unflatten(-1, (-1, 2))  # [rows, pairs, 2]
    spun = rotation[..., 0] * pairs[..., 0:1] + rotation[..., 1] * pairs[..., 1:2]
    return torch.cat([spun.flatten(1), k[:, channels:].float()], dim=1)
