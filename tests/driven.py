"""Headless Chromium, driven by a script of node: the front end of a real server, or pages that are files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from served import Server

SECONDS = 3600
"""Only a driver that hangs takes so long; the machine may be busy with other things."""


def drive(driver: Path, *arguments: str) -> dict[str, Any]:
    """The JSON that a driver prints; what it says on its way is the failure."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    playwright = os.environ.get("LONGREEL_PLAYWRIGHT")
    assert chromium, "Install Chromium, or name one in CHROMIUM."
    assert playwright, "Install playwright-core with npm and name its folder in LONGREEL_PLAYWRIGHT."
    command = ["node", str(driver), playwright, chromium, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def drive_front_end(driver: Path, server: Server, workflow: dict[str, Any]) -> dict[str, Any]:
    """What a driver saw in the page of a server, which it opened with a workflow."""
    sent = server.folder / "workflow.json"
    sent.write_text(json.dumps(workflow), encoding="utf-8")
    try:
        return drive(driver, server.url, str(sent), str(picture_folder(server.folder)))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log[-4000:]}") from error


def picture_folder(folder: Path) -> Path:
    """Where screenshots go: into $LONGREEL_PICTURES, or else into the folder of the test."""
    pictures = Path(os.environ.get("LONGREEL_PICTURES", folder))
    pictures.mkdir(parents=True, exist_ok=True)
    return pictures


def our_errors(errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Errors that came from our files or passed through them, or that speak of us."""
    return [
        error
        for error in errors
        if "longreel" in error["words"].lower() or any("/extensions/longreel/" in name for name in error["files"])
    ]
