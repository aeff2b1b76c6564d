"""A training run on disk: its checkpoint, its log and its learning curve."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..whole_file import ProjectError, explained, whole_file

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
CURVE = "curve.png"


def generator_for(seed: int, purpose: str, step: int) -> torch.Generator:
    """A generator that depends on nothing but its arguments, so a resumed run draws what an unbroken one would."""
    digest = hashlib.sha256(f"{seed} {purpose} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class RunFolder:
    """Writes whole files only: a run that is stopped or finds the disk full keeps its last checkpoint."""

    def __init__(self, folder: Path, settings: Any, writes: bool = True) -> None:
        """Open `folder`, made if missing; a checkpoint of other settings than the dataclass `settings` is refused.

        One that is older than a setting was made with its default. One of several processes `writes`, the others read that.
        """
        self._writes = writes
        self.folder = folder
        self.settings = json.loads(json.dumps(asdict(settings)))
        self._usual = {entry.name for entry in fields(settings) if getattr(settings, entry.name) == entry.default}
        with explained(f"make the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by `state`, which carries its `step`."""
        if not self._writes:
            return
        with whole_file(self.folder / CHECKPOINT) as path:
            torch.save({**state, "settings": self.settings}, path)

    def check(self, unknown: str | None = None) -> None:
        """Raises ProjectError where a checkpoint is there that cannot be continued. Reads no weights and changes nothing.

        A setting that is `unknown` yet is not looked at.
        """
        state = self._read(mapped=True)
        if state is not None:
            self._refuse_others(state["settings"], unknown)

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None where there is none. Raises ProjectError when it cannot be continued."""
        state = self._read()
        if state is not None:
            self._refuse_others(state["settings"])
            self._drop_log_after(int(state["step"]))
        return state

    def _read(self, mapped: bool = False) -> dict[str, Any] | None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        with explained(f"read {path}"):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        return state

    def _refuse_others(self, there: dict[str, Any], unknown: str | None = None) -> None:
        for name, value in self.settings.items():
            before = there.get(name, value if name in self._usual else None)
            if name not in ("steps", unknown) and before != value:
                raise ProjectError(
                    f"The run in {self.folder} was made with {name}={before}, got {value}. "
                    f"Give the old value to continue it, or another folder to start anew."
                )

    def _drop_log_after(self, step: int) -> None:
        if not self._writes:
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        with whole_file(self.folder / LOG) as path:
            path.write_text(text, encoding="utf-8")

    def log(self, row: dict[str, float]) -> None:
        """Append one line; it must carry `step`. Raises ProjectError where the disk refuses."""
        if not self._writes:
            return
        path = self.folder / LOG
        with explained(f"write {path}"), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, float]]:
        """Every line of the log."""
        path = self.folder / LOG
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def draw_curve(self, value: str, size: tuple[int, int] = (800, 400)) -> None:
        """Draw `value` of the log over steps into a PNG, with its range written beside it."""
        points = [(row["step"], row[value]) for row in self.rows() if value in row]
        if not self._writes or len(points) < 2:
            return
        width, height = size
        low, high = min(y for _, y in points), max(y for _, y in points)
        last, margin = points[-1][0], 30
        picture = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(picture)
        line = [
            (
                margin + (width - 2 * margin) * step / max(1, last),
                height - margin - (height - 2 * margin) * (y - low) / max(1e-9, high - low),
            )
            for step, y in points
        ]
        pen.line(line, fill=(30, 90, 180), width=2)
        pen.text((margin, 8), f"{value}: {low:.4g} to {high:.4g}, {int(last)} steps", fill="black")
        with whole_file(self.folder / CURVE) as path:
            picture.save(path, format="PNG")
