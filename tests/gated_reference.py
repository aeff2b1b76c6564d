"""Gated reading written down once more, slowly: query by query, head by head, page by page, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longreel.memory.frame_pages import FramePages
from longreel.memory.gates import GateForm

Frame = tuple[Tensor, Tensor]
"""Keys, free of time, and values `[tokens, H, D]` of a frame."""


def pages_of(frames: dict[int, Frame], cut: FramePages, head: int) -> list[tuple[int, Tensor, Tensor]]:
    """The pages of these frames as (frame, keys, values) of one head."""
    rows = [cut.order[start : start + cut.page_tokens] for start in range(0, len(cut.order), cut.page_tokens)]
    return [(at, k[list(r), head], v[list(r), head]) for at, (k, v) in sorted(frames.items()) for r in rows]


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What one query `[D]` reads of `[N, D]`."""
    return (k @ q / len(q) ** 0.5).softmax(0) @ v


def gated_attention(
    form: GateForm,
    gates: Tensor,
    q: Tensor,
    turn: Callable[[Tensor, int], Tensor],
    older: dict[int, Frame],
    own: dict[int, Frame],
    window_start: int,
    cut: FramePages,
    pages_read: int,
) -> Tensor:
    """Output `[L, H, D]` of the chunk `own`, whose queries `q` `[L, H, D]` are free of time, with `gates` `[L, H, branches]`.

    `turn` turns queries or keys to the time of a frame. Frames before `window_start` are searched, all others are read.
    """
    gates, q, out = gates.double(), q.double(), torch.zeros(q.shape, dtype=torch.float64)
    older, own = ({at: (k.double(), v.double()) for at, (k, v) in part.items()} for part in (older, own))
    tokens = len(cut.order)
    placed = [
        frame * tokens + token for frame in range(len(own)) for token in cut.order
    ]  # queries in the order of pages
    everything = older | own
    for head in range(q.shape[1]):
        near = [(turn(k[:, head], at), v[:, head]) for at, (k, v) in everything.items() if at >= window_start]
        k_near, v_near = (torch.cat(x) for x in zip(*near, strict=True))
        searched = pages_of({at: frame for at, frame in older.items() if at < window_start}, cut, head)
        means = [(turn(k.mean(0, keepdim=True), at), v.mean(0)) for at, k, v in pages_of(everything, cut, head)]
        k_means, v_means = torch.cat([k for k, _ in means]), torch.stack([v for _, v in means])
        for start in range(0, len(placed), cut.group_tokens):
            group = placed[start : start + cut.group_tokens]
            asked = q[group, head].mean(0)
            best = sorted(searched, key=lambda page: -float(page[1].mean(0) @ asked))[:pages_read]
            for token in group:
                query = turn(q[token, head][None], min(own) + token // tokens)[0]
                window = softmax(query, k_near, v_near)
                found = torch.zeros_like(window)
                if best:
                    k_best = torch.cat([turn(k, at) for at, k, _ in best])
                    found = softmax(query, k_best, torch.cat([v for _, _, v in best]))
                g = gates[token, head]
                if form is GateForm.DECMEM:
                    out[token, head] = window + g[0] * found
                else:
                    out[token, head] = g[0] * softmax(query, k_means, v_means) + g[1] * found + g[2] * window
    return out
