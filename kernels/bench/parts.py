"""The pieces of a chunk's memory, each checked against its reference and measured alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dense_attention import dense_attention
from ..merge_states import merge_states
from ..merge_states.reference import merge_states as merge_reference
from ..page_attention import page_attention
from ..page_attention.reference import page_attention as attention_reference
from ..page_copy import copy_pages, time_rotation
from ..page_copy.reference import copy_pages as copy_reference
from ..page_scores import group_means, reference, select_pages, shortlist_pages
from ..page_write import write_pages
from ..page_write.reference import rounded
from ..page_write.reference import write_pages as write_reference
from ..pages import Pages, Rounding, count_listed, rows_of
from .cases import Inputs
from .exact import relative_error, sample_exactly, sampled

TIME_CHANNELS, THETA = 44, 10_000.0  # Wan's, of heads of 128

COUNTING = "a step: counting what is read"


@dataclass(frozen=True, slots=True)
class Part:
    """One piece: what is timed, its error against the reference, and the bytes it must read and write."""

    name: str
    run: Callable[[], object]
    error: Callable[[], float]
    moved_bytes: int = 0
    note: str = ""


def make_parts(inputs: Inputs) -> list[Part]:
    """What a chunk does in a layer: once a step, once a chunk, or in its commit."""
    return [*step_parts(inputs), shortlist_part(inputs), *copy_parts(inputs), write_part(inputs)]


def step_parts(inputs: Inputs) -> list[Part]:
    """What is done in every step."""
    case, q = inputs.case, inputs.q
    order = torch.randperm(case.tokens, device=q.device)
    queries, short = group_means(q, case.group_tokens), bank_means(inputs)
    short = short[:, : case.shortlist or case.listed].contiguous()
    kept = short.shape[1]
    dense = [rows_of(x)[:, : case.dense_tokens] for x in inputs.pages[:2]]
    a, b = (dense_attention(q, dense[0][:, part], dense[1][:, part]) for part in (slice(0, 64), slice(64, 128)))
    scores = queries @ short.float().mT  # [H, groups, M]

    def lists() -> Tensor:
        return page_attention(q, inputs.pages, inputs.lists, dense_tokens=0, group_tokens=case.group_tokens).out

    def lists_error() -> float:
        return relative_error(lists(), attention_reference(q, inputs.pages, inputs.lists, 0, case.group_tokens).out)

    def window() -> Tensor:
        return dense_attention(q, dense[0], dense[1]).out

    def choose() -> Tensor:
        return select_pages(queries, short, case.listed).slots

    counts = torch.zeros(inputs.pages.lengths.shape, dtype=torch.int32, device=q.device)

    def counted_error() -> float:
        count_listed(inputs.lists, counts.zero_())
        slots, width = inputs.lists.slots.flatten(1), counts.shape[1]
        return float((counts - torch.stack([torch.bincount(row, minlength=width) for row in slots])).abs().sum())

    return [
        Part(
            "a step: queries into page order",
            lambda: q.index_select(0, order),
            lambda: relative_error(q.index_select(0, order)[order.argsort()], q),
            2 * q.nbytes,
        ),
        Part(
            "a step: mean queries",
            lambda: group_means(q, case.group_tokens),
            lambda: relative_error(group_means(q, case.group_tokens), reference.group_means(q, case.group_tokens)),
            q.nbytes,
        ),
        Part(
            f"a step: the best {case.listed} of {kept} pages",
            choose,
            lambda: chosen_error(choose(), reference.select_pages(queries, short, case.listed), scores),
            short.nbytes,
        ),
        Part(
            "a step: dense tokens alone", window,
            lambda: relative_error(sampled(window(), case), sample_exactly(inputs, "window")[0]),
        ),
        Part("a step: lists alone", lists, lists_error),
        Part(
            "a step: merge",
            lambda: merge_states(a, b),
            lambda: relative_error(merge_states(a, b).out, merge_reference(a, b).out),
            3 * q.nbytes,
        ),
        Part(COUNTING, lambda: count_listed(inputs.lists, counts), counted_error, inputs.lists.slots.nbytes),
    ]  # fmt: skip


def bank_means(inputs: Inputs) -> Tensor:
    """Mean keys of the pages of the bank, `[H, N, D]`."""
    return inputs.pages.k[:, inputs.case.first_bank_slot :].mean(dim=2)


def chosen_error(chosen: Tensor, right: Tensor, scores: Tensor) -> float:
    """How much less the chosen pages score together; near ties may be settled otherwise by sums in another order."""
    return relative_error(*(scores.gather(-1, slots.long()).double().sum(-1) for slots in (chosen, right)))


def shortlist_part(inputs: Inputs) -> Part:
    """Choosing each head's pages of a chunk from all."""
    case = inputs.case
    queries, means = group_means(inputs.q, case.group_tokens), bank_means(inputs)
    kept = min(case.shortlist or case.listed, means.shape[1])
    shares = (queries @ means.float().mT / case.head_dim**0.5).softmax(dim=-1).sum(dim=1)  # [H, N]
    return Part(
        f"a chunk: shortlist of {kept} from {means.shape[1]}",
        lambda: shortlist_pages(queries, means, kept),
        lambda: chosen_error(
            shortlist_pages(queries, means, kept), reference.shortlist_pages(queries, means, kept), shares
        ),
        means.nbytes,
    )


@dataclass(frozen=True, slots=True)
class PageCopy:
    """Bringing a shortlist of every head into the working set."""

    slots: Tensor  # [H, M] int32
    turns: Tensor
    rotation: Tensor
    rows: Tensor
    k_out: Tensor  # [H, M x P, D]
    v_out: Tensor

    def bring(self, pages: Pages) -> None:
        """Do it."""
        copy_pages(pages, self.slots, self.turns, self.rotation, self.rows, self.k_out, self.v_out)

    def error(self, pages: Pages, same: Pages | None = None) -> float:
        """Against the reference, which is given `same` where it cannot read `pages` itself."""
        self.bring(pages)
        right = [torch.zeros_like(x) for x in (self.k_out, self.v_out)]
        copy_reference(
            pages if same is None else same, self.slots, self.turns, self.rotation, self.rows, right[0], right[1]
        )
        return max(relative_error(*pair) for pair in zip((self.k_out, self.v_out), right, strict=True))


def page_copy(inputs: Inputs) -> PageCopy:
    """A copy of as many pages of the bank as a shortlist has."""
    case, device = inputs.case, inputs.q.device
    bank = inputs.pages.k.shape[1] - case.first_bank_slot
    count = min(case.shortlist or case.listed, bank)
    slots = torch.rand(case.heads, bank, device=device).topk(count).indices.sort().values + case.first_bank_slot
    rotation = time_rotation(range(case.frames), min(TIME_CHANNELS, case.head_dim), THETA, device)
    rows = torch.arange(count, dtype=torch.int32, device=device) * case.page_tokens
    shape = (case.heads, count * case.page_tokens, case.head_dim)
    k_out, v_out = (torch.zeros(shape, dtype=case.dtype, device=device) for _ in range(2))
    return PageCopy(slots.int(), (slots % case.frames).int(), rotation, rows, k_out, v_out)


def copy_parts(inputs: Inputs) -> list[Part]:
    """The copy of a shortlist, as it is and from 8 bits."""
    copy, pages = page_copy(inputs), inputs.pages
    codes = round_pages(pages)
    written = copy.k_out.nbytes + copy.v_out.nbytes
    count, size = copy.slots.shape[1], inputs.q.itemsize
    return [
        Part(f"a chunk: copy of {count} pages", lambda: copy.bring(pages), lambda: copy.error(pages), 2 * written),
        Part(
            f"a chunk: copy of {count} pages in 8 bits", lambda: copy.bring(codes), lambda: copy.error(codes),
            written + written // size,
        ),
    ]  # fmt: skip


def round_pages(pages: Pages) -> Pages:
    """The pages in 8 bits, the mean key of each head taken out first."""
    codes = [torch.empty_like(x, dtype=torch.int8) for x in pages[:2]]
    scales = [torch.empty(x.shape[:3], device=x.device) for x in pages[:2]]
    mean = torch.stack([head.float().mean(dim=(0, 1)) for head in pages.k])  # [H, D]
    for head in range(len(mean)):
        codes[0][head], scales[0][head] = rounded(pages.k[head].float() - mean[head])
        codes[1][head], scales[1][head] = rounded(pages.v[head].float())
    return Pages(codes[0], codes[1], pages.lengths, Rounding(scales[0], scales[1], mean))


def write_part(inputs: Inputs) -> Part:
    """Writing the pages of a chunk, with their means."""
    case, device = inputs.case, inputs.q.device
    count = case.chunk_frames * case.pages_per_frame
    lengths = inputs.pages.lengths[:, -count:]
    live = torch.arange(case.page_tokens, device=device) < lengths[..., None]  # [H, M, P]
    source = torch.randint(0, case.tokens, (count, case.page_tokens), dtype=torch.int32, device=device)
    slots = torch.arange(count, dtype=torch.int32, device=device)
    k, v = (x[:, : case.tokens].transpose(0, 1).contiguous() for x in (inputs.k, inputs.v))  # [L, H, D]

    def target() -> tuple[Pages, Tensor]:
        k_pages, v_pages = (torch.zeros_like(x[:, :count]) for x in inputs.pages[:2])
        return Pages(k_pages, v_pages, lengths), torch.empty_like(k_pages[:, :, 0])

    pages, means = target()

    def error() -> float:
        write_pages(k, v, source, slots, pages, means)
        right, right_means = target()
        write_reference(k, v, source, slots, right, right_means, None)
        pairs = [(means, right_means), *((a[live], b[live]) for a, b in zip(pages[:2], right[:2], strict=True))]
        return max(relative_error(*pair) for pair in pairs)

    return Part(
        "a commit: write", lambda: write_pages(k, v, source, slots, pages, means), error, 4 * k.nbytes
    )  # fmt: skip
