"""What tracing costs a chunk: films that choose pages, counted and not, and the end of a chunk at Wan 1.3B's shapes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels.pages import PageLists
from ...memory.config import KVSpec
from ...memory.read_tally import ReadTally
from ...memory.trace_lines import told_reads

WAN = KVSpec(30, 12, 128, 30, 52, 44, 10_000.0, torch.bfloat16, torch.device("cpu"))
WAN_FRAMES = 2388  # older than the window, 10 minutes into a film
WAN_FIRST_SLOT, WAN_SHORTLIST, WAN_GROUPS, WAN_LISTED, WAN_STEPS = 366, 256, 37, 62, 4


@dataclass(frozen=True, slots=True)
class TraceCost:
    """Seconds of a chunk of one step, with its tally and without, run by run; milliseconds that the trace takes at the end of
    a chunk of Wan 1.3B 10 minutes into a film, where every layer and head chose other frames."""

    counted_seconds: list[float]
    plain_seconds: list[float]
    wan_milliseconds: list[float]

    @property
    def ratio(self) -> float:
        """Time of a counted chunk over that of one that is not."""
        pairs = zip(self.counted_seconds, self.plain_seconds, strict=True)
        return statistics.median(counted / plain for counted, plain in pairs)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "counted_seconds": self.counted_seconds,
            "plain_seconds": self.plain_seconds,
            "counted_over_plain": self.ratio,
            "wan_milliseconds": self.wan_milliseconds,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """For the table: what, median seconds, ratio."""
        counted, plain = (statistics.median(seconds) for seconds in (self.counted_seconds, self.plain_seconds))
        end = statistics.median(self.wan_milliseconds) / 1000
        return [
            ("a chunk of one step that chooses pages, not traced", f"{plain:.3f}", "1"),
            ("a chunk of one step that chooses pages, traced", f"{counted:.3f}", f"{self.ratio:.3f}"),
            ("what a trace does at the end of a chunk of Wan 1.3B, 10 minutes in", f"{end:.4f}", ""),
        ]


def measure_trace(runs: int, film_seconds: Callable[[bool], Sequence[float]], steady: int) -> TraceCost:
    """Interleaved runs of `film_seconds(tallied)`, seconds of the chunks of a film, of which those from `steady` on count."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for run in range(runs):
        for tallied in (True, False) if run % 2 == 0 else (False, True):
            seconds[tallied].append(statistics.median(film_seconds(tallied)[steady:]))
    return TraceCost(seconds[True], seconds[False], [end_of_a_wan_chunk() for _ in range(runs)])


def end_of_a_wan_chunk() -> float:
    """Milliseconds to sum up a chunk and write it down, without those of counting, which are the card's."""
    generator = torch.Generator().manual_seed(0)
    tally = ReadTally(WAN, 1, WAN_FIRST_SLOT, WAN_SHORTLIST, 2)
    tally.allocate()
    tally.begin(range(WAN_FRAMES))
    lengths = torch.full((WAN.heads, WAN_SHORTLIST), 64, dtype=torch.int32)
    drawn = torch.rand(WAN.heads, WAN_GROUPS, WAN_SHORTLIST, generator=generator).topk(WAN_LISTED).indices
    lists = PageLists((drawn + WAN_FIRST_SLOT).int(), torch.full((WAN.heads, WAN_GROUPS), WAN_LISTED))
    spent = 0.0
    for step in range(WAN_STEPS):
        tally.enter(step, WAN_STEPS)
        for layer in range(WAN.layers):
            if step < 2:
                shape = (WAN.heads, WAN_SHORTLIST)
                places = torch.randint(0, WAN_FRAMES, shape, generator=generator, dtype=torch.int32)
                start = time.perf_counter()
                tally.bring(layer, 0, places, lengths)
                spent += time.perf_counter() - start
            tally.count(layer, 0, lists)
    start = time.perf_counter()
    reads = tally.sum_up()
    assert reads is not None
    json.dumps(told_reads(reads))
    return 1000 * (spent + time.perf_counter() - start)
