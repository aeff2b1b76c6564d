"""The Memory Inspector as one page that needs no server and no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WEB = Path(__file__).absolute().parents[2] / "web"
MODULES = WEB / "js" / "inspector"
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


def inspector_page(inspection: Mapping[str, Any]) -> str:
    """HTML that shows an inspection with the same code as the node.

    A page that is opened as a file may not import modules, so they are put one behind the other, in the order of
    `order.json`, without their imports and exports. Whatever is in the inspection stays data: it cannot end its element.
    """
    modules = [(MODULES / name).read_text(encoding="utf-8") for name in module_order()]
    data = json.dumps(inspection, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    page = (WEB / "inspector_page.html").read_text(encoding="utf-8")
    before, between, after = re.split(r"/\*LONGREEL_(?:INSPECTION|MODULES)\*/", page)
    return before + data + between + "\n".join(_EXPORT.sub("", _IMPORT.sub("", module)) for module in modules) + after


def module_order() -> list[str]:
    """The modules of the picture; each comes behind those that it uses while it is loaded."""
    names: list[str] = json.loads((MODULES / "order.json").read_text(encoding="utf-8"))
    return names
