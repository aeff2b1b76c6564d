"""Where LongReel keeps on this computer what it fetched or measured. It knows no torch, so that it costs nothing to ask."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """LONGREEL_CACHE, or LongReel's part of the user's cache folder."""
    if chosen := os.environ.get("LONGREEL_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "longreel"
