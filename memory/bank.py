"""The bank: what is older than the window, read page by page by those whom it concerns.

For every layer and head a chunk has a shortlist of pages, which are brought into the working set and turned to their
time; from it every group of queries takes the pages whose mean key, free of time, agrees most with its mean query. The
shortlist is chosen when a layer first attends, again at its second step, when the queries know what they draw, and for the
commit; lists are chosen at each step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.page_copy import copy_pages, time_rotation
from ..kernels.page_scores import group_means, select_pages, shortlist_pages
from ..kernels.pages import PageLists, Pages
from .config import BankConfig, KVSpec
from .page_store import PageStore
from .read_tally import ReadTally
from .selections import SelectionLog
from .stopwatch import Stopwatch

STEPS_WITH_A_NEW_SHORTLIST = 2


class Bank:
    """Chooses pages of `store` for the queries of a chunk, and brings them into pages of the working set.

    `tally` counts what is chosen and `log` keeps it, if there are any; `moved_pages` were brought for the present chunk and its
    commit.
    """

    def __init__(self, config: BankConfig, store: PageStore, watch: Stopwatch) -> None:
        self.config, self.store, self.watch = config, store, watch
        self.tally: ReadTally | None = None
        self.log: SelectionLog | None = None
        self.moved_pages = 0
        self._spec: KVSpec = store.spec
        self._steps: dict[tuple[int, int], int] = {}
        self.release()

    def release(self) -> None:
        """Drop every tensor and offer nothing."""
        self.frames: tuple[int, ...] = ()
        self._first_slots = self._turns = self._rotation = self._means = torch.empty(0)
        if self.tally is not None:
            self.tally.release()
        if self.log is not None:
            self.log.release()

    @property
    def capacity(self) -> int:
        """Pages of the shortlist."""
        return min(self.config.shortlist, self.store.capacity_frames * self.store.frame.count)

    @property
    def listed(self) -> int:
        """Pages that the shortlists of the present chunk hold: fewer than there is room for, where frames are few."""
        frames = len(self.frames)
        if self.config.index_frames is not None:
            frames = min(frames, self.config.index_frames)
        everything = len(self.frames) * self.store.frame.count
        return everything if everything <= self.capacity else min(self.capacity, frames * self.store.frame.count)

    @property
    def pages_read(self) -> int:
        """Pages that a group of the present chunk reads."""
        return min(self.config.pages_read(self.store.frame.count), self.listed)

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes: mean keys of the shortlist, and what is counted or kept."""
        spec = self._spec
        means = self.store.streams * spec.layers * spec.heads * self.capacity * spec.head_dim * spec.dtype.itemsize
        return means + sum(witness.bytes for witness in (self.tally, self.log) if witness is not None)

    def keep_tally(self, first_slot: int) -> None:
        """Count what is chosen; shortlists begin at `first_slot` of the working set."""
        self.tally = ReadTally(self._spec, self.store.streams, first_slot, self.capacity, self._new_shortlists)

    def keep_selections(self, first_slot: int, groups: int) -> None:
        """Keep all lists of a chunk, of at most so many groups; shortlists begin at `first_slot` of the working set."""
        listed = min(self.config.pages_read(self.store.frame.count), self.capacity)
        self.log = SelectionLog(self._spec, self.store.streams, first_slot, self.capacity, groups, listed)

    def selection_bytes(self, model_calls: int, film_frames: int) -> int:
        """Bytes at most of the lists of a chunk for which the model is called so often, the commit included; 0 where none are kept."""
        if self.log is None:
            return 0
        return self.log.chunk_bytes(model_calls, self._new_shortlists + 1, film_frames, self.store.frame.count)

    def allocate(self) -> None:
        """Take the memory."""
        spec = self._spec
        shape = (self.store.streams, spec.layers, spec.heads, self.capacity, spec.head_dim)
        self._means = torch.empty(shape, dtype=spec.dtype, device=spec.device)
        if self.tally is not None:
            self.tally.allocate()
        if self.log is not None:
            self.log.allocate()

    def group_tokens(self, chunk_tokens: int) -> int:
        """Queries that share a list."""
        return min(self.store.frame.group_tokens, chunk_tokens) if self.config.groups else chunk_tokens

    def begin(self, frames: Sequence[int], first_slots: Sequence[int], times: Sequence[float]) -> None:
        """Offer these frames, which lie in these slots, at these times."""
        self.frames = tuple(frames)
        self.begin_pass()
        self.moved_pages = 0
        if self.tally is not None:
            self.tally.begin(frames)
        if self.log is not None:
            self.log.begin(frames)
        device = self.store.device
        self._first_slots = torch.tensor(first_slots, dtype=torch.int32, device=device)
        places = torch.arange(len(first_slots), dtype=torch.int32, device=device)
        turns = torch.zeros(self.store.capacity_frames, dtype=torch.int32, device=device)
        turns[self._first_slots.long() // self.store.frame.count] = places
        self._turns = turns  # of each run of slots, its row of the rotations
        spec = self._spec
        self._rotation = time_rotation(times, spec.time_channels, spec.theta, spec.device)

    def enter_step(self, step: int, steps: int) -> None:
        """The chunk is at this step of so many, the first one being 0."""
        if self.tally is not None:
            self.tally.enter(step, steps)
        if self.log is not None:
            self.log.enter(step)

    def begin_pass(self) -> None:
        """Choose new shortlists, as a chunk begins and before its commit."""
        self._steps = {}
        if self.tally is not None:
            self.tally.stop()
        if self.log is not None:
            self.log.commit()

    def choose(
        self, layer: int, stream: int, q_timeless: Sequence[Tensor], working: Pages, first_slot: int
    ) -> list[PageLists]:
        """Lists for parts of the queries, each `[L, H, D]`, free of time and in the order of pages.

        `working` is the working set of this layer and stream; the shortlist fills its slots from `first_slot` on.
        """
        means_of = [group_means(part, self.group_tokens(len(part))) for part in q_timeless]  # [H, groups, D] each
        queries = torch.cat(means_of, dim=1)
        step = self._steps[layer, stream] = self._steps.get((layer, stream), 0) + 1
        if step <= self._new_shortlists:
            shortlist = self._shortlist(layer, stream, queries)
            with self.watch.timed("copy"):
                self._bring(layer, stream, shortlist, working, first_slot)
        means = self._means[stream, layer, :, : self.listed]
        slots, counts = select_pages(queries, means, self.pages_read, first_slot=first_slot)
        if self.tally is not None:
            self.tally.count(layer, stream, PageLists(slots, counts))
        if self.log is not None:
            self.log.keep(layer, stream, PageLists(slots, counts))
        groups = [part.shape[1] for part in means_of]
        return [PageLists(*part) for part in zip(slots.split(groups, dim=1), counts.split(groups, dim=1), strict=True)]

    @property
    def _new_shortlists(self) -> int:
        """Steps of a chunk at which a layer makes a new shortlist."""
        return STEPS_WITH_A_NEW_SHORTLIST if self.config.refresh else 1

    def _shortlist(self, layer: int, stream: int, queries: Tensor) -> Tensor:
        """Slots `[H, M]` of the store."""
        store, heads = self.store, self._spec.heads
        count, limit = store.frame.count, self.capacity
        page = torch.arange(count, dtype=torch.int32, device=store.device)
        if len(self.frames) * count <= limit:
            return (self._first_slots[:, None] + page).flatten().expand(heads, -1)
        runs = self._first_slots.long().expand(heads, -1) // count  # [H, F]
        if self.config.index_frames is not None and len(self.frames) > self.config.index_frames:
            means = _of_heads(store.frame_means(layer, stream), runs).to(queries.device)
            best = shortlist_pages(queries, means, self.config.index_frames).long()
            runs = runs.gather(1, best.to(runs.device))  # [H, index_frames]
        slots = (runs[..., None] * count + page).flatten(1)  # [H, candidates]
        means = _of_heads(store.page_means(layer, stream), slots).to(queries.device)
        best = shortlist_pages(queries, means, limit).long()
        return slots.gather(1, best.to(slots.device)).int()

    def _bring(self, layer: int, stream: int, slots: Tensor, working: Pages, first_slot: int) -> None:
        store, page_tokens = self.store, self.store.frame.page_tokens
        device, length = working.k.device, slots.shape[1]
        source = store.pages(layer, stream)
        turns = self._turns[slots.long() // store.frame.count]
        rows = torch.arange(first_slot, first_slot + length, dtype=torch.int32, device=device) * page_tokens
        k_rows, v_rows = (x.flatten(1, 2) for x in (working.k, working.v))  # [H, R, D]
        copy_pages(source, slots.to(device), turns.to(device), self._rotation, rows, k_rows, v_rows)
        lengths = source.lengths.gather(1, slots.long())
        self.moved_pages += slots.numel()
        if self.tally is not None:
            self.tally.bring(layer, stream, turns, lengths)
        if self.log is not None:
            self.log.bring(layer, stream, turns, slots % store.frame.count)
        working.lengths[:, first_slot : first_slot + length] = lengths.to(device)
        self._means[stream, layer, :, :length] = _of_heads(store.page_means(layer, stream), slots.long()).to(device)


def _of_heads(x: Tensor, chosen: Tensor) -> Tensor:
    """Rows `[H, M, D]` of `[H, N, D]`, chosen by each head."""
    return x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
