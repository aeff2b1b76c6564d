"""Every list of a chunk, for a replay: which pages each group of queries took, in every step, layer and head.

One file a chunk, safetensors, so that a chunk of Wan 1.3B takes 5 MB instead of 17:

    calls   [N, 5] int32: step (-1 for the commit), layer, stream, which shortlist, groups; one row for each list that was made
    lists   [sum of H x groups, K]: places within the shortlist, call by call `[H, groups, K]`, in the smallest integers that do
    frames  [S, H, M], pages [S, H, M]: what the shortlists held, by frame of the film and page of the frame
    offered [F] int32: frames that were offered page by page

and in its head the sizes (`Selections.facts`). Words of a prompt, where a model joins them with the picture, are groups behind the
picture's. Keys and values are not kept: with latents, settings and these lists a film is made again without choosing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.pages import PageLists
from .config import KVSpec
from .whole_file import explained, whole_file

SELECTIONS_VERSION = 1
COMMIT = -1
HEAD_BYTES = 2048  # of a file: names, types, shapes and facts
_VERSION_KEY = "longreel_selections"
_FACTS = "facts"
_TENSORS = ("calls", "lists", "frames", "pages", "offered")

Integers: TypeAlias = NDArray[np.integer[Any]]


class Call(NamedTuple):
    """One choice of one layer: at `step` (COMMIT behind the last one), from the shortlist of that row, for so many groups."""

    step: int
    layer: int
    stream: int
    shortlist: int
    groups: int


@dataclass(frozen=True, slots=True)
class Selections:
    """All lists of a chunk, as its file holds them.

    `facts` are `first_frame` and `end_frame` of the chunk, `dense_frames` that every query reads, the chunk included, `frame_tokens`,
    `page_tokens`, `group_tokens`, `layers`, `heads` and `head_dim`.
    """

    calls: tuple[Call, ...]
    lists: Integers  # [sum of H x groups, K]
    frames: Integers  # [S, H, M]
    pages: Integers  # [S, H, M]
    offered: Integers  # [F]
    facts: Mapping[str, int]

    def lists_of(self, call: int, first_slot: int = 0) -> PageLists:
        """The lists of a call, as `page_attention` takes them, where the shortlist lies from `first_slot` on."""
        heads, groups = self.facts["heads"], self.calls[call].groups
        start = heads * sum(before.groups for before in self.calls[:call])
        slots = torch.from_numpy(self.lists[start : start + heads * groups].astype(np.int32)) + first_slot
        slots = slots.view(heads, groups, -1)
        return PageLists(slots, torch.full((heads, groups), slots.shape[-1], dtype=torch.int32))

    def shortlist_of(self, call: int) -> tuple[Tensor, Tensor]:
        """Frame of the film and page of the frame `[H, M]` at each place of a call's shortlist."""
        row = self.calls[call].shortlist
        frames, pages = (torch.from_numpy(x[row].astype(np.int64)) for x in (self.frames, self.pages))
        return frames, pages


class SelectionLog:
    """Collects the lists of one chunk: `begin`, `enter`, `bring` and `keep`, `commit` before the commit, then `finish`.

    What a layer chose waits on the card, in memory of fixed size, until the layer chooses again; then all of it comes over at
    once, so the card is waited for once a call of the model.
    """

    def __init__(self, spec: KVSpec, streams: int, first_slot: int, shortlist: int, groups: int, listed: int) -> None:
        """At most `groups` lists of `listed` pages, of a shortlist of at most so many from slot `first_slot` on."""
        self._spec, self._streams, self._first_slot, self._shortlist = spec, streams, first_slot, shortlist
        self._shape = (streams, spec.layers, spec.heads, groups, listed)
        self._kind = smallest(shortlist)
        self._waiting = torch.empty(0)
        self.begin(())

    def allocate(self) -> None:
        """Take the memory."""
        self._waiting = torch.empty(self._shape, dtype=self._kind, device=self._spec.device)

    def release(self) -> None:
        """Drop every tensor."""
        self._waiting = torch.empty(0)
        self.begin(())

    @property
    def bytes(self) -> int:
        """Bytes on the card that `allocate` takes."""
        return math.prod(self._shape) * self._kind.itemsize

    def chunk_bytes(self, model_calls: int, shortlists: int, frames: int, frame_pages: int) -> int:
        """Bytes of a chunk's file at most, where the model is called so often and each layer brings so many shortlists.

        A film has so many `frames`, of so many pages each.
        """
        kept = shortlists * math.prod(self._shape[:3]) * self._shortlist
        calls = model_calls * math.prod(self._shape[:2]) * len(Call._fields)
        wide = smallest(frames).itemsize + smallest(frame_pages).itemsize
        return model_calls * self.bytes + kept * wide + (calls + frames) * torch.int32.itemsize + HEAD_BYTES

    def begin(self, frames: Sequence[int]) -> None:
        """A chunk that is offered these frames."""
        self._offered, self._step = np.array(frames, dtype=np.int32), 0
        self._calls: list[Call] = []
        self._pending: list[tuple[int, int, int, int]] = []  # stream, layer, groups and pages of what waits
        self._lists: list[Integers] = []
        self._shortlists: list[tuple[Integers, Integers]] = []
        self._rows: dict[tuple[int, int], int] = {}

    def enter(self, step: int) -> None:
        """The chunk is at this step, the first one being 0."""
        self._step = step

    def commit(self) -> None:
        """What is chosen from here on is the commit's."""
        self._step = COMMIT

    def bring(self, layer: int, stream: int, places: Tensor, pages: Tensor) -> None:
        """A new shortlist: its pages `[H, M]` are these of the offered frames at `places`. Both lie beside the card."""
        self._rows[stream, layer] = len(self._shortlists)
        self._shortlists.append((self._offered[places.numpy()], pages.numpy()))

    def keep(self, layer: int, stream: int, lists: PageLists) -> None:
        """One call's lists, all full."""
        if any(waiting[:2] == (stream, layer) for waiting in self._pending):
            self._fetch()
        groups, listed = lists.slots.shape[1:]
        self._calls.append(Call(self._step, layer, stream, self._rows[stream, layer], groups))
        self._pending.append((stream, layer, groups, listed))
        self._waiting[stream, layer, :, :groups, :listed] = lists.slots - self._first_slot

    def finish(self, facts: Mapping[str, int]) -> Selections | None:
        """All lists of the chunk and its commit, or None where nothing was chosen; `facts` are those that the memory knows."""
        self._fetch()
        if not self._calls:
            return None
        frames, pages = (np.stack(part) for part in zip(*self._shortlists, strict=True))
        return Selections(
            tuple(self._calls),
            np.concatenate(self._lists),
            _small(frames),
            _small(pages),
            self._offered,
            {**facts, "layers": self._spec.layers, "heads": self._spec.heads, "head_dim": self._spec.head_dim},
        )

    def _fetch(self) -> None:
        if self._pending:
            waiting = self._waiting.to("cpu", copy=True).numpy()
            for stream, layer, groups, listed in self._pending:
                self._lists.append(waiting[stream, layer, :, :groups, :listed].reshape(-1, listed))
            self._pending = []


def save_selections(path: Path, selections: Selections) -> None:
    """Write the file of a chunk, whole or not at all. Raises ProjectError where the disk refuses."""
    tensors = {name: np.ascontiguousarray(getattr(selections, name)) for name in _TENSORS if name != "calls"}
    tensors["calls"] = np.array(selections.calls, dtype=np.int32)
    facts = {_VERSION_KEY: SELECTIONS_VERSION, **selections.facts}
    with explained(f"write into {path.parent}"):
        path.parent.mkdir(exist_ok=True)
    with whole_file(path) as part:
        # One entry: their order is not fixed, and equal films should have equal files.
        part.write_bytes(safetensors.numpy.save(tensors, {_FACTS: json.dumps(facts)}))


def read_selections(path: Path) -> Selections:
    """What `save_selections` wrote. Raises ValueError where the file is none of this version, and OSError where it is not there."""
    try:
        with safetensors.safe_open(path, "np") as file:
            facts = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
            if facts.pop(_VERSION_KEY, None) != SELECTIONS_VERSION:
                raise ValueError(
                    f"{path.name} needs to be a file of a film's folder 'selections', version {SELECTIONS_VERSION}, got another "
                    "one. Render the film with 'keep_selections' of the Chunked AR Sampler on."
                )
            calls, lists, frames, pages, offered = (file.get_tensor(name) for name in _TENSORS)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path.name} needs to be a file of a film's folder 'selections', but it is damaged."
        ) from error
    return Selections(tuple(Call(*row) for row in calls.tolist()), lists, frames, pages, offered, facts)


def smallest(count: int) -> torch.dtype:
    """The smallest type of integers that holds 0 to count - 1."""
    if count <= 2**8:
        return torch.uint8
    return torch.int16 if count <= 2**15 else torch.int32


def _small(numbers: Integers) -> Integers:
    return numbers.astype(str(smallest(int(numbers.max()) + 1)).removeprefix("torch."))
