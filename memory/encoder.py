"""The memory encoder: seconds of film as a few tokens that a video model reads beside the frames it makes.

After TinyHistory / PFP (arXiv 2512.23851): a high-resolution branch of strided convolutions, time before space, and a
low-resolution branch, which is the model's own embedding of a smaller film; their sum is the memory. The paper does not
say how convolutions and attention reach over time. Here neither looks across the frames that become one token, so
encoding a film piece by piece gives exactly the tokens of encoding it at once: nothing is ever encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .cross_attention import CrossAttention
from .encoder_spec import PATCH, EncoderSpec, LowBranch

Embed = Callable[[Tensor], Tensor]
"""A model's own embedding of patches: latents `[B, C, T, H, W]` to `[B, width, T, H / 2, W / 2]`."""


class MemoryEncoder(nn.Module):
    """Latents `[B, C, T, H, W]` to tokens `[B, t * h * w, width]`; see `EncoderSpec.grid` for t, h, w.

    `operations` gives the layers: `torch.nn`, or the host's own, which cast their weights as they are used.
    """

    def __init__(self, spec: EncoderSpec, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.spec = spec
        branch = HighResolutionBranch if spec.stages else LargePatchifier
        self.high = branch(spec, operations, **factory) if spec.high else None
        self.cross: CrossAttention | None = None
        if spec.cross_layers:
            self.cross = CrossAttention(
                spec.width, spec.hidden_width, spec.heads, spec.cross_layers, operations, **factory
            )

    def forward(self, latents: Tensor, embed: Embed, low: Tensor | None = None) -> Tensor:
        """Tokens alone, as `told` has them."""
        return self.told(latents, embed, low)[..., : self.spec.width or None]

    def told(self, latents: Tensor, embed: Embed, low: Tensor | None = None) -> Tensor:
        """Tokens, frame by frame, row by row, each with the last hidden state behind it where the model's layers read these:
        `[B, t * h * w, width + hidden_width]`. `low` are the latents of the smaller video, where the spec asks for them.

        Raises ValueError where the latents are too small or `low` is missing or of another size.
        """
        size = self.spec.low_size(*latents.shape[2:])
        grid = self.spec.grid(*latents.shape[2:])
        if min(grid) < 1:
            raise ValueError(
                f"A memory encoder of rate {self.spec.rate} needs latents of at least {self.spec.rate.frames} frames, "
                f"{PATCH * self.spec.rate.rows} x {PATCH * self.spec.rate.columns}, got {list(latents.shape[2:])}. "
                "Make the picture larger, or take an encoder of a lower rate."
            )
        if self.spec.low is LowBranch.VIDEO and (low is None or tuple(low.shape[2:]) != size):
            got = "none" if low is None else str(list(low.shape[2:]))
            raise ValueError(f"This memory encoder needs the latents of a smaller video {list(size)}, got {got}.")
        parts, hidden = [], None
        if isinstance(self.high, HighResolutionBranch):
            hidden = self.high.hidden(latents)
            parts.append(self.high.shown(hidden, len(latents), grid))
        elif self.high is not None:
            parts.append(self.high(latents))
        if self.spec.low is LowBranch.LATENTS:
            low = shrink(latents, self.spec)
        if self.spec.low is not LowBranch.NONE and low is not None:
            parts.append(embed(low))
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        tokens: Tensor = total.flatten(2).transpose(1, 2)
        if self.cross is None or hidden is None:
            return tokens
        return torch.cat([tokens, hidden.reshape(*tokens.shape[:2], -1).to(tokens)], dim=-1)


class HighResolutionBranch(nn.Module):
    """Convolutions that halve time, then space; attention among the tokens of a frame; a projection to the model's width.

    Time is halved by kernels of two frames side by side and space by kernels of four, so sizes are divided and rounded
    down. Halvings raise the width along `spec.stages`, where it then stays. Weights are drawn by whoever trains; a projection of
    zeros leaves the low-resolution branch alone, which is where training starts.
    """

    def __init__(self, spec: EncoderSpec, operations: Any, **factory: Any) -> None:
        super().__init__()
        width = spec.stages[0]
        convolutions = [operations.Conv3d(spec.channels, width, (1, 3, 3), padding=(0, 1, 1), **factory)]
        halvings = [((2, 3, 3), (2, 1, 1))] * _halvings(spec.rate.frames)
        halvings += [((1, 4, 4), (1, 2, 2))] * _halvings(PATCH * spec.rate.rows)
        for number, (kernel, stride) in enumerate(halvings, start=1):
            wider = spec.stages[min(number, len(spec.stages) - 1)]
            convolutions.append(operations.Conv3d(width, wider, kernel, stride=stride, padding=(0, 1, 1), **factory))
            width = wider
        last = spec.stages[-1]
        convolutions.append(operations.Conv3d(width, last, (1, 3, 3), padding=(0, 1, 1), **factory))
        self.convolutions = nn.ModuleList(convolutions)
        self.attention = nn.ModuleList(
            FrameAttention(last, spec.heads, operations, **factory) for _ in range(spec.attention_layers)
        )
        self.norm = operations.LayerNorm(last, **factory)
        self.project = operations.Linear(last, spec.width, **factory)

    def hidden(self, latents: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to the last hidden states `[B * t, h * w, last]`."""
        x = latents.to(self.project.weight.dtype)
        for convolution in self.convolutions:
            x = functional.silu(convolution(x))
        batch, _, frames, rows, columns = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(batch * frames, rows * columns, -1)  # [B * t, h * w, last]
        for layer in self.attention:
            x = layer(x)
        last: Tensor = self.norm(x)
        return last

    def shown(self, hidden: Tensor, batch: int, grid: tuple[int, int, int]) -> Tensor:
        """Hidden states to what they tell the model `[B, width, t, h, w]`."""
        tokens: Tensor = self.project(hidden)
        return tokens.view(batch, *grid, -1).permute(0, 4, 1, 2, 3)


class LargePatchifier(nn.Module):
    """The model's own way to embed patches with a larger one, as FramePack has it: one convolution over all that a token stands for.

    It begins as the low-resolution branch where training tiles the model's embedding over it.
    """

    def __init__(self, spec: EncoderSpec, operations: Any, **factory: Any) -> None:
        super().__init__()
        cell = (spec.rate.frames, PATCH * spec.rate.rows, PATCH * spec.rate.columns)
        self.patch = operations.Conv3d(spec.channels, spec.width, cell, stride=cell, **factory)

    def forward(self, latents: Tensor) -> Tensor:
        """`[B, C, T, H, W]` to `[B, width, t, h, w]`."""
        tokens: Tensor = self.patch(latents.to(self.patch.weight.dtype))
        return tokens


class FrameAttention(nn.Module):
    """Self-attention among the tokens of one frame, added to them."""

    def __init__(self, width: int, heads: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm = operations.LayerNorm(width, **factory)
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.out = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, C]` to the same."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, L, D] each
        read = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        added: Tensor = x + self.out(read)
        return added


def shrink(latents: Tensor, spec: EncoderSpec) -> Tensor:
    """Latents `[B, C, T, H, W]` averaged over what becomes one; what does not fill one is left out."""
    kernel = (spec.rate.frames, spec.rate.rows, spec.rate.columns)
    return functional.avg_pool3d(latents, kernel, stride=kernel)


def token_positions(spec: EncoderSpec, grid: tuple[int, int, int], first_frame: int = 0) -> Tensor:
    """Where tokens lie in the model's own frames, rows and columns `[t * h * w, 3]`: each in the middle of what it stands for."""
    rate = (spec.rate.frames, spec.rate.rows, spec.rate.columns)
    starts = (first_frame, 0, 0)
    axes = [
        start + torch.arange(count, dtype=torch.float32) * step + (step - 1) / 2
        for count, step, start in zip(grid, rate, starts, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def _halvings(factor: int) -> int:
    return factor.bit_length() - 1
