"""Correctness first, then times: no number for what is wrong, and a reason for who is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from .cases import PROFILES, FilmLists, Inputs, KernelCase, build_inputs
from .exact import SUM_ERROR, allowed_error, relative_error, sample_exactly, sampled
from .measure import EFFORTS, Effort, Times, describe_machine, measure, milliseconds
from .offload import make_offload_parts
from .parts import Part, make_parts
from .peers import DENSE, PEERS, WINDOW, AbsentError, Peer, Run, backend
from .quality import measure_quality, shortlist_kept
from .report import ALL_LAYERS_FRAME, KernelBench, Row
from .whole_pass import measure_pass

INDEX_FRAMES = 64  # whose page means lie on the card, as the memory's index has it


def run_kernel_bench(
    profile: str = "smoke",
    device: str = "cpu",
    *,
    rounds: int | None = None,
    cases: Sequence[str] = (),
    note: str = "",
    film: FilmLists | None = None,
) -> KernelBench:
    """Measure the kernels and their peers: `smoke` in seconds, `full` at the size of real models.

    `rounds` overrides how often everything is timed, `cases` keeps the cases of these names, `note` stays with the result.
    A `film` brings cases of its own in the place of the profile's.
    Raises ValueError when there is no such profile, device or case.
    """
    at = torch.device(device)
    if (profile, at.type) not in PROFILES:
        raise ValueError(f"The bench needs one of {sorted(PROFILES)}, got {(profile, at.type)}.")
    there = PROFILES[profile, at.type] if film is None else film.cases
    chosen = [case for case in there if not cases or case.name in cases]
    if not chosen:
        raise ValueError(f"No case of {profile} is named {' or '.join(cases)}.")
    effort = EFFORTS[profile, at.type]
    if rounds is not None:
        effort = replace(effort, rounds=rounds)
    machine = describe_machine(at, small=profile == "smoke")
    if note:
        machine["note"] = note
    rows: list[Row] = []
    held: dict[str, dict[str, int]] = {}
    for case in chosen:
        try:
            held[case.name], found = measure_case(build_inputs(case, at, film), effort)
            rows += found
        except torch.OutOfMemoryError:
            rows.append(Row(case.name, "everything", note="out of memory"))
    kept = f"{shortlist_kept():.0%} of the first step's pages are still wanted at the last one"
    rows.append(Row("recorded film", "offload: what a new shortlist keeps of an old one", note=kept))
    return KernelBench(profile, machine, held, rows, measure_quality())


def held_bytes(inputs: Inputs) -> dict[str, int]:
    """Bytes of one layer: the history as it was, in pages, their means, the lists, and what is copied of a bank.

    For all layers: a frame of history, and what has to lie on the card for the bank to lie elsewhere.
    """
    case, pages, lists = inputs.case, inputs.pages, inputs.lists
    page_bytes = 2 * pages.k.shape[2] * pages.k.shape[3] * pages.k.itemsize
    gathered = sum(int(slots.unique().numel()) for slots in lists.slots)
    dense, shortlist = case.heads * case.first_bank_slot * page_bytes, case.heads * case.shortlist * page_bytes
    index = case.heads * INDEX_FRAMES * case.pages_per_frame * case.head_dim * pages.k.itemsize
    return {
        "history": inputs.k.nbytes + inputs.v.nbytes,
        "pages": pages.k.nbytes + pages.v.nbytes,
        "summaries": pages.k.nbytes // pages.k.shape[2],
        "lists": lists.slots.nbytes + lists.counts.nbytes,
        "dense": dense,
        "shortlist": shortlist,
        "union": gathered * page_bytes,
        ALL_LAYERS_FRAME: case.layers * (inputs.k.nbytes + inputs.v.nbytes) // case.frames,
        "LongReel on the card, all layers": case.layers * (dense + shortlist + index),
    }


def measure_case(inputs: Inputs, effort: Effort) -> tuple[dict[str, int], list[Row]]:
    """Bytes, and rows of all peers, of the parts, of what the bank costs when it lies elsewhere, and of a whole Wan layer."""
    rows = measure_peers(inputs, effort)
    window = next(row.milliseconds for row in rows if row.implementation == WINDOW)
    parts = [against_window(row, window) for row in measure_parts(make_parts(inputs), inputs, effort)]
    offload = measure_parts(make_offload_parts(inputs), inputs, effort) if inputs.q.is_cuda else absent_offload(inputs)
    layer = [] if inputs.case.ffn is None else measure_pass(inputs, effort, parts)
    rows += [*parts, sum_of_step(inputs.case, parts, window), *offload, *layer]
    return held_bytes(inputs), rows


def measure_peers(inputs: Inputs, effort: Effort) -> list[Row]:
    """Rows of all peers."""
    rows: dict[str, Row] = {}
    runs: dict[str, Run] = {}
    exact = {reads: sample_exactly(inputs, reads) for reads in ("history", "window", "lists")}
    for peer in PEERS:
        rows[peer.name], run = check(peer, inputs, *exact[peer.reads])
        if run is not None:
            runs[peer.name] = run
    times = measure(runs, effort, inputs.q.device)
    for peer in PEERS:
        if peer.name in times:
            flops = 4 * inputs.read_tokens(peer.reads) * inputs.case.tokens * inputs.case.heads * inputs.case.head_dim
            rivals = [other.name for other in PEERS if other.reads == peer.reads and not other.ours]
            rows[peer.name] = timed(rows[peer.name], times, flops, rivals if peer.ours else [])
    if DENSE in times:
        rows[DENSE] = replace(rows[DENSE], note=backend(inputs))
    return list(rows.values())


def check(peer: Peer, inputs: Inputs, exact: Tensor, torch_error: float) -> tuple[Row, Run | None]:
    """The row of a peer with its error, and what to time, if there is anything to time."""
    row, case, device = Row(inputs.case.name, peer.name), inputs.case, inputs.q.device
    before = start_counting(device)
    out: list[Tensor] = []
    try:
        run = peer.ready(inputs)
        first = milliseconds(lambda: out.append(sampled(run(), case)), device)
    except AbsentError as absence:
        return replace(row, note=f"absent: {absence}"), None
    except torch.OutOfMemoryError:
        return replace(row, note="out of memory"), None
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as refusal:
        if not peer.foreign:  # ours has no excuse; others refuse a shape or a card in ways of their own
            raise
        return replace(row, note=f"refused: {str(refusal).splitlines()[0]}"), None
    error = relative_error(out[0], exact)
    allowed = allowed_error(inputs.q.dtype, torch_error) + peer.known_error
    row = replace(row, relative_error=error, first_milliseconds=first, peak_bytes=counted(device, before))
    if not error <= allowed:
        return replace(row, first_milliseconds=None, note=f"wrong: at most {allowed:.1e} is allowed"), None
    return row, run


def start_counting(device: torch.device) -> int:
    """Bytes of the GPU that are taken already."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def counted(device: torch.device, before: int) -> int | None:
    """Bytes that were taken at most since, on a GPU."""
    return torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None


def measure_parts(parts: Sequence[Part], inputs: Inputs, effort: Effort) -> list[Row]:
    """Rows of the parts; one that is wrong gets no time."""
    case, allowed = inputs.case, max(allowed_error(inputs.q.dtype), SUM_ERROR)
    errors = {part.name: part.error() for part in parts}
    right = {part.name: part.run for part in parts if errors[part.name] <= allowed}
    times = measure(right, effort, inputs.q.device)
    rows = []
    for part in parts:
        row = Row(case.name, part.name, relative_error=errors[part.name], note=part.note)
        found = times.get(part.name)
        if found is None:
            rows.append(replace(row, note=f"wrong: at most {allowed:.1e} is allowed"))
        else:
            speed = part.moved_bytes / found.milliseconds / 1e6 if part.moved_bytes else None
            rows.append(replace(with_times(row, found), gb_per_second=speed))
    return rows


def absent_offload(inputs: Inputs) -> list[Row]:
    """On a CPU a bank has nowhere else to lie."""
    return [Row(inputs.case.name, "offload: pages from host memory", note="absent: needs CUDA")]


def sum_of_step(case: KernelCase, parts: Sequence[Row], window: float | None) -> Row:
    """What a step's parts take together, one after another."""
    times = [row.milliseconds for row in parts if row.implementation.startswith("a step: ")]
    row = Row(case.name, "a step: all of these")
    if None in times:
        return replace(row, note="a part is wrong")
    return against_window(replace(row, milliseconds=sum(time for time in times if time is not None)), window)


def against_window(row: Row, window: float | None) -> Row:
    """A row with its time in times of the window alone."""
    if row.milliseconds is None or window is None:
        return row
    return replace(row, times_window=row.milliseconds / window)


def with_times(row: Row, found: Times) -> Row:
    """A row with what was measured."""
    return replace(row, **asdict(found))


def timed(row: Row, times: Mapping[str, Times], flops: float, rivals: Sequence[str]) -> Row:
    """The row of a peer with its times, also against dense attention, the window and the fastest of its rivals."""
    found = times[row.implementation]
    dense, window = times.get(DENSE), times.get(WINDOW)
    fastest = min((times[rival].milliseconds for rival in rivals if rival in times), default=None)
    return replace(
        with_times(row, found),
        times_dense=dense.milliseconds / found.milliseconds if dense else None,
        times_window=found.milliseconds / window.milliseconds if window else None,
        times_peer=fastest / found.milliseconds if fastest else None,
        tflops=flops / found.milliseconds / 1e9,
    )
