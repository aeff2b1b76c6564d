"""The folder of one film on disk: every finished chunk is kept, and a stopped render goes on from the last good one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import filelock
import safetensors.torch
import torch
from torch import Tensor

from .chunks import Chunk
from .manifest import ChunkRecord, FileRecord, Manifest, NewerManifestError, SegmentRecord
from .thumbnails import THUMBS, thumbnail_path
from .whole_file import ProjectError, explained, remove_parts, whole_file

MAX_NAME_LENGTH = 80
MAX_NAME_BYTES = 200  # file systems stop at 255 for a name, and ours gets a suffix
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}  # of Windows
_MANIFEST, _CHUNKS, _SEGMENTS, _SELECTIONS = "manifest.json", "chunks", "segments", "selections"
_LATENTS = "latents"

_Record = TypeVar("_Record", ChunkRecord, SegmentRecord)


def check_project_name(name: str) -> None:
    """Raises ValueError unless `name` is safe as the name of one folder on every system."""
    fault = _fault_of_name(name)
    if fault:
        raise ValueError(
            f"The project name needs to be a plain folder name such as 'walk_to_the_sea', got {name!r}: {fault}. "
            "Use letters, digits, spaces, '-' and '_'."
        )


def _fault_of_name(name: str) -> str:
    if not name.strip():
        return "it is empty"
    if len(name) > MAX_NAME_LENGTH or len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        return f"it is longer than {MAX_NAME_LENGTH} characters or {MAX_NAME_BYTES} bytes"
    if not name.isprintable():
        return "it has characters that cannot be shown"
    if forbidden := sorted(set(_FORBIDDEN.findall(name))):
        return f"it contains {' '.join(forbidden)}"
    if name.startswith(".") or name.endswith(".") or name != name.strip():
        return "it begins or ends with a dot or a space"
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "it is a name that Windows keeps for a device"
    return ""


class Project:
    """One film on disk, locked against a second render; close it when the run ends, also when it fails.

    `report` tells the artist what was found, and where an earlier film with other settings was moved.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, report: str = "") -> None:
        self.folder, self.report = folder, report
        self._manifest = manifest
        self._lock: filelock.BaseFileLock | None = None

    @classmethod
    def open(cls, root: Path, name: str, settings: Mapping[str, object], pictures_of: str | None = None) -> Project:
        """The film `name` under `root`: the one that is there where the settings are the same, otherwise a new one.

        `pictures_of` names the VAE that decodes it, if one does: pictures of another VAE are made again.
        Settings are whatever changes the film, ready for JSON. An earlier film with other settings is moved to
        `name.1`, `name.2`, ... Raises ValueError for a name that is no folder name, ProjectError where the folder
        cannot be used, before anything is made.
        """
        check_project_name(name)
        new = replace(Manifest.begin(settings), pictures_of=pictures_of)
        with explained(f"write into {root}"):
            root.mkdir(parents=True, exist_ok=True)
            lock = _locked(root, name)
        try:
            with explained(f"write into {root / name}"):
                project = _settled(root / name, new)
        except BaseException:
            lock.release()
            raise
        project._lock = lock
        return project

    def close(self) -> None:
        """Let another render use this folder."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Project:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> int:
        """Chunks from the start of the film whose latents are on disk and whole."""
        return len(self._manifest.chunks)

    @property
    def finished_segments(self) -> int:
        """Chunks from the start of the film whose video is on disk and whole; at most `finished`."""
        return len(self._manifest.segments)

    @property
    def segment_paths(self) -> list[Path]:
        """The finished videos in order, without the chunks that gave no picture."""
        return [self.segment_path(record.index) for record in self._manifest.segments if record.pictures]

    @property
    def trace_path(self) -> Path:
        """The trace; after `open` it ends with the last finished chunk, and is absent where there is none."""
        return self.folder / "trace.jsonl"

    @property
    def film_path(self) -> Path:
        """The joined film."""
        return self.folder / "film.mp4"

    def chunk_path(self, index: int) -> Path:
        """The latents of a chunk."""
        return _chunk_path(self.folder, index)

    def segment_path(self, index: int) -> Path:
        """The video of a chunk, to be written before `record_segment`."""
        return _segment_path(self.folder, index)

    def selection_path(self, index: int) -> Path:
        """The lists of a chunk, where they are kept; to be written before `save_chunk`."""
        return selection_path(self.folder, index)

    def thumbnail_path(self, index: int) -> Path:
        """The thumbnail of a chunk."""
        return thumbnail_path(self.folder, index)

    def save_chunk(self, chunk: Chunk, latents: Tensor, seconds: float) -> None:
        """Keep a finished chunk: latents float32 `[1, C, T, H, W]`, and how many seconds it took.

        Write its trace first. Saving a chunk again forgets those after it. When this fails nothing that was finished
        is lost: ProjectError where the disk refuses, ValueError for a chunk out of turn or latents that do not fit it.
        """
        if chunk.index > self.finished:
            raise ValueError(f"Chunks are kept in order: needed chunk {self.finished}, got {chunk.index}.")
        if latents.ndim != 5 or latents.shape[2] != len(chunk.frames) or latents.dtype != torch.float32:
            raise ValueError(
                f"Chunk {chunk.index} needs float32 latents [1, C, {len(chunk.frames)}, H, W], "
                f"got {latents.dtype} {list(latents.shape)}."
            )
        data = safetensors.torch.save({_LATENTS: latents.detach().cpu().contiguous()})
        frames, trace_bytes = chunk.frames, self._trace_bytes
        record = ChunkRecord(chunk.index, _record_of(data), frames.start, frames.stop, chunk.shot, seconds, trace_bytes)
        kept = self._manifest
        manifest = replace(kept, chunks=(*kept.chunks[: chunk.index], record), segments=kept.segments[: chunk.index])
        with whole_file(self.chunk_path(chunk.index)) as part:
            part.write_bytes(data)
        manifest.write(self.folder / _MANIFEST)
        self._manifest = manifest

    @property
    def _trace_bytes(self) -> int:
        return self.trace_path.stat().st_size if self.trace_path.exists() else 0

    def load_chunk(self, index: int) -> Tensor | None:
        """The latents of a finished chunk, float32 on the CPU, or None where they are not there whole."""
        if index >= self.finished:
            return None
        path = self.chunk_path(index)
        data = path.read_bytes() if path.is_file() else b""
        if _record_of(data) != self._manifest.chunks[index].file:
            return None
        return safetensors.torch.load(data)[_LATENTS]

    def save_storyboard(self, text: str) -> None:
        """Keep the storyboard, as JSON, beside the film; ProjectError where the disk refuses."""
        with explained(f"keep the storyboard in {self.folder}"), whole_file(self.folder / "storyboard.json") as part:
            part.write_text(text, encoding="utf-8")

    def require_chunk(self, index: int) -> Tensor:
        """The latents of a finished chunk; ProjectError where they are not there whole."""
        latents = self.load_chunk(index)
        if latents is None:
            raise ProjectError(
                f"The film needs {self.chunk_path(index)} as it was written, but it is missing or was changed since. "
                "Queue again: this chunk and those after it are made anew."
            )
        return latents

    def record_segment(self, index: int, pictures: int) -> None:
        """Believe in the video at `segment_path(index)` from now on; with 0 pictures no file is needed.

        Raises ValueError for a segment out of turn, ProjectError where the disk refuses.
        """
        if index > self.finished_segments or index >= self.finished:
            raise ValueError(
                f"Videos are kept in order and after their chunks: needed segment {self.finished_segments} "
                f"of {self.finished}, got {index}."
            )
        kept = self._manifest
        with explained(f"read {self.segment_path(index)}"):
            file = FileRecord.of(self.segment_path(index)) if pictures else None
        told = replace(kept.chunks[-1], trace_bytes=self._trace_bytes)  # what its pictures cost stands there by now
        segments = (*kept.segments[:index], SegmentRecord(index, file, pictures))
        manifest = replace(kept, chunks=(*kept.chunks[:-1], told), segments=segments)
        manifest.write(self.folder / _MANIFEST)
        self._manifest = manifest


def _chunk_path(folder: Path, index: int) -> Path:
    return folder / _CHUNKS / f"{index:05d}.safetensors"


def _segment_path(folder: Path, index: int) -> Path:
    return folder / _SEGMENTS / f"{index:05d}.mp4"


def finished_chunks(folder: Path, settings: Mapping[str, object]) -> int:
    """Chunks that a film of these settings has finished in this folder, as its manifest says; 0 where there is no such film."""
    try:
        earlier = Manifest.read(folder / _MANIFEST)
    except (OSError, ValueError):
        return 0
    return len(earlier.chunks) if earlier.settings_hash == Manifest.begin(settings).settings_hash else 0


def selection_path(folder: Path, index: int) -> Path:
    """The lists of a chunk of the film in a folder."""
    return folder / _SELECTIONS / f"{index:05d}.safetensors"


def _record_of(data: bytes) -> FileRecord:
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def _locked(root: Path, name: str) -> filelock.BaseFileLock:
    """The system's own lock, which a killed program lets go; beside the folder, so that the folder can be moved."""
    lock = filelock.FileLock(root / f".{name}.lock", blocking=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ProjectError(
            f"The project '{name}' needs to be free, but another render is writing it right now. "
            "Wait for that render or stop it, or give this film another project name."
        ) from error
    return lock


def _settled(folder: Path, new: Manifest) -> Project:
    """The project in a folder that is ours alone by now: continued, begun in place, or begun beside an earlier film."""
    earlier, trouble = _earlier_film(folder)
    if earlier is not None and earlier.settings_hash == new.settings_hash:
        return _continued(folder, earlier, new.pictures_of or earlier.pictures_of)
    report = ""
    if trouble or (earlier is not None and earlier.chunks):
        set_aside = _next_free(folder)
        os.rename(folder, set_aside)
        cause = trouble or f"The settings changed ({_changes(earlier, new)})"
        report = f"{cause}: the earlier film is kept as '{set_aside.name}', a new one begins in '{folder.name}'."
    for part in (folder, folder / _CHUNKS, folder / _SEGMENTS, folder / THUMBS):
        part.mkdir(exist_ok=True)
        remove_parts(part)
    new.write(folder / _MANIFEST)
    project = Project(folder, new, report=report)
    project.trace_path.unlink(missing_ok=True)
    _drop_selections(folder, 0)
    return project


def _earlier_film(folder: Path) -> tuple[Manifest | None, str]:
    """The manifest that is there, or None, and what is wrong with a film that is there but cannot be read."""
    try:
        return Manifest.read(folder / _MANIFEST), ""
    except FileNotFoundError:
        strangers = [entry.name for entry in folder.rglob("*") if entry.is_file() and entry.suffix != ".part"]
        if strangers:
            raise ProjectError(
                f"The project needs a folder that LongReel made or an empty one, but {folder} holds other files "
                f"({', '.join(sorted(strangers)[:3])}). Give the film another project name."
            ) from None
        return None, ""
    except NewerManifestError as error:
        raise ProjectError(
            f"The film in {folder} was made by a newer LongReel: {error}. Update LongReel, or give this film another "
            "project name."
        ) from error
    except ValueError:
        return None, "The notes of the earlier film cannot be read"


def _continued(folder: Path, earlier: Manifest, pictures_of: str | None) -> Project:
    for part in (folder, folder / _CHUNKS, folder / _SEGMENTS, folder / THUMBS):
        part.mkdir(exist_ok=True)
        remove_parts(part)
    chunks = _leading(earlier.chunks, lambda chunk: chunk.file.matches(_chunk_path(folder, chunk.index)))
    segments = _leading(
        earlier.segments[: len(chunks)] if pictures_of == earlier.pictures_of else (),
        lambda segment: segment.file is None or segment.file.matches(_segment_path(folder, segment.index)),
    )
    report = f"The film goes on after {len(chunks)} finished chunks." if earlier.chunks else ""
    if len(chunks) < len(earlier.chunks):
        report += f" Chunk {len(chunks)} is damaged or missing, so it and those after it are made again."
    manifest = replace(earlier, chunks=chunks, segments=segments, pictures_of=pictures_of)
    manifest.write(folder / _MANIFEST)  # a folder that turned read-only is to be noticed now, not after the first chunk
    project = Project(folder, manifest, report=report)
    _cut(project.trace_path, chunks[-1].trace_bytes if chunks else 0)
    _drop_selections(folder, len(chunks))
    return project


def _leading(records: tuple[_Record, ...], whole: Callable[[_Record], bool]) -> tuple[_Record, ...]:
    return tuple(takewhile(whole, records))


def _cut(path: Path, size: int) -> None:
    """Drop what a trace tells after its first `size` bytes; nothing remains of it at 0."""
    if size == 0:
        path.unlink(missing_ok=True)
    elif path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def _drop_selections(folder: Path, first: int) -> None:
    """Remove the lists of the chunks from `first` on: those chunks are not finished."""
    remove_parts(folder / _SELECTIONS)
    kept = {selection_path(folder, index).name for index in range(first)}
    for path in (folder / _SELECTIONS).glob("[0-9]*.safetensors"):
        if path.name not in kept:
            path.unlink()


def _next_free(folder: Path) -> Path:
    candidates = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    return next(path for path in candidates if not os.path.lexists(path))


def _changes(earlier: Manifest | None, new: Manifest) -> str:
    before = {} if earlier is None else earlier.settings
    keys = before.keys() | new.settings.keys()
    return ", ".join(sorted(key for key in keys if before.get(key) != new.settings.get(key)))
