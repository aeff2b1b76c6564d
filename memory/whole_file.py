"""Files that are there whole or not at all, whatever kills the program or fills the disk meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART_SUFFIX = ".part"
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
_MAKE_ROOM = "Make room on this disk and start again: what was finished is safe, and it goes on from there."
_GET_ACCESS = "Pick an output folder on a disk that is there and that ComfyUI may write to, or change its permissions."


class ProjectError(RuntimeError):
    """A folder or file cannot be used; the message says what was needed, what is there and what to do."""


@contextmanager
def explained(need: str) -> Iterator[None]:
    """Raises ProjectError, with a remedy, where the system refuses what is done here: to `need`."""
    try:
        yield
    except OSError as error:
        remedy = _MAKE_ROOM if error.errno in _FULL else _GET_ACCESS
        raise ProjectError(f"Needed to {need}, got '{error.strerror or error}'. {remedy}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what lies there takes the place of `path` at the end, or is removed after an error.

    The path given is in the same folder, hidden, and ends in `.part`: `remove_parts` clears those a kill left behind.
    Raises ProjectError where the disk refuses.
    """
    part = path.with_name(f".{path.name}{_PART_SUFFIX}")
    with explained(f"write {path}"):
        try:
            yield part
            _sync(part, os.O_RDWR)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        if os.name == "posix":  # the new name is itself an entry of the folder that a power cut could lose
            _sync(path.parent, os.O_RDONLY)


def remove_parts(folder: Path) -> None:
    """Clear what writes that never finished left in this folder."""
    for part in folder.glob(f".*{_PART_SUFFIX}"):
        part.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
