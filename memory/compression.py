"""OmniMem's compression branch: the whole film at a glance, every page as its mean key and mean value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.dense_attention import dense_attention
from ..kernels.merge_states import merge_states
from ..kernels.page_copy import copy_pages, time_rotation
from ..kernels.pages import Pages
from ..kernels.state import AttentionState
from .frame_pages import FramePages
from .page_store import PageStore

SLICE_PAGES = 4096
"""Pages whose means are on the card at a time: the means of a long film would not fit."""


def pooling(frame: FramePages) -> Tensor:
    """The matrix `[pages, tokens]` that takes the tokens of a frame to the means of its pages."""
    pool = torch.zeros(frame.count, len(frame.order))
    for place, token in enumerate(frame.order):
        page = place // frame.page_tokens
        pool[page, token] = 1 / frame.lengths[page]
    return pool


class Compression:
    """Attention over the means of all pages of `store`, and of the chunk's own.

    A page belongs to one frame, so the mean of its turned keys is its mean key, turned: the means lie beside the pages,
    free of time, and go through the card slice by slice.
    """

    def __init__(self, store: PageStore) -> None:
        self.store = store
        self.release()

    def release(self) -> None:
        """Drop every tensor and offer nothing."""
        self._slots = self._turns = self._rotation = self._pool = self._lengths = torch.empty(0)
        self._k = self._v = torch.empty(0)

    @property
    def pages(self) -> int:
        """Means of older frames that every query of the present chunk reads."""
        return len(self._slots)

    @property
    def _slots_kept(self) -> int:
        return self.store.capacity_frames * self.store.frame.count

    @property
    def _slice(self) -> int:
        return min(SLICE_PAGES, self._slots_kept)

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes: a slice of means, and the matrix that makes the chunk's own."""
        spec, frame = self.store.spec, self.store.frame
        means = 2 * spec.heads * self._slice * spec.head_dim * spec.dtype.itemsize
        return means + frame.count * len(frame.order) * torch.float32.itemsize

    def allocate(self) -> None:
        """Take the memory."""
        spec = self.store.spec
        shape = (spec.heads, self._slice, spec.head_dim)
        self._k, self._v = (torch.empty(shape, dtype=spec.dtype, device=spec.device) for _ in range(2))
        self._pool = pooling(self.store.frame).to(spec.device)

    def begin(self, first_slots: Sequence[int], times: Sequence[float]) -> None:
        """Offer the frames that lie in these slots, at these times."""
        spec, count = self.store.spec, self.store.frame.count
        slots = torch.tensor(first_slots, dtype=torch.int32)[:, None] + torch.arange(count, dtype=torch.int32)
        self._slots = slots.flatten()
        turns = torch.arange(len(first_slots), dtype=torch.int32)
        self._turns = turns.repeat_interleave(count)  # of each page, its row of the rotations
        self._rotation = time_rotation(times, spec.time_channels, spec.theta, spec.device)
        self._lengths = torch.ones(self._slots_kept, dtype=torch.int32)

    def attend(self, layer: int, stream: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention `[L, H, D]`, in float32, of turned queries over all means; `k`, `v` `[L, H, D]` are the chunk's own."""
        own = dense_attention(q, self._own_means(k), self._own_means(v))
        state = AttentionState(own.out.float(), own.lse)
        k_means, v_means = self.store.page_means(layer, stream), self.store.value_means(layer, stream)
        lengths = self._lengths.expand(len(self._k), -1)
        pages = Pages(k_means[:, :, None], v_means[:, :, None], lengths)  # of one token each
        rows = torch.arange(self._slice, dtype=torch.int32, device=q.device)
        for start in range(0, self.pages, self._slice):
            slots, turns = (x[start : start + self._slice].expand(len(self._k), -1) for x in (self._slots, self._turns))
            count = slots.shape[1]
            copy_pages(pages, slots, turns, self._rotation, rows[:count], self._k, self._v)
            state = merge_states(state, dense_attention(q, self._k[:, :count], self._v[:, :count]))
        return state.out

    def _own_means(self, x: Tensor) -> Tensor:
        frames = x.float().unflatten(0, (-1, self._pool.shape[1]))  # [T, tokens, H, D]
        means = torch.einsum("pt,fthd->hfpd", self._pool, frames)
        return means.flatten(1, 2).to(x.dtype)  # [H, T x pages, D]
