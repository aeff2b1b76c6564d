"""The kernel bench: the smoke profile runs, correctness comes first, and who is absent says why."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longreel.kernels.bench import KernelBench, run, run_kernel_bench
from longreel.kernels.bench.cases import TINY, Inputs, build_inputs
from longreel.kernels.bench.exact import sample_exactly
from longreel.kernels.bench.measure import Effort
from longreel.kernels.bench.parts import Part
from longreel.kernels.bench.peers import DENSE, PEERS, WINDOW, Peer, Run, implementation

KEYS = {"case", "implementation", "milliseconds", "relative_error", "times_dense", "times_window"}


def drops_a_page(inputs: Inputs) -> Run:
    """Sabotage: ours, but every list is one page short."""
    lists = inputs.lists._replace(counts=inputs.lists.counts - 1)
    return implementation("torch")(inputs._replace(lists=lists))


def runs_out_of_memory(inputs: Inputs) -> Run:
    """A peer that does not fit."""

    def attend() -> Tensor:
        raise torch.OutOfMemoryError("no")

    return attend


@pytest.fixture(scope="module")
def bench() -> KernelBench:
    peers = (*PEERS, Peer("a page short", "lists", drops_a_page), Peer("too large", "history", runs_out_of_memory))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "PEERS", peers)
        return run_kernel_bench("smoke", rounds=2)


def test_the_smoke_profile_measures_ours_against_dense_attention_and_a_window(bench: KernelBench) -> None:
    rows = {
        row["implementation"]: row for row in json.loads(json.dumps(bench.to_dict()))["rows"] if row["case"] == "tiny"
    }
    assert set(rows) >= {peer.name for peer in PEERS}
    assert all(row.keys() >= KEYS for row in rows.values())
    torchs = rows["LongReel, torch"]
    assert torchs["milliseconds"] > 0
    assert torchs["times_dense"] == pytest.approx(rows[DENSE]["milliseconds"] / torchs["milliseconds"])
    assert torchs["times_window"] == pytest.approx(torchs["milliseconds"] / rows[WINDOW]["milliseconds"])
    assert torchs["times_peer"] == pytest.approx(rows["union buffer and mask"]["milliseconds"] / torchs["milliseconds"])
    assert rows["a step: mean queries"]["milliseconds"] > 0
    assert rows["a step: mean queries"]["relative_error"] < 1e-6
    assert {row.case for row in bench.rows} == {"tiny", "tiny, recorded lists", "recorded film"}


def test_a_bank_in_8_bits_is_read_with_the_error_of_8_bits(bench: KernelBench) -> None:
    rows = {row.implementation: row for row in bench.rows}
    exact, rounded = rows["LongReel, torch"], rows["LongReel, bank in 8 bits copied first"]
    assert rounded.milliseconds is not None
    assert exact.relative_error is not None
    assert rounded.relative_error is not None
    assert 100 * exact.relative_error < rounded.relative_error < 0.01


def test_a_chunk_costs_its_passes_and_in_ours_the_upkeep_of_the_bank(bench: KernelBench) -> None:
    times = {row.implementation: row.milliseconds for row in bench.rows if row.case == "tiny"}
    for name, upkeep in (("window alone", 0.0), ("whole history", 0.0), ("LongReel", 1.0)):
        layer, passed = times[f"layer: {name}"], times[f"a pass of 4 layers: {name}"]
        chunk = times[f"a chunk of 4 steps and a commit: {name}"]
        assert layer is not None
        assert passed == pytest.approx(4 * layer)
        assert chunk == pytest.approx(5 * 4 * layer, rel=upkeep)
        assert chunk is not None
        assert (chunk > 5 * 4 * layer * 1.0001) == bool(upkeep)
    counting = times["a chunk of 4 steps: counting what is read"]
    assert counting == pytest.approx(4 * 4 * times["a step: counting what is read"])
    assert times["layer: LongReel, counted for its trace"] is not None


def test_a_part_that_is_wrong_gets_no_time() -> None:
    inputs = build_inputs(TINY, torch.device("cpu"))
    parts = [
        Part("right", int, lambda: 0.0),
        Part("wrong", int, lambda: 0.5),
        Part("no number", int, lambda: float("nan")),
    ]
    right, wrong, nan = run.measure_parts(parts, inputs, Effort(0, 1))
    assert right.milliseconds is not None
    assert (wrong.milliseconds, nan.milliseconds) == (None, None)
    assert wrong.note.startswith("wrong:")


def test_the_tables_can_be_made_again_from_the_json(bench: KernelBench) -> None:
    again = KernelBench.from_dict(json.loads(json.dumps(bench.to_dict())))
    assert again == bench
    assert again.table() == bench.table()


def test_what_is_wrong_or_does_not_fit_gets_no_time(bench: KernelBench) -> None:
    rows = {row.implementation: row for row in bench.rows}
    wrong, large, triton = (rows[name] for name in ("a page short", "too large", "LongReel, Triton"))
    assert wrong.milliseconds is None
    assert wrong.note.startswith("wrong:")
    assert wrong.relative_error is not None
    assert wrong.relative_error > 0.01
    assert (large.milliseconds, large.note) == (None, "out of memory")
    if not torch.cuda.is_available():
        assert triton.note == "absent: triton: needs device cuda, got cpu"
    assert all(line in bench.table() for line in ("out of memory", "x faster than dense", "matmul_tflops"))


def test_an_error_of_ours_comes_out_and_one_of_another_project_is_its_refusal() -> None:
    inputs = build_inputs(TINY, torch.device("cpu"))

    def breaks(_: Inputs) -> Run:
        raise RuntimeError("broken\nin two lines")

    exact, error = sample_exactly(inputs, "lists")
    with pytest.raises(RuntimeError, match="broken"):
        run.check(Peer("ours", "lists", breaks), inputs, exact, error)
    row, timed = run.check(Peer("theirs", "lists", breaks, foreign=True), inputs, exact, error)
    assert (row.note, timed) == ("refused: broken", None)


def test_pages_hold_the_same_numbers_as_the_history() -> None:
    case = replace(TINY, frames=14)
    inputs = build_inputs(case, torch.device("cpu"))
    live = torch.arange(case.page_tokens) < inputs.pages.lengths[..., None]
    live[:, : case.dense_tokens // case.page_tokens + 1] = True
    for history, pages in ((inputs.k, inputs.pages.k), (inputs.v, inputs.pages.v)):
        kept = pages[live].view(case.heads, -1, case.head_dim)
        padding = -case.dense_tokens % case.page_tokens
        without = torch.cat([kept[:, : case.dense_tokens], kept[:, case.dense_tokens + padding :]], dim=1)
        assert torch.equal(without, history)


def test_a_profile_or_case_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="needs one of"):
        run_kernel_bench("quick")
    with pytest.raises(ValueError, match="No case of smoke"):
        run_kernel_bench("smoke", cases=["huge"])
