"""What a chunk read of the bank, counted while it reads and summed up once, when it is finished.

Queries choose pages for every layer, head, step and group of queries: 5 million choices for a chunk of Wan 1.3B. What
the card does at each call is to count, for each layer and head, how often each page of the shortlist was listed (int32,
`[shortlists, streams, layers, H, pages]`, of fixed size). Which frame such a page belongs to is known beside the card,
where shortlists come from. At the end of the chunk the counts come over in one copy and become shares of frames.
"""

from __future__ import annotations

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

    def __init__(self, spec: KVSpec, streams: int, pages: int, shortlists: int) -> None:
        """`pages` are those of a layer's working set, `shortlists` as many as a chunk may bring in one layer."""
        self._spec, self._shape = spec, (shortlists, streams, spec.layers, spec.heads, pages)
        self.release()

    def release(self) -> None:
        """Drop every tensor."""
        self._counts = torch.empty(0)
        self._begin(())

    def allocate(self) -> None:
        """Take the memory."""
        self._counts = torch.zeros(self._shape, dtype=torch.int32, device=self._spec.device)

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes."""
        return int(np.prod(self._shape)) * torch.int32.itemsize

    def begin(self, frames: Sequence[int]) -> None:
        """Count for a chunk that is offered these frames."""
        self._begin(tuple(frames))
        self._counts.zero_()
        self._open = True

    def stop(self) -> None:
        """Count no more until the next `begin`: a commit's choices draw no picture."""
        self._open = False

    def bring(self, layer: int, stream: int, places: Tensor, lengths: Tensor, first_slot: int) -> None:
        """A new shortlist: its pages `[H, M]`, from `first_slot` on, hold `lengths` tokens of the frame at `places`.

        Both lie beside the card.
        """
        if self._open:
            known = self._shortlists.setdefault((stream, layer), [])
            known.append((first_slot, places.numpy().copy(), lengths.numpy().copy()))

    def count(self, layer: int, stream: int, lists: PageLists) -> None:
        """One call's lists."""
        if self._open:
            at = len(self._shortlists[stream, layer]) - 1
            count_listed(lists, self._counts[at, stream, layer])
            self._lists[stream, layer] = self._lists.get((stream, layer), 0) + lists.slots.shape[1]

    def sum_up(self) -> BankReads | None:
        """What the chunk read, or None where nothing was counted. Waits for the card: for the end of a chunk."""
        if not self._lists:
            return None
        spec, frames = self._spec, len(self._frames)
        counts = self._counts.cpu().numpy()
        layers, heads = layer_groups(spec.layers), head_groups(spec.heads)
        group_of_layer, group_of_head = group_of_each(layers), np.array(group_of_each(heads))
        keys = np.zeros((len(layers), len(heads), frames))
        lists = np.zeros((len(layers), len(heads)))
        heads_of = np.bincount(group_of_head)
        for (stream, layer), shortlists in self._shortlists.items():
            group = group_of_layer[layer]
            lists[group] += heads_of * self._lists.get((stream, layer), 0)
            for at, (first, places, lengths) in enumerate(shortlists):
                listed = counts[at, stream, layer, :, first : first + places.shape[1]]
                cells = group_of_head[:, None] * frames + places
                read = np.bincount(cells.ravel(), weights=(listed * lengths).ravel(), minlength=len(heads) * frames)
                keys[group] += read.reshape(len(heads), frames)
        amounts = keys / np.maximum(lists, 1)[..., None] / spec.frame_tokens
        return BankReads(self._frames, amounts, keys.sum(axis=(0, 1)) / lists.sum() / spec.frame_tokens)

    def _begin(self, frames: tuple[int, ...]) -> None:
        self._frames, self._open = frames, False
        self._shortlists: dict[tuple[int, int], list[tuple[int, NDArray[np.int32], NDArray[np.int32]]]] = {}
        self._lists: dict[tuple[int, int], int] = {}
