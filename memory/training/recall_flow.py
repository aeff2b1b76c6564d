"""How much moves in a video: dense optical flow by polynomial expansion (Farnebäck 2003)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

RADIUS, SPREAD = 4, 1.8
"""Neighbourhood, in pixels, in which a picture is taken for a polynomial, and the Gaussian that weighs it."""
WINDOW_RADIUS, WINDOW_SPREAD = 9, 4.0
"""Neighbourhood in which all pixels are taken to move alike."""
ITERATIONS = 4
RIDGE = 1e-7
"""Squared curvature (picture levels of 0 to 1 a pixel squared) below which a surface is too plain to be followed."""
FASTEST = 0.05
"""Share of the pixels, the fastest ones, that decide how dynamic a video is (VBench, arXiv:2311.17982)."""


@lru_cache(maxsize=1)
def _polynomial_kernels() -> Tensor:
    """Least-squares coefficients of x, y, x^2, y^2 and xy as filters: `[5, 1, n, n]`."""
    at = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    y, x = torch.meshgrid(at, at, indexing="ij")
    weight = torch.exp(-(x.square() + y.square()) / (2 * SPREAD**2))
    basis = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).flatten(1)  # [6, n * n]
    weighted = basis * weight.flatten()
    filters: Tensor = torch.linalg.solve(weighted @ basis.T, weighted)
    return filters[1:].view(5, 1, *x.shape).float()


@lru_cache(maxsize=1)
def _window_kernel() -> Tensor:
    at = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=torch.float32)
    weight = torch.exp(-at.square() / (2 * WINDOW_SPREAD**2))
    return weight / weight.sum()


def _filtered(pictures: Tensor, kernels: Tensor, radius: int) -> Tensor:
    padded = functional.pad(pictures, (radius, radius, radius, radius), mode="replicate")
    return functional.conv2d(padded, kernels.to(pictures))


def _averaged(fields: Tensor) -> Tensor:
    """Each channel of `[N, C, H, W]` averaged over the window."""
    count, line = fields.shape[1], _window_kernel()
    padded = functional.pad(fields, (WINDOW_RADIUS,) * 4, mode="replicate")
    rows = functional.conv2d(padded, line.view(1, 1, -1, 1).repeat(count, 1, 1, 1), groups=count)
    return functional.conv2d(rows, line.view(1, 1, 1, -1).repeat(count, 1, 1, 1), groups=count)


def _moved(fields: Tensor, flow: Tensor) -> Tensor:
    """`fields` `[N, C, H, W]` read where each pixel went, by `flow` `[N, 2, H, W]` in pixels."""
    height, width = fields.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    grid = torch.stack([(x + flow[:, 0]) * (2 / (width - 1)) - 1, (y + flow[:, 1]) * (2 / (height - 1)) - 1], dim=-1)
    return functional.grid_sample(fields, grid, padding_mode="border", align_corners=True)


def optical_flow(before: Tensor, after: Tensor) -> Tensor:
    """Where each pixel of `before` went in `after`, both `[N, H, W]` in 0..1: `[N, 2, H, W]`, pixels, x first.

    One scale: movements of up to about 4 pixels are found. Where a surface is plain the flow fades to 0.
    """
    first, second = (_filtered(pictures[:, None], _polynomial_kernels(), RADIUS) for pictures in (before, after))
    flow = torch.zeros(len(before), 2, *before.shape[1:])
    for _ in range(ITERATIONS):
        there = _moved(second, flow)
        slope = (first[:, :2] - there[:, :2]) / 2
        curve = (first[:, 2:] + there[:, 2:]) / 2
        xx, yy, xy = curve[:, 0], curve[:, 1], curve[:, 2] / 2
        right = slope[:, 0] + xx * flow[:, 0] + xy * flow[:, 1]
        down = slope[:, 1] + xy * flow[:, 0] + yy * flow[:, 1]
        terms = [xx * xx + xy * xy, yy * yy + xy * xy, xy * (xx + yy), xx * right + xy * down, xy * right + yy * down]
        a, d, b, u, v = _averaged(torch.stack(terms, dim=1)).unbind(1)
        a, d = a + RIDGE, d + RIDGE
        flow = torch.stack([d * u - b * v, a * v - b * u], dim=1) / (a * d - b * b)[:, None]
    return flow


def dynamic_degree(pictures: Tensor) -> float:
    """Mean length of the fastest twentieth of all movements between neighbouring pictures `[F, H, W, 3]`, in pixels."""
    grey = pictures.float().mean(-1)
    lengths = optical_flow(grey[:-1], grey[1:]).norm(dim=1).flatten(1)
    fastest: Tensor = lengths.topk(max(1, int(lengths.shape[1] * FASTEST)), dim=1).values
    return fastest.mean().item()
