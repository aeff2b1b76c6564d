"""Say which ComfyUI is used, why, and what it lacks here."""

from __future__ import annotations

import argparse

from .boot import find_host

NAME = "host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print path, version and reason."""
    host = find_host()
    print(f"ComfyUI {host.version} in {host.path}\n({host.reason})")
    return 0
