"""What is measured, as data, and the tensors that every implementation of a case is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..pages import PageLists, Pages
from .lists import DRAWN, best_in_shortlist


@dataclass(frozen=True, slots=True)
class KernelCase:
    """One chunk that reads `frames` frames of history, itself included; sizes of one layer of a model.

    Each head and group lists `listed` pages of the bank, or, with a `shortlist`, of so many pages of its head. `lists`
    names how they are drawn (`lists.py`), or is "film" for those of a film.
    """

    name: str
    heads: int
    frames: int
    dtype: torch.dtype
    head_dim: int = 128
    frame_tokens: int = 1560
    chunk_frames: int = 3
    dense_frames: int = 12  # window 9, the chunk included, and sink 3
    page_tokens: int = 64
    group_tokens: int = 128
    listed: int = 64
    shortlist: int = 256
    lists: str = "random"
    layers: int = 30
    ffn: int | None = 8960  # None: only attention is measured, not a layer of Wan's shapes

    @property
    def tokens(self) -> int:
        """Queries of the chunk."""
        return self.chunk_frames * self.frame_tokens

    @property
    def dense_tokens(self) -> int:
        """Tokens that every query reads."""
        return self.dense_frames * self.frame_tokens

    @property
    def first_bank_slot(self) -> int:
        """Slots of the dense tokens."""
        return -(-self.dense_tokens // self.page_tokens)

    @property
    def pages_per_frame(self) -> int:
        """Pages of a frame; the last one may be short."""
        return -(-self.frame_tokens // self.page_tokens)

    @property
    def bank_frames(self) -> int:
        """Frames that are read by lists only."""
        return self.frames - self.dense_frames

    @property
    def groups(self) -> int:
        """Groups of queries; the last one may be short."""
        return -(-self.tokens // self.group_tokens)


class Inputs(NamedTuple):
    """The tensors of a case. The pages hold the same numbers as the history, the dense frames first in both."""

    case: KernelCase
    q: Tensor  # [L, H, D]
    k: Tensor  # [H, frames x T, D], the whole history
    v: Tensor
    pages: Pages
    lists: PageLists

    def read_tokens(self, reads: str) -> float:
        """Keys that a query reads on average."""
        if reads == "history":
            return self.k.shape[1]
        slots = self.lists.slots.flatten(1).long()
        own = self.pages.lengths.gather(1, slots).sum() / self.lists.counts.numel()
        return self.case.dense_tokens + (float(own) if reads == "lists" else 0.0)


WAN_1_3B = KernelCase("Wan 1.3B, 240 frames", heads=12, frames=240, dtype=torch.bfloat16)
WAN_14B = replace(WAN_1_3B, name="Wan 14B, 240 frames", heads=40, layers=40, ffn=13824)
# 20 double and 40 single layers; its words, 256 at most beside 18,720 dense tokens, are left out.
HUNYUAN = replace(WAN_1_3B, name="HunyuanVideo, 240 frames", heads=24, layers=60, ffn=None)
TINY = KernelCase(
    "tiny", heads=2, frames=30, dtype=torch.float32, head_dim=64, frame_tokens=150, page_tokens=16, group_tokens=48,
    listed=8, shortlist=32, layers=4, ffn=512,
)  # fmt: skip
FILM_RIVALS = ("random", "clustered")
SMOKE = (TINY, replace(TINY, name="tiny, recorded lists", lists="recorded"))
# A CPU without 16-bit arithmetic is fastest in float32; HunyuanVideo at a quarter of the picture, as its 24 heads take twice as long.
ON_CPU = replace(WAN_1_3B, dtype=torch.float32)
HUNYUAN_ON_CPU = replace(
    HUNYUAN,
    name="HunyuanVideo, 60 frames of 26 x 15 tokens",
    frames=60,
    frame_tokens=390,
    listed=16,
    dtype=torch.float32,
)
PROFILES: dict[tuple[str, str], tuple[KernelCase, ...]] = {
    ("smoke", "cpu"): SMOKE,
    ("smoke", "cuda"): tuple(replace(case, dtype=torch.bfloat16) for case in SMOKE),
    ("full", "cpu"): (ON_CPU, HUNYUAN_ON_CPU),
    ("full", "cuda"): (
        WAN_1_3B,
        *(replace(WAN_1_3B, name=f"Wan 1.3B, {frames} frames", frames=frames) for frames in (21, 60, 120, 480)),
        *(replace(WAN_1_3B, name=f"Wan 1.3B, {pages} pages", listed=pages) for pages in (16, 32)),
        *(replace(WAN_1_3B, name=f"Wan 1.3B, {kind} lists", lists=kind) for kind in ("clustered", "recorded")),
        replace(WAN_1_3B, name="Wan 1.3B, lists from all pages", shortlist=0),
        replace(WAN_1_3B, name="Wan 1.3B, float16", dtype=torch.float16),
        replace(WAN_1_3B, name="Wan 1.3B, pages of 128", page_tokens=128, listed=32, shortlist=128),
        *(replace(WAN_1_3B, name=f"Wan 1.3B, groups of {size}", group_tokens=size) for size in (16, 64)),
        *(replace(WAN_1_3B, name=f"Wan 1.3B, window {n}", dense_frames=n + 3) for n in (12, 21)),
        replace(
            WAN_1_3B, name="OmniMem, 1.3B", page_tokens=30, group_tokens=15, listed=16, dense_frames=9, shortlist=0
        ),
        # Full pages of 256 tokens: what kernels with a table of pages can take.
        replace(
            WAN_1_3B, name="Wan 1.3B, 16 pages of 256", frame_tokens=1536, page_tokens=256, listed=16, shortlist=64
        ),
        replace(WAN_1_3B, name="Wan 1.3B, 720p", frame_tokens=3600, frames=120),
        replace(WAN_1_3B, name="Wan 1.3B, 29 x 51 tokens", frame_tokens=29 * 51),
        WAN_14B,
        HUNYUAN,
    ),
}


class FilmLists(NamedTuple):
    """Lists that a chunk of a real film read, in one step and layer, and the case of its sizes."""

    case: KernelCase
    lists: PageLists  # slots from `case.first_bank_slot` on, ascending

    @property
    def cases(self) -> tuple[KernelCase, ...]:
        """The film's own lists, and lists of its sizes that were drawn."""
        drawn = (replace(self.case, name=f"{self.case.name}, {kind} lists", lists=kind) for kind in FILM_RIVALS)
        return (self.case, *drawn)


def build_inputs(case: KernelCase, device: torch.device, film: FilmLists | None = None) -> Inputs:
    """Random queries and history of a case, and its lists: drawn, unless it is the case of a film."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=case.dtype)

    q = normal(case.tokens, case.heads, case.head_dim)
    k, v = (normal(case.heads, case.frames * case.frame_tokens, case.head_dim) for _ in range(2))
    pages = build_pages(case, k, v)
    if film is not None and film.case == case:
        lists = PageLists(*(x.to(device) for x in film.lists))
    else:
        lists = draw_lists(case, generator)
    return Inputs(case, q, k, v, pages, lists)


def build_pages(case: KernelCase, k: Tensor, v: Tensor) -> Pages:
    """The dense frames one behind another, then the pages of the others, the last page of each frame cut short."""
    first, per_frame, bank_frames = case.first_bank_slot, case.pages_per_frame, case.bank_frames
    count = first + bank_frames * per_frame
    shape = (case.heads, count, case.page_tokens, case.head_dim)
    stored = []
    for history in (k, v):
        rows = torch.zeros(shape, dtype=k.dtype, device=k.device).flatten(1, 2)
        rows[:, : case.dense_tokens] = history[:, : case.dense_tokens]
        bank = rows[:, first * case.page_tokens :].unflatten(1, (bank_frames, per_frame * case.page_tokens))
        bank[:, :, : case.frame_tokens] = history[:, case.dense_tokens :].unflatten(1, (bank_frames, case.frame_tokens))
        stored.append(rows.view(shape))
    lengths = torch.full((count,), case.page_tokens, dtype=torch.int32, device=k.device)
    lengths[first + per_frame - 1 :: per_frame] = case.frame_tokens - (per_frame - 1) * case.page_tokens
    return Pages(stored[0], stored[1], lengths.expand(case.heads, count))


def draw_lists(case: KernelCase, generator: torch.Generator) -> PageLists:
    """Pages of the bank for each head and group, in ascending order."""
    scores = DRAWN[case.lists](case.heads, case.groups, case.bank_frames, case.pages_per_frame, generator)
    slots = best_in_shortlist(scores, case.shortlist, case.listed) + case.first_bank_slot
    counts = torch.full(slots.shape[:2], slots.shape[2], dtype=torch.int32, device=slots.device)
    return PageLists(slots, counts)
