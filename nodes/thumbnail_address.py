"""Where a browser gets the thumbnails of a film that lies in the host's output folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlencode

import folder_paths

from ..memory.thumbnails import thumbnail_path


def thumbnail_addresses(film: Path, chunks: Iterable[int]) -> dict[int, str]:
    """Addresses by chunk, of the thumbnails that are there; the age of a file is in it, so that a browser sees a new one."""
    output = Path(folder_paths.get_output_directory()).resolve()
    found = {}
    for chunk in chunks:
        path = thumbnail_path(film, chunk).resolve()
        if path.is_file() and path.is_relative_to(output):
            place = {
                "filename": path.name,
                "subfolder": path.parent.relative_to(output).as_posix(),
                "type": "output",
                "changed": path.stat().st_mtime_ns,
            }
            found[chunk] = f"/view?{urlencode(place)}"
    return found
