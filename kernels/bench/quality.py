"""What a selection keeps of attention over the whole history, on the recorded film: a proxy, not a verdict on pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..page_scores import group_means
from ..page_scores.torch_path import best_pages
from .recorded import Recording, load_recording
from .report import QualityRow

WINDOW_FRAMES = 3  # of the history; with the chunk, the newest 6 frames are always read


@dataclass(frozen=True, slots=True)
class Selection:
    """Reads `keys` of the bank by pages: for each group of queries, out of a shortlist of so many pages if there is one.

    `by_attention` chooses the pages that attention falls on most, which nobody knows beforehand: the best that pages of
    this size can do.
    """

    name: str
    keys: int
    page_tokens: int = 8
    group_tokens: int = 16
    shortlist: int | None = None
    by_attention: bool = False


# A frame has 48 tokens, the chunk 144 queries, the bank 30 frames.
SELECTIONS = (
    Selection("window alone", 0),
    Selection("1 frame's worth", 48),
    Selection("2.5 frames' worth", 120),
    Selection("1 frame's worth, shortlist of 1 in 5 pages", 48, shortlist=48),
    Selection("1 frame's worth, groups of 48", 48, group_tokens=48),
    Selection("1 frame's worth, one list for the chunk", 48, group_tokens=144),
    Selection("1 frame's worth, pages of 16", 48, page_tokens=16),
    Selection("1 frame's worth, whole frames", 48, page_tokens=48),
    Selection("1 frame's worth, the best there is", 48, by_attention=True),
    Selection("everything", 30 * 48),
)


def measure_quality(recording: Recording | None = None) -> list[QualityRow]:
    """Rows of every selection, layer and step."""
    kept = load_recording() if recording is None else recording
    *steps, _ = kept.facts["steps"].split()
    names = [*(f"denoise {int(step) + 1}" for step in steps), "commit"]
    rows = []
    for number, name in enumerate(names):
        weights, v = whole_attention(kept, number)
        for selection in SELECTIONS:
            reads = keys_read(kept, number, selection, weights)  # [H, L, keys]
            rows += [
                compare(selection.name, layer, name, weights[heads], v[heads], reads[heads])
                for layer, heads in heads_of_layers(kept)
            ]
    return rows


def heads_of_layers(recording: Recording) -> list[tuple[str, slice]]:
    """Each layer with its heads."""
    layers = recording.facts["layers"].split()
    size = recording.k.shape[0] // len(layers)
    return [(layer, slice(at * size, (at + 1) * size)) for at, layer in enumerate(layers)]


def whole_attention(recording: Recording, step: int) -> tuple[Tensor, Tensor]:
    """Attention `[H, L, keys]` of the chunk over history and itself, and the values `[H, keys, D]`."""
    q, own_k = (recording.in_time(x[step], recording.frames) for x in (recording.q, recording.own_k))
    k = torch.cat([recording.in_time(recording.k, 0), own_k], dim=1)
    v = torch.cat([recording.v, recording.own_v[step]], dim=1)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1), v


def keys_read(recording: Recording, step: int, selection: Selection, weights: Tensor) -> Tensor:
    """Which keys each query reads, `[H, L, keys]`: window and chunk, and its group's pages."""
    tokens, group, page = recording.q.shape[2], selection.group_tokens, selection.page_tokens
    bank = (recording.frames - WINDOW_FRAMES) * recording.frame_tokens
    means = recording.k[:, :bank].unflatten(1, (-1, page)).mean(dim=2)  # [H, pages, D]
    scores = group_means(recording.q[step].transpose(0, 1), group) @ means.mT  # [H, groups, pages]
    if selection.by_attention:
        scores = weights[..., :bank].unflatten(1, (-1, group)).sum(2).unflatten(2, (-1, page)).sum(3)
    elif selection.shortlist is not None:
        shares = (scores / means.shape[-1] ** 0.5).softmax(dim=-1).sum(dim=1)  # [H, pages]
        short = torch.zeros_like(shares, dtype=torch.bool).scatter_(
            1, best_pages(shares, selection.shortlist).long(), True
        )
        scores = scores.masked_fill(~short[:, None], -torch.inf)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if selection.keys:
        chosen.scatter_(2, best_pages(scores, selection.keys // page).long(), True)
    own = chosen.repeat_interleave(page, 2).repeat_interleave(group, 1)[:, :tokens]  # [H, L, bank keys]
    always = own.new_ones(*own.shape[:2], weights.shape[2] - bank)
    return torch.cat([own, always], dim=2)


def compare(selection: str, layer: str, step: str, weights: Tensor, v: Tensor, reads: Tensor) -> QualityRow:
    """A row: one softmax over what is read, against the one over everything."""
    kept = weights * reads
    mass = kept.sum(dim=-1, keepdim=True)
    whole, out = weights @ v, kept / mass @ v
    error = (out - whole).norm() / whole.norm()
    return QualityRow(selection, layer, step, float(reads.float().mean()), float(mass.mean()), float(error))


def shortlist_kept(recording: Recording | None = None, share: int = 5) -> float:
    """How much of a shortlist of every `share`-th page the chunk's last denoising step still wants of its first one's."""
    kept = load_recording() if recording is None else recording
    means = kept.k.unflatten(1, (-1, SELECTIONS[0].page_tokens)).mean(dim=2)  # [H, pages, D]
    pages = []
    for step in (0, -2):
        queries = group_means(kept.q[step].transpose(0, 1), SELECTIONS[0].group_tokens)
        shares = (queries @ means.mT / means.shape[-1] ** 0.5).softmax(dim=-1).sum(dim=1)  # [H, pages]
        pages.append(best_pages(shares, means.shape[1] // share))
    return float((pages[0][:, :, None] == pages[1][:, None]).any(-1).float().mean())
