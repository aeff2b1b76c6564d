"""A front end from before Nodes 2.0, a year older than the host: the pack loads in it, and IMAGE and JSON are made."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from driven import drive_front_end, our_errors
from PIL import Image
from served import Server
from shipped import TINY, read_json

pytestmark = pytest.mark.long

DRIVER = Path(__file__).with_name("older_front_end.mjs")
VERSION = "1.23.4"  # of June 2025, 9 MB; ComfyUI 0.30 comes with 1.47
PACKAGE = "comfyui_frontend_package"
TEXT = "[1.5s] anna walks left in the meadow"


@pytest.fixture(scope="module")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The older page, from the package index."""
    folder = tmp_path_factory.mktemp("older")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / PACKAGE / "static"


@pytest.fixture(scope="module")
def seen(front_end: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser saw, with the image that was made."""
    with Server(tmp_path_factory.mktemp("older server"), "--", "--front-end-root", str(front_end)) as server:
        seen = drive_front_end(DRIVER, server, workflow())
        with Image.open(server.folder / "base" / "temp" / seen["image"]["filename"]) as picture:
            return {**seen, "size": picture.size}


def workflow() -> dict[str, Any]:
    """The shipped workflow, shorter and smaller, with a node that shows the image and one that shows the JSON."""
    graph: dict[str, Any] = read_json(TINY)
    nodes = {node["type"]: node for node in graph["nodes"]}
    nodes["LongReelStoryboard"]["widgets_values"][0] = TEXT
    inspector = nodes["LongReelMemoryInspector"]
    for at, (kind, name, wanted) in enumerate((("PreviewImage", "images", "IMAGE"), ("PreviewAny", "source", "*"))):
        node, link = 100 + at, 200 + at
        graph["nodes"].append(
            {
                "id": node,
                "type": kind,
                "pos": [inspector["pos"][0] + 1100, inspector["pos"][1] + 400 * at],
                "size": [300, 300],
                "flags": {},
                "order": 10 + at,
                "mode": 0,
                "inputs": [{"name": name, "type": wanted, "link": link}],
                "outputs": [],
                "properties": {},
                "widgets_values": [],
            }
        )
        inspector["outputs"][at]["links"] = [link]
        graph["links"].append([link, inspector["id"], at, node, 0, inspector["outputs"][at]["type"]])
    return graph | {"last_node_id": 101, "last_link_id": 201}


def test_it_is_the_older_front_end_and_it_has_our_nodes(seen: dict[str, Any]) -> None:
    assert seen["version"] == VERSION
    assert [kind for kind, _ in seen["nodes"]] == [
        node["type"] for node in read_json(TINY)["nodes"] if node["type"].startswith("LongReel")
    ]


def test_image_and_json_are_made(seen: dict[str, Any]) -> None:
    assert seen["size"] == (1280, 1024)
    told = json.loads(seen["text"])
    assert told == seen["inspection"]
    assert [chunk["index"] for chunk in told["chunks"]] == [0, 1]
    assert told["shots"][0]["prompt"] == TEXT.partition("] ")[2]


def test_the_picture_is_there_as_well(seen: dict[str, Any]) -> None:
    assert seen["picture"] == "tiny_demo"


def test_nothing_of_ours_makes_an_error_in_the_console(seen: dict[str, Any]) -> None:
    assert our_errors(seen["errors"]) == []
