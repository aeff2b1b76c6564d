"""The pieces of a chunk's memory, each measured alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dense_attention import dense_attention
from ..merge_states import merge_states
from ..page_attention import page_attention
from ..page_copy import copy_pages, time_rotation
from ..page_scores import group_means, select_pages, shortlist_pages
from ..page_write import write_pages
from ..pages import Pages, Rounding, rows_of
from .cases import Inputs

TIME_CHANNELS, THETA = 44, 10_000.0  # Wan's, of heads of 128


def make_parts(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """What a chunk does in a layer: once a step, once a chunk, or in its commit."""
    case, device = inputs.case, inputs.q.device
    order = torch.randperm(case.tokens, device=device)
    queries = group_means(inputs.q, case.group_tokens)
    summaries = inputs.pages.k.mean(dim=2)  # [H, N, D]
    kept = min(case.shortlist or case.listed, summaries.shape[1])
    short = summaries[:, :kept].contiguous()
    states = [dense_attention(inputs.q, *(x[:, : case.page_tokens] for x in (inputs.k, inputs.v))) for _ in range(2)]
    dense = [rows_of(x)[:, : case.dense_tokens] for x in inputs.pages[:2]]
    return {
        "a step: queries into page order": lambda: inputs.q.index_select(0, order),
        "a step: mean queries": lambda: group_means(inputs.q, case.group_tokens),
        f"a step: the best {case.listed} of {kept} pages": lambda: select_pages(queries, short, case.listed),
        "a step: dense tokens alone": lambda: dense_attention(inputs.q, dense[0], dense[1]),
        "a step: lists alone": lambda: page_attention(
            inputs.q, inputs.pages, inputs.lists, dense_tokens=0, group_tokens=case.group_tokens
        ),
        "a step: merge": lambda: merge_states(states[0], states[1]),
        f"a chunk: shortlist of {kept} from {summaries.shape[1]}": lambda: shortlist_pages(queries, summaries, kept),
        f"a chunk: copy of {kept} pages": copy_run(inputs, inputs.pages, kept),
        f"a chunk: copy of {kept} pages in 8 bits": copy_run(inputs, rounded_pages(inputs.pages), kept),
        "a commit: write": write_run(inputs, inputs.pages),
    }


def copy_run(inputs: Inputs, pages: Pages, count: int) -> Callable[[], object]:
    """Bringing the shortlist of every head into the working set."""
    case, device = inputs.case, inputs.q.device
    slots = torch.rand(case.heads, pages.k.shape[1], device=device).topk(count).indices.sort().values.int()
    rotation = time_rotation(range(case.frames), min(TIME_CHANNELS, case.head_dim), THETA, device)
    rows = torch.arange(count, dtype=torch.int32, device=device) * case.page_tokens
    shape = (case.heads, count * case.page_tokens, case.head_dim)
    k_out, v_out = (torch.empty(shape, dtype=case.dtype, device=device) for _ in range(2))
    return lambda: copy_pages(pages, slots, slots % case.frames, rotation, rows, k_out, v_out)


def rounded_pages(pages: Pages) -> Pages:
    """8-bit pages of the same shape; what they hold does not matter to a clock."""
    codes, scales = torch.ones_like(pages.k, dtype=torch.int8), torch.ones(pages.k.shape[:3], device=pages.k.device)
    mean = torch.zeros(pages.k[:, 0, 0].shape, device=codes.device)
    return Pages(codes, codes, pages.lengths, Rounding(scales, scales, mean))


def write_run(inputs: Inputs, pages: Pages) -> Callable[[], object]:
    """Writing the pages of a chunk, with their means."""
    case, device = inputs.case, inputs.q.device
    count = case.chunk_frames * -(-case.frame_tokens // case.page_tokens)
    k_pages, v_pages = (torch.empty_like(x[:, :count]) for x in pages[:2])
    target = Pages(k_pages, v_pages, pages.lengths[:, -count:])
    means = torch.empty((case.heads, count, case.head_dim), dtype=case.dtype, device=device)
    source = torch.randint(0, case.tokens, (count, case.page_tokens), dtype=torch.int32, device=device)
    slots = torch.arange(count, dtype=torch.int32, device=device)
    k, v = (tokens_of(x, case.tokens) for x in (inputs.k, inputs.v))
    return lambda: write_pages(k, v, source, slots, target, means)


def tokens_of(history: Tensor, count: int) -> Tensor:
    """The first tokens of a history as a model gives them, `[L, H, D]`."""
    return history[:, :count].transpose(0, 1).contiguous()
