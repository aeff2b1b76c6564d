"""The commands of the README as a user starts them, and what the chunk loop costs at the width of a real model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from shipped import ROOT

from longreel.memory.film import read_pictures
from longreel.memory.trace import read_trace
from longreel.nodes.headless.bench_loop import MAX_ERROR, LoopBench, measure_loop
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.context_page import counted_page

pytestmark = pytest.mark.long
Record = Callable[[str, object], None]

DEMO = [sys.executable, "-c", "import sys; from longreel.nodes.headless.cli import main; sys.exit(main())", "demo"]
DEMO_SECONDS = 180  # on two CPU cores that do nothing else
SHEET_BYTES = 10_000


def test_the_demo_makes_a_film_with_and_one_without_memory_a_contact_sheet_and_a_trace(
    tmp_path: Path, record_property: Record
) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [*DEMO, "--out", str(tmp_path), "--device", "cpu"], capture_output=True, text=True, timeout=900, check=False
    )
    seconds = time.monotonic() - start
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    film, sheet = tmp_path / "longreel" / "tiny_demo", tmp_path / "contact_sheet.png"
    forgetful = tmp_path / "longreel" / "tiny_demo_forgetful"
    pictures = sum(1 for _ in read_pictures(film / "film.mp4"))
    record_property("seconds of longreel demo", round(seconds, 1))
    record_property("pictures of the demo", pictures)
    assert pictures >= 20 * 16
    assert sheet.stat().st_size > SHEET_BYTES
    header, events = read_trace(film / "trace.jsonl")
    assert len(header["plan"]["shots"]) == 6
    assert {event["shot"] for event in events} == set(range(6))
    _, without = read_trace(forgetful / "trace.jsonl")
    assert len(without[-1]["read_frames"]) < len(events[-1]["read_frames"])
    for path in (film / "film.mp4", forgetful / "film.mp4", sheet, film / "trace.jsonl"):
        assert str(path) in done.stdout
    assert seconds < DEMO_SECONDS


def test_the_loop_costs_no_more_than_the_hosts_and_does_not_slow_down(host: Host, record_property: Record) -> None:
    with torch.inference_mode():
        result = measure_loop(LoopBench(runs=9, chunks=8, long_chunks=206, width=1536), host.version)
    for name, value in result.to_dict().items():
        record_property(name, value)
    late = result.late_over_early
    assert result.error < MAX_ERROR
    assert result.ratio <= 1.05
    assert late is not None
    assert late <= 1.1
    assert result.bank_over_window <= 1.03


def test_the_page_of_what_encoders_take_is_what_the_command_counts() -> None:
    page = ROOT / "memory" / "training" / "ENCODER_COST.md"
    assert page.read_text(encoding="utf-8") == counted_page(peft)
