"""The manifest of a film: which chunks and segments are finished, of which settings, and how to recognise their files.

Only what stands here is believed, and only while size and hash of the file agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .whole_file import whole_file

MANIFEST_VERSION = 1
_VERSION_KEY = "longreel_project"


class NewerManifestError(ValueError):
    """The manifest was written by a newer LongReel than this one."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """How to recognise a file: its size in bytes and its sha256 in hexadecimal."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """The record of a file as it lies on disk."""
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
        return cls(size, digest.hexdigest())

    def matches(self, path: Path) -> bool:
        """Whether the file is there and is the recorded one."""
        return path.is_file() and path.stat().st_size == self.bytes and FileRecord.of(path) == self


@dataclass(frozen=True, slots=True)
class ChunkRecord:
    """A finished chunk: its latents' file, frames `start_frame` to `stop_frame` (not included), shot, seconds it took.

    `trace_bytes` is the length of the trace when the chunk was finished: what is longer tells of a chunk that was not.
    """

    index: int
    file: FileRecord
    start_frame: int
    stop_frame: int
    shot: int
    seconds: float
    trace_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """The video of a finished chunk: its file and the pictures in it; None and 0 where the decoder held all back."""

    index: int
    file: FileRecord | None
    pictures: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known about a film on disk; a new one is made for every change and replaces the old one whole.

    `pictures_of` tells which VAE made the segments, or is None where there was none.
    """

    settings: Mapping[str, Any]
    settings_hash: str
    chunks: tuple[ChunkRecord, ...] = ()
    segments: tuple[SegmentRecord, ...] = ()
    pictures_of: str | None = None

    @classmethod
    def begin(cls, settings: Mapping[str, object]) -> Manifest:
        """The manifest of a film of which nothing is made yet; raises TypeError or ValueError for settings that are no JSON."""
        plain = json.loads(json.dumps(settings, allow_nan=False))  # what reading it back will give: tuples are lists
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return cls(plain, hashlib.sha256(canonical.encode()).hexdigest())

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file.

        Raises NewerManifestError, ValueError where the file is no manifest, and OSError where it cannot be read.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get(_VERSION_KEY) if isinstance(content, dict) else None
        if type(version) is not int:
            raise ValueError(f"{path.name} needs a whole number in '{_VERSION_KEY}', got {version!r}.")
        if version > MANIFEST_VERSION:
            raise NewerManifestError(f"needed a film of version {MANIFEST_VERSION}, got version {version}")
        try:
            chunks = tuple(_chunk(index, entry) for index, entry in enumerate(content["chunks"]))
            segments = tuple(_segment(index, entry) for index, entry in enumerate(content["segments"]))
            manifest = cls.begin(content["settings"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path.name} is not a manifest of version {version}: {error!r}.") from error
        if manifest.settings_hash != content.get("settings_hash"):
            raise ValueError(f"{path.name} has other settings than its hash says.")
        return replace(manifest, chunks=chunks, segments=segments, pictures_of=content.get("pictures_of"))

    def write(self, path: Path) -> None:
        """Put this manifest in the place of the one on disk."""
        content = {
            _VERSION_KEY: MANIFEST_VERSION,
            "settings_hash": self.settings_hash,
            "settings": self.settings,
            "chunks": [asdict(chunk) for chunk in self.chunks],
            "segments": [asdict(segment) for segment in self.segments],
            "pictures_of": self.pictures_of,
        }
        with whole_file(path) as part:
            part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _chunk(index: int, entry: Mapping[str, Any]) -> ChunkRecord:
    record = ChunkRecord(**{**entry, "file": FileRecord(**entry["file"])})
    counts = (record.start_frame, record.stop_frame, record.shot, record.trace_bytes)
    _check(record.index == index and all(type(count) is int and count >= 0 for count in counts), entry)
    _check(record.start_frame < record.stop_frame and isinstance(record.seconds, (int, float)), entry)
    return record


def _segment(index: int, entry: Mapping[str, Any]) -> SegmentRecord:
    file = None if entry["file"] is None else FileRecord(**entry["file"])
    record = SegmentRecord(**{**entry, "file": file})
    _check(record.index == index and type(record.pictures) is int and record.pictures >= 0, entry)
    _check((record.pictures == 0) == (file is None), entry)
    return record


def _check(holds: bool, entry: Mapping[str, Any]) -> None:
    if not holds:
        raise ValueError(f"the manifest needs whole counts in order, got {entry}.")
