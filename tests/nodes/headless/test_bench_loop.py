"""`longreel bench loop` at tiny size: what it measures is the same film, and it says so."""

from __future__ import annotations

import json
import statistics

import pytest

from longreel.nodes.headless import bench_loop
from longreel.nodes.headless.bench_loop import CHUNK_FRAMES, MAX_ERROR, LoopBench, measure_loop
from longreel.nodes.headless.boot import Host
from longreel.nodes.host.film_sampler import SeededNoise

TINY = LoopBench(runs=1, chunks=2, long_chunks=3, width=128, ffn=256)


def test_both_loops_make_the_same_film_and_the_table_says_how_long_they_took(host: Host) -> None:
    result = measure_loop(TINY, host.version)
    assert result.error < MAX_ERROR
    assert len(result.our_seconds) == len(result.host_seconds) == TINY.runs
    assert len(result.chunk_seconds) == TINY.long_chunks
    assert min(*result.our_seconds, *result.host_seconds, *result.chunk_seconds) > 0
    assert result.late_over_early is None  # no chunk 200 in a film this short
    assert min(*result.trace.counted_seconds, *result.trace.plain_seconds, *result.trace.wan_milliseconds) > 0
    table = result.table()
    assert f"traced | {statistics.median(result.trace.counted_seconds):.3f} | {result.trace.ratio:.3f}" in table
    assert f"{result.ratio:.3f}" in table
    assert host.version in table
    assert json.loads(json.dumps(result.to_dict()))["bench"]["width"] == TINY.width


def test_two_loops_that_make_different_films_are_not_measured(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_loop, "HostNoise", lambda *drawn: SeededNoise((CHUNK_FRAMES,)))
    with pytest.raises(RuntimeError, match="different films"):
        measure_loop(TINY, host.version)
