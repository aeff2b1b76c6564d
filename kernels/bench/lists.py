"""How lists are drawn: at random, in clusters, or as a trained model's heads choose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..page_scores import group_means
from ..page_scores.torch_path import best_pages
from .recorded import load_recording

ALIKE_GROUPS, ALIKE_PAGES = 4, 8
RECORDED_PAGE, RECORDED_GROUP = 8, 16  # of the recorded frames: 6 pages, and 3 groups of queries each


def random_scores(heads: int, groups: int, frames: int, pages: int, generator: torch.Generator) -> Tensor:
    """Scores `[heads, groups, frames x pages]` without any order: the worst for a cache."""
    return torch.rand((heads, groups, frames * pages), generator=generator, device=generator.device)


def clustered_scores(heads: int, groups: int, frames: int, pages: int, generator: torch.Generator) -> Tensor:
    """The same where 4 neighbouring groups want the same runs of 8 pages."""
    count = frames * pages
    alike = (heads, -(-groups // ALIKE_GROUPS), -(-count // ALIKE_PAGES))
    scores = torch.rand(alike, generator=generator, device=generator.device)
    scores = scores.repeat_interleave(ALIKE_GROUPS, 1).repeat_interleave(ALIKE_PAGES, 2)
    return scores[:, :groups, :count]


def recorded_scores(heads: int, groups: int, frames: int, pages: int, generator: torch.Generator) -> Tensor:
    """The scores of the recorded chunk's first step, stretched to this many groups, frames and pages.

    Which pages a group wants, and how alike neighbours are, is the model's; how many there are is the caller's. Recorded
    heads are taken in turn.
    """
    recording = load_recording()
    queries = group_means(recording.q[0].transpose(0, 1), RECORDED_GROUP)  # [H, groups, D]
    means = recording.k.unflatten(1, (-1, RECORDED_PAGE)).mean(dim=2)  # [H, pages, D]
    scores = queries @ means.mT / queries.shape[-1] ** 0.5
    scores = scores.unflatten(2, (recording.frames, -1))  # [H, groups, frames, pages]
    stretched = interpolate(scores[:, None], (groups, frames, pages), mode="trilinear")[:, 0].flatten(2)
    return stretched[torch.arange(heads) % len(stretched)].to(generator.device)


DRAWN = {"random": random_scores, "clustered": clustered_scores, "recorded": recorded_scores}


def best_in_shortlist(scores: Tensor, shortlist: int, listed: int) -> Tensor:
    """The best pages `[H, groups, K]` of scores `[H, groups, N]` among those that a head's groups want most together."""
    if 0 < shortlist < scores.shape[-1]:
        short = best_pages(scores.softmax(dim=-1).sum(dim=1), shortlist).long()  # [H, M]
        of_groups = short[:, None].expand(-1, scores.shape[1], -1)
        return of_groups.gather(2, best_pages(scores.gather(2, of_groups), listed).long()).int()
    return best_pages(scores, listed)
