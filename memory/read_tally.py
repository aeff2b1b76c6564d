"""What a chunk read of the bank, counted while it reads and summed up once, when it is finished.

Queries choose pages for every layer, head, step and group of queries: 5 million choices for a chunk of Wan 1.3B. What
the card does at each call is to count, for each layer and head, how often each page of the shortlist was listed (int32,
`[rows, streams, layers, H, pages]`, of fixed size). A row is one shortlist in one group of steps: the next one begins where
either changes, so there are few, whatever the sampler does. Which frame a page belongs to is known beside the card, where
shortlists come from. At the end of the chunk the counts come over in one copy and become shares of frames. Where the kernel makes
lists and dense tokens apart (on a CPU, and on the cards of `split`), it knows how much of the attention went to either.

A call of the model belongs to the step that is under way: as many steps are done as the sampler has told. One that calls the
model twice in a step (heun) tells it after the first call, so the second one, at the next step's noise, belongs to the next.
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
from ..kernels.state import ReadState
from .config import KVSpec
from .trace_groups import MOST_STEP_GROUPS, group_of_each, head_groups, layer_groups, step_groups

Amounts: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BankReads:
    """`amounts[a, b, f]` is the share of the keys of `frames[f]` that a query of the chunk read in layer group a and head
    group b, 0 to 1: the mean over its layers, heads and streams, the steps, and the groups of queries. `whole[f]` is the
    mean over all layers and heads.

    `steps[s, f]` is the same in step group s alone, where a head made `lists[s]` lists in all layers and streams together:
    weighed by them, the mean of `steps` is `whole`. A list held `listed_pages[s]` pages, and `different_pages[s]` of a
    shortlist were in at least one list of their head: the mean over layers, heads and streams.

    `mass[a, b]` is the share of a query's attention that went to what it read page by page, 0 to 1, the mean as in `amounts`, and
    `mass_steps[s]` the mean over all layers and heads in a step group; None where the kernel that ran does not know it.
    """

    frames: tuple[int, ...]
    amounts: Amounts
    whole: Amounts
    steps: Amounts
    lists: tuple[int, ...]
    listed_pages: tuple[float, ...]
    different_pages: tuple[float, ...]
    mass: Amounts | None = None
    mass_steps: Amounts | None = None


class ReadTally:
    """Counts the lists of one chunk: `begin`, `enter`, `bring` and `count`, `stop` before the commit, then `sum_up`."""

    def __init__(self, spec: KVSpec, streams: int, first_slot: int, pages: int, shortlists: int) -> None:
        """A shortlist holds at most `pages`, from slot `first_slot` of the working set on; a chunk may bring `shortlists`
        one after the other in each layer."""
        self._spec, self._first_slot = spec, first_slot
        self._shortlists = (shortlists, streams, spec.layers, spec.heads, pages)
        self._group, self._groups = 0, 1  # of steps: the present one, and how many there are
        self._rows = (shortlists + MOST_STEP_GROUPS - 1, *self._shortlists[1:])
        self._weighed = (MOST_STEP_GROUPS, streams, spec.layers, spec.heads)
        self.release()

    def release(self) -> None:
        """Drop every tensor."""
        self._counts = self._masses = torch.empty(0)
        self._places = self._lengths = np.empty(0, dtype=np.int32)
        self._begin(())

    def allocate(self) -> None:
        """Take the memory."""
        self._counts = torch.zeros(self._rows, dtype=torch.int32, device=self._spec.device)
        self._masses = torch.zeros(self._weighed, device=self._spec.device)
        self._places = np.zeros(self._shortlists, dtype=np.int32)
        self._lengths = np.zeros_like(self._places)

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes."""
        return math.prod(self._rows) * torch.int32.itemsize + math.prod(self._weighed) * torch.float32.itemsize

    def begin(self, frames: Sequence[int]) -> None:
        """Count for a chunk that is offered these frames."""
        self._begin(tuple(frames))
        self._counts.zero_()
        self._masses.zero_()
        self._places.fill(0)  # the chunk before may have been offered more frames
        self._open = True

    def enter(self, step: int, steps: int) -> None:
        """The chunk is at this step of so many, the first one being 0."""
        groups = step_groups(steps)
        self._groups = len(groups)
        self._group = max(self._group, group_of_each(groups)[min(step, steps - 1)])

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
            rows = self._seen.setdefault((stream, layer), [])
            row = (self._brought[stream, layer], self._group)
            if not rows or rows[-1] != row:
                rows.append(row)
            count_listed(lists, self._counts[len(rows) - 1, stream, layer], self._first_slot)
            self._lists[self._group, layer] += lists.slots.shape[1]

    def weigh(self, layer: int, stream: int, state: ReadState) -> None:
        """How much of one call's attention went to its lists, where the kernel knows it."""
        if self._open and state.listed is not None:
            self._masses[self._group, stream, layer] += torch.sub(state.listed, state.lse).exp_().sum(dim=0)
            self._queries[self._group, layer] += len(state.lse)

    def sum_up(self) -> BankReads | None:
        """What the chunk read, or None where nothing was counted. Waits for the card: for the end of a chunk."""
        if not self._lists.any():
            return None
        spec, frames = self._spec, len(self._frames)
        layers, heads = layer_groups(spec.layers), head_groups(spec.heads)
        of_layer, of_head = np.array(group_of_each(layers)), np.array(group_of_each(heads))
        listed = self._counts.cpu().numpy()
        keys = np.zeros((self._groups, len(layers), len(heads), frames))
        pages, different, shortlists = np.zeros((3, self._groups))
        for (stream, layer), rows in self._seen.items():
            for row, (shortlist, group) in enumerate(rows):
                counts, at = listed[row, stream, layer], (shortlist, stream, layer)
                bins = of_head[:, None] * frames + self._places[at]
                found = np.bincount(bins.ravel(), (counts * self._lengths[at]).ravel(), len(heads) * frames)
                keys[group, of_layer[layer]] += found.reshape(len(heads), frames)
                pages[group] += counts.sum()
                different[group] += np.count_nonzero(counts)
                shortlists[group] += 1
        lists = self._lists[: self._groups].sum(axis=1)
        calls = np.bincount(of_layer, self._lists.sum(axis=0))
        most = calls[:, None] * np.bincount(of_head) * spec.frame_tokens  # keys of a frame, over all lists of a group
        summed = keys.sum(axis=(1, 2))  # [step groups, frames]
        made = np.maximum(lists, 1) * spec.heads
        return BankReads(
            self._frames,
            keys.sum(axis=0) / np.maximum(most, 1)[..., None],
            summed.sum(axis=0) / most.sum(),
            summed / (made * spec.frame_tokens)[:, None],
            tuple(lists.tolist()),
            tuple((pages / made).tolist()),
            tuple((different / np.maximum(shortlists, 1) / spec.heads).tolist()),
            *self._sum_masses(of_layer, of_head),
        )

    def _sum_masses(self, of_layer: Indices, of_head: Indices) -> tuple[Amounts, Amounts] | tuple[None, None]:
        """`mass` and `mass_steps`, where they are known."""
        if not self._queries.any():
            return None, None
        masses = self._masses[: self._groups].sum(dim=1).cpu().numpy().astype(np.float64)  # [step groups, layers, H]
        asked, heads = self._queries[: self._groups], self._spec.heads
        cells = np.zeros((of_layer[-1] + 1, of_head[-1] + 1))
        np.add.at(cells, (of_layer[:, None], of_head), masses.sum(axis=0))
        of_cells = np.bincount(of_layer, asked.sum(axis=0))[:, None] * np.bincount(of_head)
        return cells / np.maximum(of_cells, 1), masses.sum(axis=(1, 2)) / (np.maximum(asked.sum(axis=1), 1) * heads)

    def _begin(self, frames: tuple[int, ...]) -> None:
        self._frames, self._open = frames, False
        self._group, self._groups = 0, 1
        self._brought: dict[tuple[int, int], int] = {}
        self._seen: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._queries = np.zeros((MOST_STEP_GROUPS, self._spec.layers), dtype=np.int64)
        self._lists = np.zeros((MOST_STEP_GROUPS, self._spec.layers), dtype=np.int64)
