"""What was measured on each film, kept as JSON lines, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..whole_file import explained, whole_file

SAMPLES_VERSION = 2
"""To be raised when the same settings give other numbers."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One policy on one film: the score of its last chunk, both controls and what it cost."""

    policy: str
    chunks: int
    distance: int
    film: int
    identity_cosine: float
    identity_psnr: float
    who_is_it: float
    background_psnr: float
    obedience: float
    dynamic_degree: float
    control_cosine: float
    name_swap: float
    keys_read_fraction: float
    seconds_per_chunk: float
    peak_bytes: int
    averaging_cosine: float
    ceiling_cosine: float
    true_dynamic_degree: float

    @property
    def key(self) -> tuple[str, int, int, int]:
        """What was measured."""
        return self.policy, self.chunks, self.distance, self.film


@dataclass(frozen=True, slots=True)
class Drift:
    """A film that a policy made all by itself: of some of its chunks the background's PSNR in dB, and how much moves."""

    policy: str
    film: int
    chunks: tuple[int, ...]
    background_psnr: tuple[float, ...]
    dynamic_degree: tuple[float, ...]

    @property
    def key(self) -> tuple[str, int]:
        """What was measured."""
        return self.policy, self.film


class Samples:
    """All that was measured so far: in memory, and in a file if there is one."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any], source: str) -> None:
        """Read what earlier runs of equal `settings` left in `path`; `source` names the code that measures from now on.

        Raises ValueError when the file is of other settings, ProjectError where the disk refuses.
        """
        self.path = path
        self.sources: list[str] = []
        self.samples: dict[tuple[str, int, int, int], Sample] = {}
        self.drifts: dict[tuple[str, int], Drift] = {}
        header = {"longreel_recall": SAMPLES_VERSION, "settings": json.loads(json.dumps(settings))}
        lines = _read(path, header) if path is not None and path.exists() else []
        if {"source": source} not in lines:
            lines.append({"source": source})
        for line in lines:
            self._take(line)
        if path is not None:
            with whole_file(path) as part:  # anew, because a kill may have left half a line
                part.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]), encoding="utf-8")

    def _take(self, line: Mapping[str, Any]) -> None:
        if "source" in line:
            self.sources.append(line["source"])
        elif "distance" in line:
            sample = Sample(**line)
            self.samples[sample.key] = sample
        else:
            along = (tuple(line[name]) for name in ("chunks", "background_psnr", "dynamic_degree"))
            drift = Drift(line["policy"], line["film"], *along)
            self.drifts[drift.key] = drift

    def add(self, measured: Sample | Drift) -> None:
        """Keep one measurement."""
        line = asdict(measured)
        self._take(line)
        if self.path is not None:
            with explained(f"write {self.path}"), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _read(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole lines of a file behind its header, which must be this one."""
    try:
        text = path.read_text(encoding="utf-8")
        found, *lines = [json.loads(line) for line in text.splitlines()[: text.count("\n")]] or [{}]
    except json.JSONDecodeError:
        found, lines = {}, []
    if found != header:
        raise ValueError(
            f"{path} needs to hold measurements of the settings {json.dumps(header['settings'])}, got "
            f"{json.dumps(found.get('settings'))}. Give --json another name, or remove that file to measure anew."
        )
    return lines
