"""What a bank costs that lies in host memory: how fast it comes, and how much of that hides behind attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..page_attention import page_attention
from ..pages import Pages, Rounding
from .cases import Inputs
from .exact import relative_error
from .parts import Part, page_copy, round_pages

PASSES = 5  # of a chunk: four steps and the commit


def make_offload_parts(inputs: Inputs) -> list[Part]:
    """Copies of a shortlist in 8 bits from host memory, alone and beside a chunk's attention in one layer. Needs CUDA."""
    case, device = inputs.case, inputs.q.device
    copy, codes = page_copy(inputs), round_pages(inputs.pages)
    pinned, pageable = in_host_memory(codes, pin=True), in_host_memory(codes, pin=False)
    count, values = copy.slots.shape[1], copy.k_out.numel()
    wire = 2 * values + 8 * values // case.head_dim  # codes and scales of keys and values
    plain = torch.empty(wire, dtype=torch.uint8).pin_memory()
    landed = torch.empty(wire, dtype=torch.uint8, device=device)
    side: torch.cuda.Stream = torch.cuda.Stream(device)

    def attend() -> Tensor:
        for _ in range(PASSES):
            out = page_attention(
                inputs.q, inputs.pages, inputs.lists, dense_tokens=case.dense_tokens, group_tokens=case.group_tokens
            ).out
        return out

    def attend_beside() -> Tensor:
        here = torch.cuda.current_stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            copy.bring(pinned)
        out = attend()
        here.wait_stream(side)
        return out

    right = attend()
    per_chunk = f"{case.layers * wire / 1e6:,.0f} MB a chunk for {case.layers} layers"
    return [
        Part(f"offload: {count} pages from pinned memory", lambda: copy.bring(pinned), lambda: copy.error(pinned, codes), wire),
        Part(
            f"offload: {count} pages from pageable memory", lambda: copy.bring(pageable), lambda: copy.error(pageable, codes), wire
        ),
        Part(
            "offload: the same bytes in one piece, pinned",
            lambda: landed.copy_(plain, non_blocking=True),
            lambda: 0.0 if torch.equal(landed.copy_(plain).cpu(), plain) else 1.0,
            wire,
            per_chunk,
        ),
        Part(f"offload: attention of {PASSES} passes", attend, lambda: relative_error(attend(), right)),
        Part(
            f"offload: attention of {PASSES} passes, a copy beside it",
            attend_beside,
            lambda: relative_error(attend_beside(), right),
            note="what it takes longer than alone is not hidden",
        ),
    ]  # fmt: skip


def in_host_memory(pages: Pages, pin: bool) -> Pages:
    """8-bit pages with their scales in host memory; lengths and means stay on the GPU."""
    assert pages.rounding is not None
    k, v, k_scale, v_scale = (x.cpu().pin_memory() if pin else x.cpu() for x in (pages.k, pages.v, *pages.rounding[:2]))
    return Pages(k, v, pages.lengths, Rounding(k_scale, v_scale, pages.rounding.k_mean))
