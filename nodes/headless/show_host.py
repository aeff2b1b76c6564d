"""Say which ComfyUI is used, why, and what it lacks here."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .boot import embedded_base, find_host
from .stand_ins import OPTIONAL_PACKAGES

NAME = "host"
PURPOSES = {
    "comfyui-frontend-package": "the page in the browser: only `longreel serve` needs it",
    "comfyui-workflow-templates": "the template browser of the page",
    "comfyui-embedded-docs": "the help texts of the page",
    "PyOpenGL": "shader nodes: not used for films",
    "comfy-angle": "shader nodes: not used for films",
} | dict.fromkeys(OPTIONAL_PACKAGES, "not called by film nodes: LongReel puts an empty one in its place")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the host, and its requirements that are missing or different here."""
    host = find_host()
    print(f"ComfyUI {host.version}\n  folder  {host.path}\n  why     {host.reason}")
    print(f"  models  {(embedded_base() if host.embedded else host.path) / 'models'}")
    print(f"  python  {platform.python_version()}, torch {installed_version('torch') or 'missing'}")
    differences = list(differing_requirements(host.path / "requirements.txt"))
    print("Its requirements that differ here:" if differences else "All of its requirements are installed here.")
    for name, wanted, found in differences:
        purpose = f"  ({PURPOSES[name]})" if name in PURPOSES else ""
        print(f"  {name + wanted:<38} here: {found or 'missing'}{purpose}")
    return 0


def differing_requirements(file: Path) -> Iterator[tuple[str, str, str | None]]:
    """Name, wanted versions and installed version of each requirement that is not met."""
    from packaging.requirements import Requirement

    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        found = installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement.name, str(requirement.specifier), found


def installed_version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
