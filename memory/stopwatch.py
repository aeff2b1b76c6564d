"""Milliseconds of a chunk by part, without waiting for the device while it works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Parts do not overlap: what is timed inside another part is taken out of it, so that all parts add up to the whole.

    On a CUDA device times are those of the device, from events that are recorded between its operations and read once, at
    the end of a chunk. Elsewhere they are the processor's, which for a device that works on by itself is the time of handing
    the work over.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._events = device, device.type == "cuda"
        self._spare: list[torch.cuda.Event] = []
        self._parts: list[tuple[str, str | None, float | torch.cuda.Event, float | torch.cuda.Event]] = []
        self._inside: list[str] = []

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """What is done inside counts as this part."""
        around = self._inside[-1] if self._inside else None
        self._inside.append(part)
        begin = self._now()
        try:
            yield
        finally:
            self._inside.pop()
            self._parts.append((part, around, begin, self._now()))

    def read(self) -> dict[str, float]:
        """Milliseconds of each part since the last reading. Waits for a CUDA device: for the end of a chunk."""
        spent: dict[str, float] = {}
        if self._events and self._parts:
            torch.cuda.synchronize(self._device)
        for part, around, begin, end in self._parts:
            took = self._between(begin, end)
            spent[part] = spent.get(part, 0.0) + took
            if around is not None:
                spent[around] = spent.get(around, 0.0) - took
        self._parts = []
        return spent

    def _now(self) -> float | torch.cuda.Event:
        if not self._events:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _between(self, begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        if isinstance(begin, float) or isinstance(end, float):
            assert isinstance(begin, float)
            assert isinstance(end, float)
            return 1000 * (end - begin)
        took = float(begin.elapsed_time(end))
        self._spare += (begin, end)
        return took
