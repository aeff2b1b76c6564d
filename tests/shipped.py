"""The shipped workflow files, and how their generated companions are written anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
API_FOLDER = ROOT / "workflows" / "api"
SNAPSHOT = ROOT / "tests" / "data" / "object_info.json"
TINY = ROOT / "workflows" / "Tiny demo storyboard.json"
ENCODED = ROOT / "workflows" / "Tiny storyboard with a memory encoder.json"
ENCODED_WAN = ROOT / "workflows" / "Storyboard with a memory encoder - Wan 2.1 14B.json"
ENCODED_HUNYUAN = ROOT / "workflows" / "HunyuanVideo storyboard with a memory encoder.json"
TINY_HUNYUAN = ROOT / "workflows" / "Tiny HunyuanVideo storyboard.json"

WRITE = os.environ.get("LONGREEL_WRITE") == "1"
HOW_TO_WRITE = "If the change is meant, run `LONGREEL_WRITE=1 pytest tests/workflows` and commit the files it writes."


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def check_written(path: Path, now: Any) -> None:
    """The file holds `now`, in the same order; with LONGREEL_WRITE=1 it is written instead."""
    text = json.dumps(now, indent=2, ensure_ascii=False) + "\n"
    if WRITE:
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path.name} is missing. {HOW_TO_WRITE}"
    assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what the host gives now. {HOW_TO_WRITE}"
