"""Correctness first, then times: no number for what is wrong, and a reason for who is absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..page_attention.reference import read_tokens
from .cases import PROFILES, Inputs, KernelCase, build_inputs
from .measure import EFFORTS, Effort, Times, describe_machine, measure
from .parts import make_parts
from .peers import DENSE, PEERS, WINDOW, AbsentError, Peer, Run

SAMPLES = 6
ERROR_FACTOR = 2.0  # against PyTorch in the same type, as in the tests


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation in one case.

    `times_dense` is how many times faster than dense attention over the whole history it is, `times_window` how many
    times as long as the window alone it takes. What was not measured is None, and `note` says why.
    """

    case: str
    implementation: str
    milliseconds: float | None = None
    p10: float | None = None
    p90: float | None = None
    warm_milliseconds: float | None = None
    relative_error: float | None = None
    times_dense: float | None = None
    times_window: float | None = None
    tflops: float | None = None
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class KernelBench:
    """What `run_kernel_bench` measured."""

    profile: str
    machine: dict[str, str | float]
    bytes: dict[str, dict[str, int]]
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The result for people, in Markdown."""
        head = ("case", "implementation", "ms", "10 to 90 %", "error", "x faster than dense", "x window", "TFLOP/s", "")
        lines = [head, ("---",) * len(head)]
        for row in self.rows:
            tenths = "" if row.p10 is None or row.p90 is None else f"{row.p10:.3g} to {row.p90:.3g}"
            numbers = (row.relative_error, row.times_dense, row.times_window, row.tflops)
            lines.append(
                (row.case, row.implementation, shown(row.milliseconds), tenths, *map(shown, numbers), row.note)
            )
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{text}\n\n{self.machine}"


def shown(number: float | None) -> str:
    """Three digits, or nothing."""
    return "" if number is None else f"{number:.3g}"


def run_kernel_bench(
    profile: str = "smoke", device: str = "cpu", *, rounds: int | None = None, cases: Sequence[str] = ()
) -> KernelBench:
    """Measure the kernels and their peers: `smoke` in seconds, `full` at the size of real models.

    `rounds` overrides how often everything is timed, `cases` keeps the cases of these names.
    Raises ValueError when there is no such profile, device or case.
    """
    at = torch.device(device)
    if (profile, at.type) not in PROFILES:
        raise ValueError(f"The bench needs one of {sorted(PROFILES)}, got {(profile, at.type)}.")
    chosen = [case for case in PROFILES[profile, at.type] if not cases or case.name in cases]
    if not chosen:
        raise ValueError(f"No case of {profile} is named {' or '.join(cases)}.")
    effort = EFFORTS[profile, at.type]
    if rounds is not None:
        effort = replace(effort, rounds=rounds)
    machine = describe_machine(at, small=profile == "smoke")
    rows: list[Row] = []
    held: dict[str, dict[str, int]] = {}
    for case in chosen:
        inputs = build_inputs(case, at)
        held[case.name] = held_bytes(inputs)
        rows += measure_case(inputs, effort)
    return KernelBench(profile, machine, held, rows)


def held_bytes(inputs: Inputs) -> dict[str, int]:
    """Bytes of one layer: the history as it was, in pages, their means, the lists, and what a union would gather."""
    pages, lists = inputs.pages, inputs.lists
    page_bytes = 2 * pages.k.shape[2] * pages.k.shape[3] * pages.k.itemsize
    gathered = sum(int(slots.unique().numel()) for slots in lists.slots)
    return {
        "history": inputs.k.nbytes + inputs.v.nbytes,
        "pages": pages.k.nbytes + pages.v.nbytes,
        "summaries": pages.k.nbytes // pages.k.shape[2],
        "lists": lists.slots.nbytes + lists.counts.nbytes,
        "shortlist": inputs.case.heads * inputs.case.shortlist * page_bytes,
        "union": gathered * page_bytes,
    }


def measure_case(inputs: Inputs, effort: Effort) -> list[Row]:
    """Rows of all peers, then of the parts."""
    device = inputs.q.device
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    exact = {reads: sample_exactly(inputs, reads) for reads in ("history", "window", "lists")}
    for peer in PEERS:
        rows[peer.name], run = check(peer, inputs, *exact[peer.reads])
        if run is not None:
            runs[peer.name] = run
    times = measure(runs, effort, device)
    for peer in PEERS:
        if peer.name in times:
            flops = 4 * inputs.read_tokens(peer.reads) * inputs.case.tokens * inputs.case.heads * inputs.case.head_dim
            rows[peer.name] = timed(rows[peer.name], times, flops)
    runs.clear()
    parts = measure(make_parts(inputs), effort, device)
    pieces = [with_times(Row(inputs.case.name, name), found) for name, found in parts.items()]
    return [*rows.values(), *pieces]


def check(peer: Peer, inputs: Inputs, exact: Tensor, torch_error: float) -> tuple[Row, Run | None]:
    """The row of a peer with its error, and what to time, if there is anything to time."""
    row = Row(inputs.case.name, peer.name)
    on_gpu = inputs.q.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        run = peer.ready(inputs)
        sampled = torch.cat([run()[part] for part in sampled_parts(inputs.case)])
    except AbsentError as absence:
        return replace(row, note=f"absent: {absence}"), None
    except torch.OutOfMemoryError:
        return replace(row, note="out of memory"), None
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as refusal:
        if not peer.foreign:
            raise
        return replace(row, note=f"refused: {str(refusal).splitlines()[0]}"), None
    error = relative_error(sampled, exact)
    allowed = max(ERROR_FACTOR * torch_error, torch.finfo(inputs.q.dtype).eps) + peer.known_error
    row = replace(row, relative_error=error)
    if on_gpu:
        row = replace(row, peak_bytes=torch.cuda.max_memory_allocated() - before)
    if not error <= allowed:
        return replace(row, note=f"wrong: at most {allowed:.1e} is allowed"), None
    return row, run


def sampled_parts(case: KernelCase) -> list[tuple[slice, int]]:
    """Queries of a group and a head, some of all."""
    pairs = [(i * case.groups // SAMPLES, i * case.heads // SAMPLES) for i in range(SAMPLES)]
    size = case.group_tokens
    return [(slice(group * size, min((group + 1) * size, case.tokens)), head) for group, head in pairs]


def sample_exactly(inputs: Inputs, reads: str) -> tuple[Tensor, float]:
    """What attention gives for the sampled queries in float64, and the error of PyTorch in the type of the case."""
    case = inputs.case
    exact, plain = [], []
    for rows, head in sampled_parts(case):
        q, k, v = inputs.q[rows, head], inputs.k[head], inputs.v[head]
        if reads == "window":
            k, v = k[: case.dense_tokens], v[: case.dense_tokens]
        elif reads == "lists":
            group = rows.start // case.group_tokens
            k, v = (
                read_tokens(x[head], inputs.pages, inputs.lists, case.dense_tokens, head, group)
                for x in inputs.pages[:2]
            )
        scores = q.double() @ k.double().T / math.sqrt(case.head_dim)
        exact.append(scores.softmax(dim=-1) @ v.double())
        plain.append(scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0])
    expected = torch.cat(exact)
    return expected, relative_error(torch.cat(plain), expected)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    return float((out.double() - exact).norm() / exact.norm())


def with_times(row: Row, found: Times) -> Row:
    """A row with what was measured."""
    return replace(row, **asdict(found))


def timed(row: Row, times: dict[str, Times], flops: float) -> Row:
    """The row of a peer with its times, also against dense attention and the window."""
    found = times[row.implementation]
    dense, window = times.get(DENSE), times.get(WINDOW)
    return replace(
        with_times(row, found),
        times_dense=dense.milliseconds / found.milliseconds if dense else None,
        times_window=found.milliseconds / window.milliseconds if window else None,
        tflops=flops / found.milliseconds / 1e9,
    )
