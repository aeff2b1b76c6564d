"""Where pages lie that are not on the card: in RAM as long as there is enough, else in files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

RAM_SHARE = 0.6  # of what is free; the host moves models through RAM too
PREFIX = "longreel_pages_"


def fits_in_ram(needed: int) -> bool:
    """Whether so many bytes may be taken from RAM."""
    return needed <= RAM_SHARE * free_ram()


def free_ram() -> int:
    """Bytes of RAM that nobody uses."""
    return int(comfy.model_management.get_free_memory(torch.device("cpu")))


def page_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for pages that is gone when the run ends."""
    root = folder_paths.get_temp_directory()
    Path(root).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=PREFIX, dir=root, ignore_cleanup_errors=True)


def check_page_room(needed: int) -> None:
    """Raises ValueError where so many bytes fit neither into RAM nor onto the disk of ComfyUI's temporary files."""
    if fits_in_ram(needed):
        return
    disk = shutil.disk_usage(_existing(Path(folder_paths.get_temp_directory()))).free
    if needed > disk:
        raise ValueError(
            f"The memory of this film needs {needed / 2**30:.1f} GiB beside the card, but {free_ram() / 2**30:.1f} GiB of RAM and "
            f"{disk / 2**30:.1f} GiB of ComfyUI's temporary folder are free. Turn 'look_back' of Sparse KV Memory down or "
            "its 'eight_bit' on, remove the Prompt-Retrieved Memory Bank if it is there, or make the picture smaller."
        )


def check_disk(folder: Path, needed: int, page_bytes: int) -> None:
    """Raises ValueError where so many bytes of selections do not fit onto the disk of this folder, beside pages that go there."""
    film = _existing(folder)
    pages = _existing(Path(folder_paths.get_temp_directory()))
    if not fits_in_ram(page_bytes) and film.stat().st_dev == pages.stat().st_dev:
        needed += page_bytes
    free = shutil.disk_usage(film).free
    if needed > free:
        raise ValueError(
            f"What the film keeps on disk needs {needed / 2**30:.1f} GiB with its selections, but {free / 2**30:.1f} GiB are free "
            f"beside {film}. Turn 'keep_selections' of the Chunked AR Sampler off, make room on this disk, or make the film shorter."
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(found for found in (folder, *folder.parents) if found.exists())
