"""ComfyUI inside this process, without a server: which one is taken and why, and how it is started."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...kernels.cache_folder import cache_folder
from .embedded import HostError, ensure_host
from .stand_ins import install_stand_ins, unusable_packages

DEVICES = ("auto", "cpu", "gpu")
OLDEST_VERSION = (0, 30)
HOST_FILES = (
    "main.py",
    "nodes.py",
    "execution.py",
    "server.py",
    "folder_paths.py",
    "comfyui_version.py",
    "comfy/sd.py",
)
HOST_MODULES = ("nodes", "execution", "server", "folder_paths", "comfy", "comfy_api", "comfy_execution", "utils", "app")


@dataclass(frozen=True, slots=True)
class Host:
    """A ComfyUI on this machine."""

    path: Path
    """The folder with its main.py."""
    version: str
    reason: str
    """Why this one was taken, as a phrase."""
    embedded: bool
    """Whether it is LongReel's own copy in the cache, which is never written to."""


def pack_folder() -> Path:
    """The folder of this pack, as it was imported."""
    return Path(__file__).absolute().parents[2]


def find_pack(host: Path) -> Path | None:
    """The folder of a LongReel that is installed in a ComfyUI, this one or another copy."""
    for project in sorted(host.glob("custom_nodes/*/pyproject.toml")):
        if re.search(r'^name\s*=\s*"longreel"', project.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
            return project.parent
    return None


def find_host() -> Host:
    """The ComfyUI to use: COMFYUI_PATH, else the one this pack is installed in, else the cached copy.

    Fetches the cached copy where there is none. Raises HostError when nothing can be used, or the one found is too old.
    """
    if chosen := os.environ.get("COMFYUI_PATH"):
        path = Path(chosen).expanduser().absolute()
        if missing := missing_host_files(path):
            raise HostError(
                f"COMFYUI_PATH should be the folder of a ComfyUI (the one with main.py); {path} has no {missing[0]}. "
                "Correct it, or unset it to let LongReel find one."
            )
        version = recent_version(path, "unset COMFYUI_PATH to let LongReel find another")
        return Host(path, version, "COMFYUI_PATH names it", embedded=False)
    for pack in (pack_folder(), pack_folder().resolve()):
        path = pack.parents[1]
        if pack.parent.name == "custom_nodes" and not missing_host_files(path):
            version = recent_version(path, "set COMFYUI_PATH to the folder of a newer one")
            return Host(path, version, "this pack is installed in it", embedded=False)
    path = ensure_host()
    return Host(path, read_version(path), "no ComfyUI was named, so LongReel uses its own copy", embedded=True)


def boot_host(device: str = "auto", *, output: Path | None = None, base: Path | None = None) -> Host:
    """ComfyUI importable in this process (`import comfy`, `import nodes`), with its folders set; calling again is free.

    `device` is "auto" (the GPU where there is one), "cpu" or "gpu". `output` is where films go: by default the
    ComfyUI's own output folder, or ./output for LongReel's own copy. `base` is ComfyUI's base directory (models, input,
    user, custom_nodes): by default its own, or a folder beside LongReel's own copy. Temporary files go to a
    folder that is removed when the process ends.

    Raises HostError when no ComfyUI can be used or another one is already loaded.
    """
    if device not in DEVICES:
        raise HostError(f"device should be one of {', '.join(DEVICES)}, and is {device!r}.")
    host = find_host()
    if "comfy.cli_args" in sys.modules:
        check_modules(host.path)
        return host
    install_stand_ins(unusable_packages())
    sys.path.insert(0, str(host.path))
    check_modules(host.path)
    start(host, device, output, base)
    return host


def start(host: Host, device: str, output: Path | None, base: Path | None) -> None:
    """Give ComfyUI its arguments before any module reads them."""
    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    if base is None and host.embedded:
        base = embedded_base()
    if base is not None:
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        args.base_directory = str(base.absolute())
    args.cpu = use_cpu(device)
    temporary = tempfile.mkdtemp(prefix="longreel-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # Nobody opens a browser on this process: without this, ComfyUI's server object insists on a front end.
    args.front_end_root = temporary

    import folder_paths

    folder_paths.set_temp_directory(temporary)
    if output is None and host.embedded:
        output = Path("output")
    if output is not None:
        folder_paths.set_output_directory(str(output.absolute()))


def embedded_base() -> Path:
    """The base directory of LongReel's own copy of ComfyUI: its models, input and user folders."""
    return cache_folder() / "base"


def use_cpu(device: str) -> bool:
    """Whether ComfyUI is told to stay off the GPU."""
    import torch

    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()
    if device == "gpu" and not has_gpu:
        raise HostError("A GPU was asked for, and torch sees none. Use the CPU, or install the torch for your card.")
    return device == "cpu" or not has_gpu


def missing_host_files(folder: Path) -> list[str]:
    """Which of the files that make a folder a ComfyUI are not there."""
    return [name for name in HOST_FILES if not (folder / name).is_file()]


def read_version(folder: Path) -> str:
    """The version that a ComfyUI folder states."""
    found = re.search(r'__version__\s*=\s*"([^"]+)"', (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    return found.group(1) if found else "unknown"


def recent_version(folder: Path, otherwise: str) -> str:
    """The version of a ComfyUI folder; HostError where it is too old, or not known. `otherwise` is what else would do."""
    version = read_version(folder)
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST_VERSION:
        needed = ".".join(map(str, OLDEST_VERSION))
        raise HostError(
            f"LongReel needs ComfyUI {needed} or newer, got {version} at {folder}. Update that ComfyUI, or {otherwise}."
        )
    return version


def check_modules(path: Path) -> None:
    """Make sure that the host's module names lead to this host: one process has one ComfyUI."""
    for name in HOST_MODULES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).absolute() if spec is not None and spec.origin is not None else None
        if found is None and spec is not None and spec.submodule_search_locations:
            found = Path(next(iter(spec.submodule_search_locations))).absolute()
        if found is None or path.resolve() not in found.resolve().parents:
            raise HostError(
                f"`import {name}` should give {path / name}, and gives {found}. One process can hold one ComfyUI: "
                "start a new one, without another `" + name + "` on its path."
            )
