"""What a chunk read of the bank, counted while it reads and summed up once, when it is finished.

Queries choose pages for every layer, head, step and group of queries: 5 million choices for a chunk of Wan 1.3B. What
the card does at each call is to count, for each layer and head, how often each page of the shortlist was listed (int32,
`[shortlists, streams, layers, H, pages]`, of fixed size). Which frame such a page belongs to is known beside the card,
where shortlists come from. At the end of the chunk the counts come over in one copy and become shares of frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.pages import PageLists, count_listed
from .config import KVSpec
from .trace_groups import group_of_each, head_groups, layer_groups

Amounts: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BankReads:
    """`amounts[a, b, f]` is the share of the keys of `frames[f]` that a query of the chunk read in layer group a and head
    group b, 0 to 1: the mean over its layers, heads and streams, the steps, and the groups of queries. `whole[f]` is the
    mean over all layers and heads."""

    frames: tuple[int, ...]
    amounts: Amounts
    whole: Amounts


class ReadTally:
    """Counts the lists of one chunk: `begin`, `bring` and `count`, `stop` before the commit, then `sum_up`."""

    def __init__(self, spec: KVSpec, streams: int, first_slot: int, pages: int, shortlists: int) -> None:
        """A shortlist holds at most `pages`, from slot `first_slot` of the working set on; a chunk may bring `shortlists`
        one after the other in each layer."""
        self._spec, self._first_slot = spec, first_slot
        self._shape = (shortlists, streams, spec.layers, spec.heads)
        self._pages = pages
        self.release()

    def release(self) -> None:
        """Drop every tensor."""
        self._counts = torch.empty(0)
        self._places = self._lengths = np.empty(0, dtype=np.int32)
        self._begin(())

    def allocate(self) -> None:
        """Take the memory."""
        self._counts = torch.zeros((*self._shape, self._slots), dtype=torch.int32, device=self._spec.device)
        self._places = np.zeros((*self._shape, self._pages), dtype=np.int32)
        self._lengths = np.zeros_like(self._places)

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes."""
        return math.prod(self._shape) * self._slots * torch.int32.itemsize

    def begin(self, frames: Sequence[int]) -> None:
        """Count for a chunk that is offered these frames."""
        self._begin(tuple(frames))
        self._counts.zero_()
        self._places.fill(0)  # the chunk before may have been offered more frames
        self._open = True

    def stop(self) -> None:
        """Count no more until the next `begin`: a commit's choices draw no picture."""
        self._open = False

    def bring(self, layer: int, stream: int, places: Tensor, lengths: Tensor) -> None:
        """A new shortlist: its pages `[H, M]` hold `lengths` tokens of the frame at `places`. Both lie beside the card."""
        if self._open:
            at = self._brought[stream, layer] = self._brought.get((stream, layer), -1) + 1
            self._places[at, stream, layer, :, : places.shape[1]] = places.numpy()
            self._lengths[at, stream, layer, :, : places.shape[1]] = lengths.numpy()

    def count(self, layer: int, stream: int, lists: PageLists) -> None:
        """One call's lists."""
        if self._open:
            count_listed(lists, self._counts[self._brought[stream, layer], stream, layer])
            self._lists[layer] = self._lists.get(layer, 0) + lists.slots.shape[1]

    def sum_up(self) -> BankReads | None:
        """What the chunk read, or None where nothing was counted. Waits for the card: for the end of a chunk."""
        if not self._lists:
            return None
        spec, frames = self._spec, len(self._frames)
        layers, heads = layer_groups(spec.layers), head_groups(spec.heads)
        of_layer, of_head = np.array(group_of_each(layers)), np.array(group_of_each(heads))
        listed = self._counts[..., self._first_slot :].cpu().numpy()
        cells = (of_layer[:, None] * len(heads) + of_head) * frames  # [layers, H]
        bins, shape = cells[..., None] + self._places, (len(layers), len(heads), frames)
        keys = np.bincount(bins.ravel(), (listed * self._lengths).ravel(), math.prod(shape)).reshape(shape)
        calls = np.bincount(of_layer, [self._lists.get(layer, 0) for layer in range(spec.layers)])
        most = calls[:, None] * np.bincount(of_head) * spec.frame_tokens  # keys of a frame, over all lists of a group
        return BankReads(self._frames, keys / np.maximum(most, 1)[..., None], keys.sum(axis=(0, 1)) / most.sum())

    @property
    def _slots(self) -> int:
        return self._first_slot + self._pages

    def _begin(self, frames: tuple[int, ...]) -> None:
        self._frames, self._open = frames, False
        self._brought: dict[tuple[int, int], int] = {}
        self._lists: dict[int, int] = {}
