"""What memory costs a whole model: a layer of Wan's shapes with random weights, and from it a pass and a chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, scaled_dot_product_attention

from ..page_attention import page_attention
from ..page_copy import time_rotation
from ..page_scores import group_means, select_pages
from ..pages import PageLists, count_listed, rows_of
from .cases import Inputs, KernelCase
from .exact import allowed_error, relative_error, sample_exactly, sampled
from .measure import Effort, measure
from .parts import COUNTING, THETA, bank_means
from .recorded import turned
from .report import Row

TEXT_TOKENS = 512
STEPS = 4
SHORTLISTS = 3  # of a chunk: at its first and second step, and for the commit
FRAMES_PER_LATENT = 4
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [L, H, D] -> [L, H, D]


class WanLayer:
    """Self-attention, attention to the text and the feed-forward network, all with modulation, norms and gates."""

    def __init__(self, inputs: Inputs) -> None:
        """Random weights of the case's sizes."""
        case, q = inputs.case, inputs.q
        width = case.heads * case.head_dim
        generator = torch.Generator(q.device).manual_seed(1)

        def weights(*shape: int) -> Tensor:
            drawn: Tensor = torch.randn(shape, generator=generator, device=q.device, dtype=case.dtype)
            return drawn / math.sqrt(shape[-1])

        self.shape = (case.heads, case.head_dim)
        self.q, self.k, self.v, self.o, self.text_q, self.text_o = (weights(width, width) for _ in range(6))
        assert case.ffn is not None
        self.up, self.down = weights(case.ffn, width), weights(width, case.ffn)
        self.modulation = weights(6, width)
        self.text_k, self.text_v = (weights(case.heads, TEXT_TOKENS, case.head_dim)[None] for _ in range(2))
        self.x = weights(case.tokens, width)

    def run(self, attend: Attend) -> Tensor:
        """Hidden state `[L, C]` after the layer."""
        x, width = self.x, (self.x.shape[1],)
        scale, shift, gate, scale_up, shift_up, gate_up = self.modulation
        h = layer_norm(x, width) * (1 + scale) + shift
        q, k = (rms_norm(linear(h, weight), width).unflatten(1, self.shape) for weight in (self.q, self.k))
        out = attend(q, k, linear(h, self.v).unflatten(1, self.shape))
        x = x + linear(out.flatten(1), self.o) * gate
        q = rms_norm(linear(layer_norm(x, width), self.text_q), width).unflatten(1, self.shape)
        out = scaled_dot_product_attention(q.transpose(0, 1)[None], self.text_k, self.text_v)[0].transpose(0, 1)
        x = x + linear(out.flatten(1), self.text_o)
        h = gelu(linear(layer_norm(x, width) * (1 + scale_up) + shift_up, self.up), approximate="tanh")
        done: Tensor = x + linear(h, self.down) * gate_up
        return done


class Memories:
    """Ways for a layer's self-attention to read; each puts the chunk's own keys where it reads them."""

    def __init__(self, inputs: Inputs) -> None:
        """Tables, and the bank's first pages as the shortlist."""
        case, device = inputs.case, inputs.q.device
        self.inputs = inputs
        rotation = time_rotation(range(case.tokens), case.head_dim, THETA, device)  # its cost is the same as Wan's
        self.rotation = rotation[:, None].to(case.dtype)  # [L, 1, D / 2, 2, 2]
        self.order = torch.randperm(case.tokens, device=device)
        self.back = self.order.argsort()
        self.means = bank_means(inputs)[:, : case.shortlist or None].contiguous()
        self.counts = torch.zeros(inputs.pages.lengths.shape, dtype=torch.int32, device=device)
        self.seen: tuple[Tensor, PageLists, Tensor] | None = None

    def window(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Sink, window and chunk."""
        return self._dense(q, k, v, self.inputs.case.dense_tokens)

    def history(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Everything."""
        return self._dense(q, k, v, self.inputs.k.shape[1])

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, end: int) -> Tensor:
        keys, values = self.inputs.k[:, :end], self.inputs.v[:, :end]
        keys[:, -len(k) :], values[:, -len(v) :] = self._turned(k).transpose(0, 1), v.transpose(0, 1)
        turned_q = self._turned(q).transpose(0, 1)[None]
        return scaled_dot_product_attention(turned_q, keys[None], values[None])[0].transpose(0, 1)

    def longreel(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Sink, window and chunk, and the pages that each group chooses from the shortlist."""
        case, pages = self.inputs.case, self.inputs.pages
        own = slice(case.dense_tokens - len(k), case.dense_tokens)
        rows_of(pages.k)[:, own] = self._turned(k).index_select(0, self.order).transpose(0, 1)
        rows_of(pages.v)[:, own] = v.index_select(0, self.order).transpose(0, 1)
        read_q, timeless = (self._turned(q).index_select(0, self.order) for _ in range(2))  # Wan turns them twice, too
        queries = group_means(timeless, case.group_tokens)
        lists = select_pages(queries, self.means, case.listed, first_slot=case.first_bank_slot)
        out = page_attention(read_q, pages, lists, dense_tokens=case.dense_tokens, group_tokens=case.group_tokens).out
        self.seen = (read_q, lists, out)
        return out.index_select(0, self.back)

    def counted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `longreel`, and what was read is counted for the trace."""
        out = self.longreel(q, k, v)
        assert self.seen is not None
        count_listed(self.seen[1], self.counts)
        return out

    def _turned(self, x: Tensor) -> Tensor:
        return turned(x, self.rotation)

    def error(self) -> tuple[float, float]:
        """Of the last attention of `longreel`, and PyTorch's own in the same type."""
        assert self.seen is not None
        read_q, lists, out = self.seen
        exact, plain = sample_exactly(self.inputs._replace(q=read_q, lists=lists), "lists")
        return relative_error(sampled(out, self.inputs.case), exact), plain


def measure_pass(inputs: Inputs, effort: Effort, parts: Sequence[Row]) -> list[Row]:
    """Rows of a layer with each memory, of a pass and of a chunk. Overwrites the chunk's own keys in `inputs`."""
    case = inputs.case
    layer, memories = WanLayer(inputs), Memories(inputs)
    layer.run(memories.longreel)
    error, plain = memories.error()
    if not error <= allowed_error(case.dtype, plain):
        return [Row(case.name, "layer: LongReel", relative_error=error, note="wrong")]
    runs: dict[str, Callable[[], object]] = {
        "window alone": lambda: layer.run(memories.window),
        OURS: lambda: layer.run(memories.longreel),
        OURS_COUNTED: lambda: layer.run(memories.counted),
    }
    if inputs.q.is_cuda or inputs.k.shape[1] < WORTH_READING:
        runs["whole history"] = lambda: layer.run(memories.history)
    times = measure(runs, effort, inputs.q.device)
    window = times["window alone"].milliseconds
    upkeep = chunk_upkeep(parts)
    rows = []
    for name, found in times.items():
        of_ours = name in (OURS, OURS_COUNTED)
        row = Row(case.name, f"layer: {name}", **asdict(found), relative_error=error if of_ours else None)
        rows.append(replace(row, times_window=found.milliseconds / window))
        a_pass = case.layers * found.milliseconds
        rows.append(derived(row, f"a pass of {case.layers} layers: {name}", a_pass, case.layers * window))
        chunk = (STEPS + 1) * a_pass + (case.layers * upkeep if of_ours else 0.0)
        row = derived(row, f"a chunk of {STEPS} steps and a commit: {name}", chunk, (STEPS + 1) * case.layers * window)
        pictures = 1000 * case.chunk_frames * FRAMES_PER_LATENT / chunk
        rows.append(replace(row, note=f"{row.note}; {pictures:.3g} pictures a second before the VAE"))
        if name == OURS:
            rows.append(counting_row(case, parts, chunk, (STEPS + 1) * case.layers * window))
    if len(times) < 3:
        rows.append(Row(case.name, "layer: whole history", note="left out on a CPU: see attention alone"))
    return rows


OURS, OURS_COUNTED = "LongReel", "LongReel, counted for its trace"
WORTH_READING = 100_000  # tokens of history above which a CPU would take minutes again


def counting_row(case: KernelCase, parts: Sequence[Row], chunk: float, window: float) -> Row:
    """What the trace costs while a chunk of `chunk` milliseconds is made: the part measured alone, which no noise hides."""
    alone = next(row.milliseconds or 0.0 for row in parts if row.implementation == COUNTING)
    spent = STEPS * case.layers * alone
    row = Row(case.name, f"a chunk of {STEPS} steps: counting what is read", spent, times_window=spent / window)
    return replace(row, note=f"reckoned from a step; {spent / chunk:.2%} of LongReel's chunk")


def derived(row: Row, name: str, milliseconds: float, window: float) -> Row:
    """A row that was reckoned from a layer."""
    return Row(row.case, name, milliseconds, times_window=milliseconds / window, note="reckoned from the layer")


def chunk_upkeep(parts: Sequence[Row]) -> float:
    """Milliseconds a layer and chunk for shortlists, copies out of the bank in 8 bits, and the write."""
    times = {row.implementation: row.milliseconds or 0.0 for row in parts}
    shortlist = next(time for name, time in times.items() if name.startswith("a chunk: shortlist"))
    copy = next(time for name, time in times.items() if name.endswith("in 8 bits"))
    return SHORTLISTS * (shortlist + copy) + times["a commit: write"]
