"""Put the tokens of a chunk into pages, and keep each page's mean: the one vector by which it is found again."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pages import Pages

LARGEST_CODE = 127


def write_pages(
    k: Tensor, v: Tensor, source: Tensor, slots: Tensor, pages: Pages, k_means: Tensor, v_means: Tensor | None
) -> None:
    """Fill the slots page by page; means are of what came in, before it is rounded."""
    for page, slot in enumerate(slots.tolist()):
        length = int(pages.lengths[0, slot])
        tokens = source[page, :length].long()
        k_page, v_page = (x[tokens].transpose(0, 1).float() for x in (k, v))  # [H, length, D]
        k_means[:, slot] = k_page.mean(dim=1)
        if v_means is not None:
            v_means[:, slot] = v_page.mean(dim=1)
        if pages.rounding is None:
            pages.k[:, slot, :length], pages.v[:, slot, :length] = k_page.to(k.dtype), v_page.to(v.dtype)
        else:
            k_scale, v_scale, k_mean = pages.rounding
            pages.k[:, slot, :length], k_scale[:, slot, :length] = rounded(k_page - k_mean[:, None])
            pages.v[:, slot, :length], v_scale[:, slot, :length] = rounded(v_page)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of `[..., D]` and the float32 scale `[...]` of each token: absolute maximum over 127, halves go up."""
    scale = x.abs().amax(dim=-1) * (1 / LARGEST_CODE)
    codes = (x / torch.where(scale > 0, scale, 1.0)[..., None] + 0.5).floor()
    return codes.to(torch.int8), scale
