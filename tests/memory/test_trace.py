"""A trace on disk: what it holds, how large it grows, and what is said of one that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from longreel.memory.inspection import UNIT
from longreel.memory.read_tally import BankReads
from longreel.memory.trace import Trace, TraceError, read_trace
from longreel.memory.trace_groups import MOST_STEP_GROUPS, head_groups, layer_groups
from longreel.memory.trace_lines import DIGITS, MOST_FRAMES, MOST_STEPPED, LatentDrift, stretches, told_reads
from longreel.memory.whole_file import ProjectError

FACTS = {"fps": 16.0, "plan": {"shots": [{"frames": [0, 3], "chunks": [0, 1]}]}, "prompts": ["a beach"]}
CHUNK = {"chunk": 0, "shot": 0, "frames": [0, 3], "read_frames": [], "brought_frames": []}
MOST_BYTES = 20_000_000
WAN_LAYERS, WAN_HEADS, TEN_MINUTES = 30, 12, 800


def written(path: Path, *events: dict[str, Any]) -> Trace:
    trace = Trace(path / "trace.jsonl")
    trace.begin(FACTS)
    for event in events:
        trace.add(event)
    return trace


def test_what_the_pictures_cost_joins_the_line_of_their_chunk(tmp_path: Path) -> None:
    trace = written(tmp_path, {**CHUNK, "milliseconds": {"denoise": 5.0}}, {**CHUNK, "chunk": 1})
    trace.decoded(0, {"decode": 2.0})
    trace.decoded(7, {"decode": 2.0})
    header, (first, second) = read_trace(trace.path)
    assert header["longreel_trace"] == 3
    assert first["milliseconds"] == {"denoise": 5.0, "decode": 2.0}
    assert (second["chunk"], "milliseconds" in second) == (1, False)


def test_pictures_without_a_trace_begin_none(tmp_path: Path) -> None:
    Trace(tmp_path / "trace.jsonl").decoded(0, {"decode": 1.0})
    assert not (tmp_path / "trace.jsonl").exists()


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    trace = written(tmp_path, CHUNK)
    with trace.path.open("a") as file:
        file.write('{"chunk": 1, "half')
    assert [event["chunk"] for event in read_trace(trace.path)[1]] == [0]


@pytest.mark.parametrize("version", [1, 2])
def test_a_trace_of_an_older_version_is_read(tmp_path: Path, version: int) -> None:
    old = tmp_path / "trace.jsonl"
    header = {"longreel_trace": version, **FACTS}
    old.write_text(json.dumps(header) + "\n" + json.dumps({**CHUNK, "denoise_ms": 3.0}) + "\n")
    assert read_trace(old)[1] == [{**CHUNK, "denoise_ms": 3.0}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "needs to be a LongReel trace of version 1 to 3, got ''. Give the trace.jsonl"),
        (b"<!doctype html>\n", "got '<!doctype html>'"),
        (b'{"longreel_trace": 4}\n', "Update LongReel"),
        (b'{"longreel_trace": true}\n', "Give the trace.jsonl"),
        (b'{"longreel_trace": 2, "fps": 16, "plan": {}}\n', "first line of .* is damaged: prompts is missing"),
        (b'{"longreel_trace": 2, "fps": 16, "plan": null, "prompts": []}\n', "is damaged: shots and prompts differ"),
        (b'{"longreel_trace": 2, "fps": 16, "plan": {"shots": [{}]}, "prompts": []}\n', "shots and prompts differ"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_remedy(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "trace.jsonl").write_bytes(content)
    with pytest.raises(TraceError, match=said):
        read_trace(tmp_path / "trace.jsonl")


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"chunk": 1}', '{"decoded": [0]}', json.dumps({**CHUNK, "read_frames": None})]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    trace = written(tmp_path, CHUNK)
    with trace.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TraceError, match=r"Line 3 of .* is damaged.* Render the film again"):
        read_trace(trace.path)


def test_a_missing_trace_and_a_folder_that_refuses_are_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="There is no trace at"):
        read_trace(tmp_path / "trace.jsonl")
    with pytest.raises(ProjectError, match="No such file or directory"):
        Trace(tmp_path / "nowhere" / "trace.jsonl").begin(FACTS)


def busy(frames: int, seed: int) -> BankReads:
    """What a chunk read if every layer, head and step chose other pages, as far apart as they can be."""
    generator = np.random.default_rng(seed)
    cells = (len(layer_groups(WAN_LAYERS)), len(head_groups(WAN_HEADS)))
    amounts = generator.random((*cells, frames)) ** 8
    amounts *= 2.5 / amounts.sum(axis=-1, keepdims=True)
    steps = generator.random((MOST_STEP_GROUPS, frames)) ** 8
    steps *= amounts.mean(axis=(0, 1)) / steps.mean(axis=0)
    some = (1110,) * MOST_STEP_GROUPS
    masses = generator.random((*cells, MOST_STEP_GROUPS))
    return BankReads(
        tuple(range(3, 3 + frames)),
        amounts,
        amounts.mean(axis=(0, 1)),
        steps,
        some,
        (62.0,) * MOST_STEP_GROUPS,
        (255.9,) * MOST_STEP_GROUPS,
        masses[..., 0],
        masses[0, 0],
    )


@pytest.mark.parametrize("chunks", [TEN_MINUTES, TEN_MINUTES * 3 // 2], ids=["16 fps", "24 fps"])
def test_the_trace_of_ten_minutes_of_wan_is_below_20_mb(tmp_path: Path, chunks: int) -> None:
    """Chunks of 3 frames, 30 layers and 12 heads, each reading something of every older frame; forty share what they read."""
    shared = [told_reads(busy(3 * chunk + 120, chunk), chunks) for chunk in range(0, chunks, 40)]
    trace = written(tmp_path)
    spent = dict.fromkeys(("denoise", "commit", "select", "copy"), 1234.567)
    for chunk in range(chunks):
        start = 3 * chunk
        trace.add(
            {
                **CHUNK,
                "chunk": chunk,
                "shot": chunk // 20,
                "frames": [start, start + 3],
                "read_frames": list(range(3)) + list(range(max(3, start - 6), start)),
                "brought_frames": [3, 4, 5],
                "brought": [[frame, "prompt", 0.54321] for frame in (3, 4, 5)],
                "remembered": start,
                "milliseconds": spent,
                "bytes": {"card": 6_574_829_568, "ram": 2 * 10**11, "file": 0, "moved": 3 * 10**9},
                "hits": {"card": 6_574_829_568, "ram": 3 * 10**9},
                "drift": {"mean": 0.12345, "std": 1.12345, "change": 0.01234, "since_start": 0.12345},
                "finished": 1795881370.015,
                **shared[chunk // 40],
            }
        )
        trace.decoded(chunk, {"decode": 1234.567})
    assert 5_000_000 < trace.path.stat().st_size < MOST_BYTES
    assert len(read_trace(trace.path)[1]) == chunks


def test_what_is_left_out_is_the_least_and_its_sum_is_told() -> None:
    reads = busy(2000, 1)
    told = told_reads(reads)
    assert len(told["bank"]) == MOST_FRAMES
    kept = {frame for frame, _ in told["bank"]}
    least = min(amount for _, amount in told["bank"])
    others = [amount for frame, amount in zip(reads.frames, reads.whole, strict=True) if frame not in kept]
    assert max(others) * UNIT <= least + 1
    told_sum = sum(amount for _, amount in told["bank"]) + told["bank_rest"]
    assert_allclose(told_sum / UNIT, reads.whole.sum(), atol=1 / UNIT)
    cells = reads.amounts.shape[0] * reads.amounts.shape[1]
    chosen = sum(amount for row in told["selected"] for amount in row[2::2])
    assert_allclose(
        (chosen / cells + told["selected_rest"]) / UNIT, reads.amounts.mean(axis=(0, 1)).sum(), atol=1 / UNIT
    )


def test_the_mean_over_steps_is_what_is_told_of_the_whole() -> None:
    reads = busy(2000, 1)
    told = told_reads(reads)
    whole = dict(told["bank"])
    assert len(told["bank_steps"]) == MOST_STEPPED
    for frame, *amounts in told["bank_steps"]:
        assert sum(amounts) / len(amounts) == pytest.approx(whole[frame], abs=1)
    least = min(whole[row[0]] for row in told["bank_steps"])
    assert sorted(whole.values())[-MOST_STEPPED] == least
    sums = [sum(row[1 + step] for row in told["bank_steps"]) for step in range(MOST_STEP_GROUPS)]
    assert_allclose(np.add(sums, told["bank_steps_rest"]) / UNIT, reads.steps.sum(axis=1), atol=1 / UNIT)
    assert told["steps"] == [[1110, 62.0, 255.9]] * MOST_STEP_GROUPS
    assert reads.mass is not None
    assert_allclose(np.array(told["mass"]) / UNIT, reads.mass, atol=0.5 / UNIT)
    assert_allclose(np.array(told["mass_steps"]) / UNIT, reads.mass_steps, atol=0.5 / UNIT)


def test_drift_is_mean_deviation_and_how_far_the_channels_moved() -> None:
    drift = LatentDrift()
    first = torch.zeros(1, 2, 1, 1, 2)
    first[0, 0] = 1.0
    assert drift.of(first) == {"mean": 0.5, "std": 0.5, "change": 0.0, "since_start": 0.0}
    second = first + torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    third = second + torch.tensor([0.0, 2.0]).view(1, 2, 1, 1, 1)
    assert drift.of(second)["change"] == round((1 / 2) ** 0.5, DIGITS)
    told = drift.of(third)
    assert (told["change"], told["since_start"]) == (round(2**0.5, DIGITS), round((5 / 2) ** 0.5, DIGITS))


def test_numbers_in_a_row_are_told_as_stretches() -> None:
    assert stretches([]) == []
    assert stretches([1, 2, 3, 7, 9, 10]) == [[1, 3], [7, 7], [9, 10]]
