"""Reading in gated branches while gates are trained: the same mathematics as `RunSession`, with masks instead of pages.

Keys of a clip are whole and on one device, so every branch is plain attention over all older tokens with a mask, and
gradients flow. What is chosen follows from the mean queries and keys as everywhere, and has no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.page_copy import time_rotation
from ...kernels.page_scores import group_means, select_pages
from ..compression import pooling
from ..config import MemoryConfig
from ..frame_pages import FramePages
from ..gates import Gates
from ..select import select_frames


class GatedReader:
    """Reads the chunks of clips, layer by layer, as a memory of `config` with `gates` reads them at absolute positions.

    `time_channels` and `theta` are those of the model's rotary embedding. Shortlists have room for all pages of a clip.
    """

    def __init__(
        self,
        gates: Gates,
        config: MemoryConfig,
        frame: FramePages,
        chunk_frames: int,
        time_channels: int,
        theta: float,
    ) -> None:
        assert config.bank is not None
        self.gates, self.config, self.bank, self.frame, self.chunk_frames = (
            gates,
            config,
            config.bank,
            frame,
            chunk_frames,
        )
        self._time_channels, self._theta = time_channels, theta
        self._order = torch.tensor(frame.order)
        self._pool = pooling(frame)
        self._layer, self._x = -1, torch.empty(0)

    @contextmanager
    def listening(self, network: Any) -> Iterator[None]:
        """Hear which layer of the host's model attends, and to which hidden state."""

        def hear(layer: int) -> Any:
            def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
                self._layer, self._x = layer, given[0]

            return keep

        handles = [layer.self_attn.register_forward_pre_hook(hear(index)) for index, layer in enumerate(network.blocks)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._x = torch.empty(0)

    def read(self, chunk: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output `[B, H, L, D]` of a chunk's queries over `k` and `v` `[B, H, older + L, D]`, its own tokens last."""
        layer, x = self.heard(chunk, q.shape[2])
        values = self.gates.values(layer, x).transpose(1, 2)  # [B, H, L, branches]
        return self.gates.mix(values, self.branches(chunk, q, k, v))

    def heard(self, chunk: int, tokens: int) -> tuple[int, Tensor]:
        """Which layer attends, and the hidden state `[B, L, C]` of a chunk of this many tokens there."""
        return self._layer, self._x[:, chunk * tokens : (chunk + 1) * tokens]

    def branches(self, chunk: int, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """What each branch finds, `[B, H, L, D]`, by its name; arguments are those of `read`."""
        tokens = len(self.frame.order)
        start = chunk * self.chunk_frames
        choice = select_frames(range(start), start, self.chunk_frames, self.config)
        seen = [*choice.read, *range(start, start + self.chunk_frames)]
        rows = torch.cat([torch.arange(frame * tokens, (frame + 1) * tokens) for frame in seen])
        found = {"window": scaled_dot_product_attention(q, k[:, :, rows], v[:, :, rows])}
        if choice.bank:
            found["selection"] = self._selected(start, choice.bank, q, k, v)
        if "compression" in self.gates.form.branches:
            k_means, v_means = (self._means(x).flatten(2, 3) for x in (k, v))  # [B, H, pages, D]
            found["compression"] = scaled_dot_product_attention(q, k_means, v_means)
        return found

    def _means(self, x: Tensor) -> Tensor:
        """Means `[B, H, T, pages, D]` of the pages of all frames of `[B, H, T x tokens, D]`."""
        return torch.einsum("pt,bhftd->bhfpd", self._pool.to(x), x.unflatten(2, (-1, len(self.frame.order))))

    def _selected(self, start: int, bank: tuple[int, ...], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, own, _ = q.shape
        tokens, count = len(self.frame.order), self.frame.count
        place = torch.arange(tokens, device=q.device)
        starts = torch.arange(max(len(bank), self.chunk_frames), device=q.device)[:, None]
        in_pages = self._order.to(q.device)
        order = (starts[: self.chunk_frames] * tokens + in_pages).flatten()  # tokens of the chunk, page by page
        rows = torch.tensor(bank, device=q.device)[:, None] * tokens + in_pages  # those of the bank, [F, tokens]
        page_of_row = (starts[: len(bank)] * count + place // self.frame.page_tokens).flatten()
        with torch.no_grad():
            q_timeless = self._timeless(q, range(start, start + self.chunk_frames))[:, :, order]
            raster = rows.sort().values.flatten()
            means = self._means(self._timeless(k[:, :, raster], bank)).flatten(2, 3)
            size = min(self.frame.group_tokens, own) if self.bank.groups else own
            queries = group_means(q_timeless.flatten(0, 1).transpose(0, 1), size)  # [B x H, groups, D]
            limit = min(self.bank.pages_read(count), means.shape[2])
            slots = select_pages(queries, means.flatten(0, 1), limit).slots.long()  # [B x H, groups, K]
            nothing = torch.zeros(*slots.shape[:2], means.shape[2], dtype=torch.bool, device=q.device)
            listed = nothing.scatter(2, slots, True)
            mask = listed.repeat_interleave(size, dim=1)[:, :own, page_of_row].unflatten(0, (batch, heads))
        k_bank, v_bank = (x[:, :, rows.flatten()] for x in (k, v))
        found = scaled_dot_product_attention(q[:, :, order], k_bank, v_bank, attn_mask=mask)
        return torch.empty_like(found).index_copy(2, order, found)

    def _timeless(self, x: Tensor, frames: range | tuple[int, ...]) -> Tensor:
        """Queries or keys `[B, H, frames x tokens, D]`, turned back to time 0."""
        back = [-float(frame) for frame in frames]
        turn = time_rotation(back, self._time_channels, self._theta, x.device)[:, None]  # [T, 1, pairs, 2, 2]
        pairs = x[..., : self._time_channels].unflatten(2, (len(back), -1)).unflatten(-1, (-1, 2))
        spun = turn[..., 0] * pairs[..., 0:1] + turn[..., 1] * pairs[..., 1:2]
        return torch.cat([spun.flatten(-2).flatten(2, 3), x[..., self._time_channels :]], dim=-1)
