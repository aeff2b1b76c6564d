"""What every chunk read and what it cost: JSON lines, a header and one line a chunk. This is version 3.

The header holds facts of the run: `project`, `fps`, `plan`, `prompts` and `transitions` of the shots, `memory` in words,
`layers`, `heads` and `steps` with their groups (`trace_groups.py`), `sink_frames`, the `tier` of the store (card, ram or file),
`peak_kv_bytes` on the card and `host_kv_bytes` beside it, and `pins` and `vetoes` as they were written. `trace_lines.py`
makes the line of a chunk and says what stands in it. Behind it a line `{"decoded": CHUNK, "milliseconds": {...}}` follows when
its pictures are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .whole_file import explained

TRACE_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)  # 1 had no groups, no tally, no bytes and no drift; 2 had no steps and no hits
_VERSION_KEY = "longreel_trace"
_DECODED = "decoded"
_OF_FILM = {"fps", "plan", "prompts"}  # what every version tells
_OF_CHUNK = {"chunk": int, "shot": int, "frames": list, "read_frames": list, "brought_frames": list}


class TraceError(ValueError):
    """A trace is not there, is none or cannot be read; the message says what to do."""


class Trace:
    """Appends events to a file as they happen, so that a killed run keeps what it saw; ProjectError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Start a new trace with facts about the run."""
        with explained(f"write {self.path}"):
            self.path.write_text(_line({_VERSION_KEY: TRACE_VERSION, **facts}), encoding="utf-8")

    def add(self, event: Mapping[str, Any]) -> None:
        """Append one event."""
        with explained(f"write {self.path}"), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(event))

    def decoded(self, chunk: int, milliseconds: Mapping[str, float]) -> None:
        """Tell what the pictures of a chunk cost, where there is a trace."""
        if self.path.exists():
            self.add({_DECODED: chunk, "milliseconds": dict(milliseconds)})


def read_trace(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and chunks of a trace file; a last line that was cut off as a render was killed is left out.

    A chunk's `milliseconds` include those of its pictures. Raises TraceError when the file cannot be read or is no
    trace of a version that this pack knows.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TraceError(
            f"There is no trace at {path}. Render the film first: the sampler writes its trace."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(
            f"The trace {path} cannot be read ({error}). It needs to be a trace.jsonl of LongReel."
        ) from error
    first, *rest = text.split("\n")[:-1] or [""]
    header = _header(path, first)
    chunks: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(rest, start=2):
        event = _parsed(line)
        if all(isinstance(event.get(key), kind) for key, kind in _OF_CHUNK.items()):
            chunks[event["chunk"]] = event
        elif isinstance(event.get(_DECODED), int) and isinstance(event.get("milliseconds"), dict):
            if event[_DECODED] in chunks:
                chunks[event[_DECODED]].setdefault("milliseconds", {}).update(event["milliseconds"])
        else:
            raise TraceError(
                f"Line {number} of {path} is damaged: it is no line of a chunk. Render the film again, or delete the line."
            )
    return header, list(chunks.values())


def _line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


def _header(path: Path, line: str) -> dict[str, Any]:
    header = _parsed(line)
    version = header.get(_VERSION_KEY)
    if version not in READABLE_VERSIONS or isinstance(version, bool):
        newer = isinstance(version, int) and version > TRACE_VERSION
        remedy = "Update LongReel." if newer else "Give the trace.jsonl of a film's folder."
        known = f"{READABLE_VERSIONS[0]} to {TRACE_VERSION}"
        raise TraceError(f"{path} needs to be a LongReel trace of version {known}, got '{line:.60}'. {remedy}")
    if missing := sorted(_OF_FILM - header.keys()):
        raise TraceError(f"The first line of {path} is damaged: {missing[0]} is missing. Render the film again.")
    plan, prompts = header["plan"], header["prompts"]
    shots = plan.get("shots") if isinstance(plan, dict) else None
    if not (isinstance(shots, list) and isinstance(prompts, list) and 0 < len(shots) == len(prompts)):
        raise TraceError(f"The first line of {path} is damaged: shots and prompts differ. Render the film again.")
    return header


def _parsed(line: str) -> dict[str, Any]:
    """The object in a line; an empty one where there is none."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
