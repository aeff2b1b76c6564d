"""The remembered keys and values of a film: page table, store of pages, and the working set of the chunk.

    store        [streams, layers, H, slots, P, D]   keys free of time, in pages; a frame is a run of slots
    working set  [streams, layers, H, rows, D]       | frames that all read, keys turned in time | the chunk being made
                                                     | pages of the bank, from the next whole page on |

A stream is one role of the model's batch (cond, uncond); each has its own history.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.page_attention import page_attention
from ..kernels.page_copy import copy_pages, time_rotation
from ..kernels.pages import Pages
from .bank import Bank
from .compression import Compression
from .config import KVSpec, MemoryConfig
from .gates import GateForm
from .page_store import PageStore
from .page_table import PageTable
from .positions import assign_times
from .prompt_bank import Brought, Scorer, Wish
from .read_tally import BankReads
from .select import EVERYTHING, Choice, cut_away, select_frames
from .selections import Selections
from .stopwatch import Stopwatch
from .text_record import TextRecord
from .transitions import Reach
from .wishes import grant
from .working_set import Copy, Placement, assign_places

NO_WISH = Wish()


class KVMemory:
    """Memory of one run. `begin` a chunk, `read` it in any layer, `reserve`, `write` and `publish` it."""

    def __init__(
        self,
        spec: KVSpec,
        config: MemoryConfig,
        streams: int,
        chunk_frames: int,
        film_frames: int,
        pinned: frozenset[int] = frozenset(),
        longest_prompt: int = 0,
        *,
        words: int = 0,
        tallied: bool = False,
        keep_selections: bool = False,
        gates: GateForm | None = None,
    ) -> None:
        """Plan a memory for films of `film_frames` in chunks of at most `chunk_frames`; nothing is allocated yet.

        There is room for all `pinned` frames, which are never forgotten; whether they are read a wish says. A prompt bank may
        keep a record of the words of prompts up to `longest_prompt`. `words` is how many a model at most joins with the picture
        in one attention. With `tallied` it is counted what each chunk reads of the bank, with `keep_selections` all of its lists are
        kept; neither changes a bit of the film.
        `gates` says in which branches a memory with a bank is read; without, it is read with one softmax. Raises ValueError
        when a chunk does not fit into the window.
        """
        config.check_chunk(chunk_frames)
        self.spec, self.config, self.streams, self.chunk_frames, self.words = spec, config, streams, chunk_frames, words
        self.pinned, self.film_frames = pinned, film_frames
        self.read_capacity = config.history_frames(chunk_frames, film_frames, len(pinned))
        self.frame = config.cut(spec.rows, spec.columns)
        kept = config.kept_frames(chunk_frames, film_frames, len(pinned))
        eight_bit = config.bank is not None and config.bank.eight_bit
        compressed = gates is GateForm.OMNIMEM
        self.store = PageStore(
            spec, self.frame, streams, kept, indexed=config.keeps_film, eight_bit=eight_bit, compressed=compressed
        )
        paged = config.paged(self.frame.count)
        self.watch = Stopwatch(spec.device)
        self.bank = None if paged is None else Bank(paged, self.store, self.watch)
        self.compression = Compression(self.store) if compressed else None
        if tallied and self.bank is not None:
            self.bank.keep_tally(self._bank_slot)
        if keep_selections and self.bank is not None:
            parts = [part for part in (chunk_frames * spec.frame_tokens, words) if part]
            groups = sum(-(-part // self.bank.group_tokens(part)) for part in parts)
            self.bank.keep_selections(self._bank_slot, groups)
        self.record: TextRecord | None = None
        if config.prompt_bank is not None and config.prompt_bank.scorer is not Scorer.LATE_INTERACTION:
            self.record = TextRecord(spec, config.prompt_bank.scorer, kept, longest_prompt)
        self.table = PageTable(kept, self.frame.count)
        self.time_scale, self.current_time = 1.0, 0
        self.read_frames: tuple[int, ...] = ()
        self.brought: dict[int, Brought] = {}
        self.layer_shares: dict[int, float] = {}
        self.excluded: dict[str, tuple[int, ...]] = {}
        self.current_rotation: Tensor | None = None
        self._dense_frames = 0
        self._places: dict[int, list[Placement | None]] = {}
        self._versions: dict[int, int] = {}
        self._commits = self._next_frame = 0
        self._moved = self._stayed = 0  # frames brought into the working set, or still there, one for each layer
        self._written: set[tuple[int, int]] = set()
        self._working: tuple[Tensor, Tensor] | None = None
        self._lengths = self._order = torch.empty(0)

    @property
    def peak_bytes(self) -> int:
        """Bytes that `allocate` takes on the card, fixed before the run."""
        spec = self.spec
        numbers = 2 * self.streams * spec.layers * spec.heads * self._rows * spec.head_dim
        taken = numbers * spec.dtype.itemsize + (0 if self.compression is None else self.compression.bytes)
        if self.bank is None:
            return taken + (0 if self.store.indexed else self.store.bytes)
        lengths = self.streams * spec.layers * spec.heads * self._pages * torch.int32.itemsize
        return taken + lengths + self.bank.bytes

    @property
    def host_bytes(self) -> int:
        """Bytes that `allocate` takes in RAM or in files, where the whole film is kept."""
        record = 0 if self.record is None else self.record.bytes
        return record + (self.store.bytes if self.store.indexed else 0)

    @property
    def allocated(self) -> bool:
        """Whether the memory of the run is taken."""
        return self._working is not None

    @property
    def selects(self) -> bool:
        """Whether the present chunk chooses what it reads; `read_selected` then takes the place of the host's attention."""
        return self.bank is not None and bool(self.bank.frames)

    @property
    def frames_worth(self) -> float:
        """How many keys of older frames a query of the present chunk reads, in keys of a frame."""
        pages = self.bank.pages_read if self.bank is not None else 0
        means = self.compression.pages if self.compression is not None else 0
        return self._dense_frames + (pages * self.frame.page_tokens + means) / self.spec.frame_tokens

    @property
    def moved_bytes(self) -> int:
        """Bytes of keys and values that came out of the store into the working set for the present chunk."""
        pages = 0 if self.bank is None else self.bank.moved_pages
        return self._moved * self.store.frame_bytes // self.spec.layers + pages * self.store.page_bytes

    @property
    def stayed_bytes(self) -> int:
        """Bytes of the working set that every query of the present chunk reads and that were there before it."""
        return self._stayed * self.store.frame_bytes // self.spec.layers

    def bank_reads(self) -> BankReads | None:
        """What the present chunk read page by page; None where nothing was, or nothing was counted."""
        tally = None if self.bank is None else self.bank.tally
        return None if tally is None else tally.sum_up()

    def selections(self, frames: range) -> Selections | None:
        """All lists of the chunk of these frames; None where nothing was chosen, or nothing is kept."""
        if self.bank is None or self.bank.log is None:
            return None
        facts = {
            "first_frame": frames.start,
            "end_frame": frames.stop,
            "dense_frames": self._dense_frames + len(frames),
            "frame_tokens": self.spec.frame_tokens,
            "page_tokens": self.frame.page_tokens,
            "group_tokens": self.bank.group_tokens(len(frames) * self.spec.frame_tokens),
        }
        return self.bank.log.finish(facts)

    def selection_bytes(self, model_calls: int) -> int:
        """Bytes on disk at most of the lists of a chunk for which the model is called so often, the commit included."""
        return 0 if self.bank is None else self.bank.selection_bytes(model_calls, self.film_frames)

    def allocate(self, folder: Path | None = None) -> None:
        """Take all memory of the run at once; what lies beside the card is kept in `folder` where one is given."""
        spec = self.spec
        self.store.allocate(folder)
        if self.record is not None:
            self.record.allocate()
        if self.bank is None:  # tokens of all heads side by side, as the host's attention takes them
            shape = (self.streams, spec.layers, self._rows, spec.heads, spec.head_dim)
            k, v = (torch.empty(shape, dtype=spec.dtype, device=spec.device).transpose(2, 3) for _ in range(2))
        else:
            shape = (self.streams, spec.layers, spec.heads, self._rows, spec.head_dim)
            k, v = (torch.empty(shape, dtype=spec.dtype, device=spec.device) for _ in range(2))
            lengths = (self.streams, spec.layers, spec.heads, self._pages)
            self._lengths = torch.full(lengths, self.frame.page_tokens, dtype=torch.int32, device=spec.device)
            self.bank.allocate()
        if self.compression is not None:
            self.compression.allocate()
        self._working = (k, v)

    def release(self) -> None:
        """Drop every tensor and everything remembered."""
        self.store.release()
        if self.record is not None:
            self.record.release()
        if self.bank is not None:
            self.bank.release()
        if self.compression is not None:
            self.compression.release()
        self._working = self.current_rotation = None
        self._lengths = self._order = torch.empty(0)
        self._places = {}

    def begin(self, frames: range, wish: Wish = NO_WISH, reach: Reach = EVERYTHING) -> None:
        """Choose what the chunk of these frames reads and bring it into the working set, turned to its time.

        `wish` is what is pinned and vetoed, and what its prompt asks for: to the scores only a memory with a prompt bank
        listens. `reach` is what a cut has left.
        """
        choice = select_frames(self.table.frames, frames.start, self.chunk_frames, self.config, reach)
        older = [frame for frame in self.table.frames if frame < frames.start]
        choices, self.brought = grant(wish, choice, older, reach, self.config.prompt_bank, self._likeness)
        self.read_frames = tuple(sorted({frame for choice in choices for frame in choice.read}))
        self.layer_shares = {
            frame: sum(frame in choice.read for choice in choices) / len(choices) for frame in self.read_frames
        }
        cut = cut_away(self.table.frames, frames.start, self.chunk_frames, self.config, reach).difference(
            self.read_frames
        )
        vetoed = (frame for frame in wish.vetoed if frame < frames.start)
        self.excluded = {"vetoed": tuple(sorted(vetoed)), "cut": tuple(sorted(cut))}
        self._dense_frames = len(choices[0].read)
        alike = len(choices) == 1
        if alike and len(self._places) > 1:
            self._places = {}
        self._moved = self._stayed = 0
        with self.watch.timed("copy"):
            for layer, choice in enumerate(choices):
                self._bring(choice, frames, layer, range(self.spec.layers) if alike else range(layer, layer + 1))
        if self.bank is not None:
            order = torch.tensor(self.frame.order, device=self.spec.device)
            starts = torch.arange(len(frames), device=self.spec.device) * self.spec.frame_tokens
            self._order = (starts[:, None] + order).flatten()  # tokens of the chunk in the order of pages

    def read(self, layer: int, stream: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, read + L, H, D]` that every query of the chunk attends to, its own `[L, H, D]` ones last.

        The result is a view that is valid until the next `read` of the same layer and stream.
        """
        assert self._working is not None
        start = self._dense_frames * self.spec.frame_tokens
        end = start + k.shape[0]
        k_work, v_work = (x[stream, layer].transpose(0, 1) for x in self._working)  # [rows, H, D]
        k_work[start:end] = k
        v_work[start:end] = v
        return k_work[None, :end], v_work[None, :end]

    def read_selected(
        self, layer: int, stream: int, q: Tensor, q_timeless: Tensor, *, pages_alone: bool = False
    ) -> Tensor:
        """Attention `[1, L, H x D]` of queries `[L, H, D]` over what `read` placed and the pages that their groups choose.

        `q` is turned in space and time, `q_timeless` in space alone. `pages_alone` leaves out what `read` placed. Words
        before the chunk choose in groups of their own.
        """
        assert self._working is not None
        assert self.bank is not None
        k, v = (x[stream, layer].unflatten(1, (self._pages, -1)) for x in self._working)  # [H, pages, P, D]
        working = Pages(k, v, self._lengths[stream, layer])
        words = len(q) - len(self._order)
        parts = [self._order + words]
        if words:
            parts.append(torch.arange(words, device=q.device))
        with self.watch.timed("select"):
            lists = self.bank.choose(layer, stream, [q_timeless[part] for part in parts], working, self._bank_slot)
        dense_tokens = 0 if pages_alone else self._dense_frames * self.spec.frame_tokens + len(q)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for part, chosen in zip(parts, lists, strict=True):
            group_tokens = self.bank.group_tokens(len(part))
            state = page_attention(q[part], working, chosen, dense_tokens=dense_tokens, group_tokens=group_tokens)
            out[part] = state.out
            if self.bank.tally is not None:
                self.bank.tally.weigh(layer, stream, state)
        return out.flatten(1)[None]

    def reserve(self, frames: range) -> None:
        """Set slots aside for frames that are about to be committed."""
        self.table.reserve(frames)
        self.store.begin_write([self.table.reserved_slot(frame) for frame in self.table.reserved])
        if self.bank is not None:
            self.bank.begin_pass()
        self._written.clear()

    def write(self, layer: int, stream: int, k_timeless: Tensor, v: Tensor) -> None:
        """Store one layer's keys, free of time, and values `[L, H, D]` in the reserved slots."""
        self._written.add((layer, stream))
        self.store.write(layer, stream, k_timeless, v)

    def publish(self) -> None:
        """Make the written frames readable from the next chunk on, and forget what no later chunk will read.

        Raises RuntimeError when a layer was not written, as when another node skips the model at t = 0.
        """
        missing = self.streams * self.spec.layers - len(self._written)
        if missing:
            raise RuntimeError(
                f"Memory needs every layer of the model to be run on the finished chunk, but {missing} were skipped. "
                "Remove step caches (TeaCache, MagCache, FBCache) and layer-skipping nodes from the model's wire."
            )
        self._commits += 1
        self._versions.update(dict.fromkeys(self.table.reserved, self._commits))
        self._next_frame = self.table.reserved[-1] + 1
        self.table.publish()
        if self.config.prompt_bank is None:
            self.forget(set(self.table.frames).difference(self.pinned, *self.coming))

    @property
    def coming(self) -> Choice:
        """What the chunk behind the newest committed frame will read."""
        return select_frames(self.table.frames, self._next_frame, self.chunk_frames, self.config)

    def abandon(self) -> None:
        """Undo `reserve` after a commit that failed."""
        self.table.abandon()

    def forget(self, frames: Sequence[int] | set[int]) -> None:
        """Evict these frames."""
        self.table.evict(sorted(frames))
        for frame in frames:
            del self._versions[frame]

    def frame_means(self) -> Tensor:
        """Mean keys `[layers, H, F, D]`, free of time, of the frames from the first to the newest, of the first stream."""
        runs = torch.tensor([self.table.first_slot(frame) for frame in self.table.frames]) // self.frame.count
        return torch.stack([self.store.frame_means(layer, 0)[:, runs] for layer in range(self.spec.layers)])

    def _likeness(self, frames: Sequence[int], others: Sequence[int]) -> Tensor:
        return self.store.likeness(*([self.table.first_slot(frame) for frame in some] for some in (frames, others)))

    def _bring(self, choice: Choice, frames: range, key: int, layers: range) -> None:
        """Bring what these layers read into the working set; `key` names what lies in their places."""
        seen = sorted({*choice.read, *choice.bank})
        times = assign_times(self.config.positions, seen, frames, self.config.trained_frames)
        time_of = {frame: time * self.time_scale for frame, time in zip(seen, times.read, strict=True)}
        wanted = [
            Placement(frame, self.table.first_slot(frame), time_of[frame], self._versions[frame])
            for frame in choice.read
        ]
        self._places[key], copies = assign_places(self._places.get(key, []), wanted)
        self.current_time = times.current[0]
        turns = [copy.placement.time for copy in copies] + [time * self.time_scale for time in times.current]
        rotations = time_rotation(turns, self.spec.time_channels, self.spec.theta, self.spec.device)
        self.current_rotation = rotations[len(copies) :]  # [T, pairs, 2, 2], one for each frame being made
        self._moved += len(copies) * len(layers)
        self._stayed += (len(wanted) - len(copies)) * len(layers)
        self._gather(copies, rotations, layers)
        if self.bank is not None and layers.start == 0:
            slots = [self.table.first_slot(frame) for frame in choice.bank]
            self.bank.begin(choice.bank, slots, [time_of[frame] for frame in choice.bank])
        if self.compression is not None and layers.start == 0:
            self.compression.begin([self.table.first_slot(frame) for frame in seen], [time_of[frame] for frame in seen])

    @property
    def _dense_rows(self) -> int:
        return (self.read_capacity + self.chunk_frames) * self.spec.frame_tokens + self.words

    @property
    def _bank_slot(self) -> int:
        """First page of the working set behind the tokens that all read."""
        return -(-self._dense_rows // self.frame.page_tokens)

    @property
    def _pages(self) -> int:
        return self._bank_slot + (0 if self.bank is None else self.bank.capacity)

    @property
    def _rows(self) -> int:
        return self._dense_rows if self.bank is None else self._pages * self.frame.page_tokens

    def _gather(self, copies: Sequence[Copy], rotations: Tensor, layers: range) -> None:
        if not copies:
            return
        assert self._working is not None
        spec, count, page_tokens = self.spec, self.frame.count, self.frame.page_tokens
        slots = [copy.placement.slot + page for copy in copies for page in range(count)]
        rows = [copy.place * spec.frame_tokens + page * page_tokens for copy in copies for page in range(count)]
        turns = [index for index in range(len(copies)) for _ in range(count)]
        slot, first_row, turn = (torch.tensor(x, dtype=torch.int32, device=spec.device) for x in (slots, rows, turns))
        slot, turn = slot.expand(spec.heads, -1), turn.expand(spec.heads, -1)
        for stream in range(self.streams):
            for layer in layers:
                k, v = (x[stream, layer] for x in self._working)
                copy_pages(self.store.pages(layer, stream), slot, turn, rotations, first_row, k, v)
