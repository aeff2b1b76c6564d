"""Who is measured: ours, dense attention, a window, and every way to read the same lists that can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from ..dense_attention import dense_attention
from ..dispatch import NoImplementationError, facts_of
from ..merge_states import merge_states
from ..page_attention import OPERATION, page_attention
from ..page_copy import time_rotation
from ..pages import PageLists, Pages, rows_of
from ..state import AttentionState
from .cases import Inputs
from .parts import PageCopy, round_pages

Run = Callable[[], Tensor]
Ready = Callable[[Inputs], Run]


class AbsentError(RuntimeError):
    """A peer that cannot take part here, and why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One implementation: what it reads (history, window or lists), and how it is made ready, which is not timed.

    `known_error` is allowed on top to those that compute in 8 bits. What a `foreign` one raises is its refusal; any other
    error comes out. One of `ours` is compared with the fastest of the others that read the same.
    """

    name: str
    reads: str
    ready: Ready
    known_error: float = 0.0
    foreign: bool = False
    ours: bool = False


def module(name: str) -> Any:
    """A package that may be there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AbsentError(f"{name} cannot be imported: {error}") from error


def history(inputs: Inputs) -> Run:
    """Dense attention over the whole history, by the backend that torch chooses."""
    q = inputs.q.transpose(0, 1)[None]
    return lambda: scaled_dot_product_attention(q, inputs.k[None], inputs.v[None])[0].transpose(0, 1)


def backend(inputs: Inputs) -> str:
    """What torch's dense attention runs on here."""
    q = inputs.q.transpose(0, 1)[None]
    return f"by torch's {SDPBackend(torch._fused_sdp_choice(q, inputs.k[None], inputs.v[None])).name}"


def window(inputs: Inputs) -> Run:
    """Dense attention over sink, window and chunk: a model without memory."""
    q = inputs.q.transpose(0, 1)[None]
    k, v = (x[None, :, : inputs.case.dense_tokens] for x in (inputs.k, inputs.v))
    return lambda: scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def implementation(name: str) -> Ready:
    """One of our implementations."""

    def ready(inputs: Inputs) -> Run:
        case = inputs.case
        try:
            OPERATION.choose(facts_of(inputs.q), name)
        except NoImplementationError as error:
            reasons = [line.strip() for line in str(error).splitlines() if line.strip().startswith(f"{name}:")]
            raise AbsentError(reasons[0]) from error
        sizes = {"dense_tokens": case.dense_tokens, "group_tokens": case.group_tokens}
        return lambda: page_attention(inputs.q, inputs.pages, inputs.lists, **sizes, implementation=name).out

    return ready


def eight_bits(inputs: Inputs) -> Run:
    """The bank in 8 bits: every page that a head lists is copied into the working set first, then attention reads it."""
    case, pages, lists = inputs.case, inputs.pages, inputs.lists
    first, device = case.first_bank_slot, inputs.q.device
    wanted = [slots.unique() for slots in lists.slots]  # of each head
    count = max(map(len, wanted))
    slots = torch.stack([pad(of_head, (0, count - len(of_head)), value=int(of_head[-1])) for of_head in wanted])
    working = [x[:, : first + count].clone() for x in pages[:2]]  # [H, first + M, P, D]
    places = torch.searchsorted(slots, lists.slots.flatten(1)).view(lists.slots.shape) + first
    lengths = torch.cat([pages.lengths[:, :first], pages.lengths.gather(1, slots.long())], dim=1)
    copy = PageCopy(
        slots.int(),
        torch.zeros_like(slots, dtype=torch.int32),
        time_rotation([0.0], case.head_dim, 1.0, device),  # these keys are turned already
        torch.arange(first, first + count, dtype=torch.int32, device=device) * case.page_tokens,
        *(rows_of(x) for x in working),
    )
    codes, own = round_pages(pages), PageLists(places.int(), lists.counts)
    read = Pages(working[0], working[1], lengths)

    def run() -> Tensor:
        copy.bring(codes)
        dense, group = case.dense_tokens, case.group_tokens
        return page_attention(inputs.q, read, own, dense_tokens=dense, group_tokens=group).out

    return run


def union(inputs: Inputs) -> Run:
    """The naive way: the union of all groups' pages of a head is gathered, and a mask says who reads what of it."""
    case, pages, lists = inputs.case, inputs.pages, inputs.lists
    first = case.first_bank_slot
    token = torch.arange(case.page_tokens, device=inputs.q.device)
    group_of = torch.arange(case.tokens, device=inputs.q.device) // case.group_tokens
    prepared = []
    for head in range(case.heads):
        slots = lists.slots[head].unique().long()
        listed = torch.zeros(case.groups, pages.k.shape[1], dtype=torch.bool, device=slots.device)
        listed.scatter_(1, lists.slots[head].long(), True)
        live = token < pages.lengths[head, slots, None]
        prepared.append((slots, listed[:, slots], live))
    assert all(int(slots.min()) >= first for slots, _, _ in prepared)

    def run() -> Tensor:
        outs = []
        for head, (slots, listed, live) in enumerate(prepared):
            dense = (rows_of(x)[head, : case.dense_tokens] for x in pages[:2])
            k, v = (torch.cat([d, x[head, slots].flatten(0, 1)]) for d, x in zip(dense, pages[:2], strict=True))
            reads = (listed[:, :, None] & live).flatten(1)  # [groups, pages x P]
            mask = torch.cat([reads.new_ones(case.groups, case.dense_tokens), reads], dim=1)[group_of]
            outs.append(scaled_dot_product_attention(inputs.q[None, None, :, head], k[None, None], v[None, None], mask))
        return torch.cat(outs, dim=1)[0].transpose(0, 1)

    return run


def flex(inputs: Inputs) -> Run:
    """FlexAttention with the same lists as a block mask; compiled, since it reads whole histories when it is not."""
    case, pages = inputs.case, inputs.pages
    device = inputs.q.device
    if case.group_tokens % 16 or case.page_tokens % 16:
        raise AbsentError(f"needs groups and pages of 16s, got {case.group_tokens} and {case.page_tokens}")
    if device.type == "cpu" and inputs.k.shape[1] < WORTH_COMPILING:
        raise AbsentError("compiling it for a CPU takes longer than this case is worth")
    first = case.first_bank_slot
    dense = torch.arange(first, dtype=torch.int32, device=device).expand(case.heads, case.groups, first)
    slots = torch.cat([dense, inputs.lists.slots], dim=2)[None]
    counts = torch.full(slots.shape[:3], slots.shape[3], dtype=torch.int32, device=device)
    slots = pad(slots, (0, pages.k.shape[1] - slots.shape[3]))  # its lists are as wide as there are pages
    # Lengths are the same in all heads here.
    live = (torch.arange(case.page_tokens, device=device) < pages.lengths[0, :, None]).flatten()
    live[: first * case.page_tokens] = torch.arange(first * case.page_tokens, device=device) < case.dense_tokens

    def only_live(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return live[key]

    q = inputs.q.transpose(0, 1)[None]
    k, v = (rows_of(x)[None] for x in pages[:2])
    mask = BlockMask.from_kv_blocks(
        counts,
        slots,
        BLOCK_SIZE=(case.group_tokens, case.page_tokens),
        mask_mod=only_live,
        seq_lengths=(case.tokens, k.shape[2]),
        compute_q_blocks=False,
    )
    attend: Callable[..., Any] = torch.compile(flex_attention)
    return lambda: attend(q, k, v, block_mask=mask)[0].transpose(0, 1)


WORTH_COMPILING = 100_000


def varlen(inputs: Inputs) -> Run:
    """torch's varlen_attn over a table of pages, heads and groups folded into its batch, merged with dense attention."""
    case, pages, lists = inputs.case, inputs.pages, inputs.lists
    if inputs.q.device.type != "cuda":
        raise AbsentError("needs CUDA")
    if case.frame_tokens % case.page_tokens or case.tokens % case.group_tokens:
        raise AbsentError("needs full pages and groups")
    library = module("torch.nn.attention.varlen")
    batch = case.heads * case.groups
    pool = [x.flatten(0, 1)[:, :, None] for x in pages[:2]]  # [H x N, P, 1, D]
    offsets = torch.arange(case.heads, dtype=torch.int32, device=inputs.q.device) * pages.k.shape[1]
    table = (lists.slots + offsets[:, None, None]).flatten(0, 1)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=table.device) * case.group_tokens
    used = torch.full((batch,), table.shape[1] * case.page_tokens, dtype=torch.int32, device=table.device)
    k, v = (rows_of(x)[:, : case.dense_tokens] for x in pages[:2])

    def run() -> Tensor:
        folded = inputs.q.transpose(0, 1).reshape(-1, 1, case.head_dim)  # [H x L, 1, D]
        out, lse = library.varlen_attn(
            folded, *pool, starts, None, case.group_tokens, int(table.shape[1] * case.page_tokens),
            return_aux=library.AuxRequest(lse=True), seqused_k=used, block_table=table,
        )  # fmt: skip
        out, lse = out.view(case.heads, case.tokens, -1), lse.view(case.heads, case.tokens)
        own = AttentionState(out.transpose(0, 1), lse.transpose(0, 1).float())
        return merge_states(dense_attention(inputs.q, k, v), own).out

    return run


def flash_attn(inputs: Inputs) -> Run:
    """Dense attention over the whole history by the flash-attn package."""
    attend = module("flash_attn").flash_attn_func
    q, k, v = inputs.q[None], inputs.k.transpose(0, 1)[None], inputs.v.transpose(0, 1)[None]
    return lambda: attend(q, k, v)[0]


def sage(inputs: Inputs) -> Run:
    """Dense attention over the whole history in 8 bits by SageAttention."""
    attend = module("sageattention").sageattn
    q, k, v = inputs.q.transpose(0, 1)[None], inputs.k[None], inputs.v[None]
    return lambda: attend(q, k, v, tensor_layout="HND")[0].transpose(0, 1)


def kitchen(inputs: Inputs) -> Run:
    """Dense attention over the whole history in 8 bits by comfy-kitchen, which ComfyUI brings."""
    attend = getattr(module("comfy_kitchen"), "int8_attention", None)
    if attend is None:
        raise AbsentError("this comfy_kitchen has no int8_attention")
    if inputs.q.device.type != "cuda":
        raise AbsentError("needs CUDA")
    q, k, v = inputs.q.transpose(0, 1)[None], inputs.k[None], inputs.v[None]
    return lambda: attend(q, k, v)[0].transpose(0, 1)


def flashinfer(inputs: Inputs) -> Run:
    """FlashInfer's variable block sparse attention: the same lists, as a mask of rows and columns."""
    library = module("flashinfer.sparse")
    case, pages, device = inputs.case, inputs.pages, inputs.q.device
    first = case.first_bank_slot
    listed = torch.zeros(case.heads, case.groups, pages.k.shape[1], dtype=torch.bool, device=device)
    listed.scatter_(2, inputs.lists.slots.long(), True)
    listed[:, :, :first] = True
    rows = torch.full((case.heads, case.groups), case.group_tokens, device=device)
    rows[:, -1] = case.tokens - (case.groups - 1) * case.group_tokens
    columns = pages.lengths.clone()
    columns[:, first - 1] = case.dense_tokens - (first - 1) * case.page_tokens
    wrapper = library.VariableBlockSparseAttentionWrapper(torch.empty(2**27, dtype=torch.uint8, device=device))
    wrapper.plan(
        listed, rows.int(), columns.int(), case.heads, case.heads, case.head_dim, q_data_type=case.dtype
    )  # fmt: skip
    q = inputs.q.transpose(0, 1).contiguous()
    return lambda: wrapper.run(q, inputs.k, inputs.v).transpose(0, 1)


INT8_ERROR = 0.05
PEERS = (
    Peer("dense SDPA, whole history", "history", history),
    Peer("sliding window SDPA", "window", window),
    Peer("LongReel, torch", "lists", implementation("torch"), ours=True),
    Peer("LongReel, Triton", "lists", implementation("triton"), ours=True),
    Peer("LongReel, Triton and SDPA", "lists", implementation("split"), ours=True),
    Peer("LongReel, bank in 8 bits copied first", "lists", eight_bits, INT8_ERROR, ours=True),
    Peer("union buffer and mask", "lists", union),
    Peer("FlexAttention", "lists", flex, foreign=True),
    Peer("varlen_attn with a table of pages", "lists", varlen, foreign=True),
    Peer("FlashInfer, variable blocks", "lists", flashinfer, foreign=True),
    Peer("flash-attn, whole history", "history", flash_attn, foreign=True),
    Peer("SageAttention, whole history", "history", sage, INT8_ERROR, foreign=True),
    Peer("comfy-kitchen int8, whole history", "history", kitchen, INT8_ERROR, foreign=True),
)
DENSE, WINDOW = PEERS[0].name, PEERS[1].name
