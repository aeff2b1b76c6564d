"""What was read, and how long it took: JSON lines, one header and one line a chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRACE_VERSION = 1


class Trace:
    """Appends events to a file as they happen, so that a killed run keeps what it saw."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Start a new trace with facts about the run."""
        self.path.write_text(json.dumps({"longreel_trace": TRACE_VERSION, **facts}) + "\n", encoding="utf-8")

    def add(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def read_trace(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and events of a trace file.

    Raises ValueError when the file is no trace of a version this pack knows.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = json.loads(lines[0]) if lines else {}
    if header.get("longreel_trace") != TRACE_VERSION:
        raise ValueError(f"{path.name} needs to be a LongReel trace of version {TRACE_VERSION}, got {header!r:.80}.")
    return header, [json.loads(line) for line in lines[1:]]
