"""Writing of pages with torch operations, on any device and without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import Pages
from .reference import rounded


def write_pages(
    k: Tensor, v: Tensor, source: Tensor, slots: Tensor, pages: Pages, k_means: Tensor, v_means: Tensor | None
) -> None:
    """As the reference; what a short page leaves is filled with its last token, which nobody reads."""
    lengths = pages.lengths[0, slots.long()][:, None]  # [M, 1]
    place = torch.arange(source.shape[1], device=source.device)
    tokens = source.gather(1, torch.minimum(place, lengths - 1).long()).long()  # [M, P]
    share = ((place < lengths) / lengths)[..., None]  # [M, P, 1]
    at = slots.long()
    rounding = pages.rounding
    for head in range(k.shape[1]):
        k_page, v_page = k[:, head][tokens], v[:, head][tokens]  # [M, P, D]
        k_means[head, at] = (k_page * share).sum(dim=1).to(k_means.dtype)
        if v_means is not None:
            v_means[head, at] = (v_page * share).sum(dim=1).to(v_means.dtype)
        if rounding is not None:
            k_page, rounding.k_scale[head, at] = rounded(k_page.float() - rounding.k_mean[head])
            v_page, rounding.v_scale[head, at] = rounded(v_page.float())
        pages.k[head, at], pages.v[head, at] = k_page, v_page
