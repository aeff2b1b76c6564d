"""`longreel inspect`: one page that needs nothing else, and the pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from longreel.memory.inspection import PAGES
from longreel.memory.picture.drawing import ABOVE_MATRIX, BELOW_MATRIX, LEFT, RIGHT
from longreel.memory.picture.palette import GROUND, reading_colour
from longreel.memory.thumbnails import thumbnail_path, write_thumbnail
from longreel.memory.trace import Trace
from longreel.nodes.headless.cli import main

PROMPT = "<script>alert(1)</script> </script> a beach"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """The folder of a film of two chunks, one of them with a thumbnail."""
    folder = tmp_path / "film"
    (folder / "thumbs").mkdir(parents=True)
    trace = Trace(folder / "trace.jsonl")
    shots = [{"chunks": [0, 2], "frames": [0, 6]}]
    plan = {"total_frames": 6, "shots": shots}
    trace.begin(
        {"project": "<i>film</i>", "fps": 16.0, "plan": plan, "prompts": [PROMPT], "memory": "window of 9 frames"}
    )
    for chunk in range(2):
        frames = [3 * chunk, 3 * chunk + 3]
        read = list(range(3 * chunk))
        trace.add({"chunk": chunk, "shot": 0, "frames": frames, "read_frames": read, "brought_frames": []})
    write_thumbnail(thumbnail_path(folder, 1), Image.new("RGB", (64, 48), (200, 30, 30)))
    return folder


@pytest.mark.parametrize("what", ["", "trace.jsonl"])
def test_a_folder_or_a_trace_becomes_a_page_and_a_picture(
    film: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["inspect", str(film / what), "--out", str(out)]) == 0
    assert "<i>film</i>: 2 of 2 chunks, window of 9 frames" in capsys.readouterr().out
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1280, 1024)
    page = out.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    inspection = json.loads(data)
    assert inspection["shots"][0]["prompt"] == PROMPT
    assert inspection["chunks"][1]["reads"] == [[frame, 0, 1.0, None, "window"] for frame in range(3)]
    assert inspection["thumbnails"][0]["src"].startswith("data:image/jpeg;base64,")


def test_a_page_asks_for_nothing_and_runs_nothing_of_the_trace(film: Path, tmp_path: Path) -> None:
    assert main(["inspect", str(film), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert not re.search(r"^(?:import|export) ", page, re.MULTILINE)


def test_the_picture_goes_where_it_is_told_in_the_size_it_is_told(film: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    settings = ["--png", str(folder), "--width", "640", "--height", "480"]
    assert main(["inspect", str(film), "--out", str(tmp_path / "report.html"), *settings]) == 0
    (png,) = folder.iterdir()
    assert png.name == "report.png"
    with Image.open(png) as picture:
        assert picture.size == (640, 480)
    assert not list(tmp_path.glob("*.png"))


def test_where_layers_read_different_pages_each_group_has_a_picture_of_its_own(tmp_path: Path) -> None:
    groups = {"layer_groups": [[0, 1], [2, 2]], "head_groups": [[0, 0]], "layers": 3, "heads": 1}
    plan = {"total_frames": 900, "shots": [{"chunks": [0, 300], "frames": [0, 900]}]}
    trace = Trace(tmp_path / "trace.jsonl")
    trace.begin({"project": "film", "fps": 16.0, "plan": plan, "prompts": ["a beach"], **groups})
    for chunk in range(4):
        line = {
            "chunk": chunk,
            "shot": 0,
            "frames": [3 * chunk, 3 * chunk + 3],
            "read_frames": [],
            "brought_frames": [],
        }
        pages = {"bank": [[1, 2000]], "selected": [[1, 0, 3000]]} if chunk == 3 else {}
        trace.add(line | pages)
    out = tmp_path / "report.html"
    assert main(["inspect", str(tmp_path), "--out", str(out)]) == 0
    pictures = {}
    for path in sorted(tmp_path.glob("*.png")):
        with Image.open(path) as picture:
            pictures[path.name] = picture.convert("RGB")
    assert list(pictures) == ["report.layer-2.png", "report.layers-0-1.png", "report.png"]
    # Four pixels a chunk and two a frame: in a film of minutes, too, each can be seen.
    left, pixels = LEFT + 3 * 4, {name: picture.size for name, picture in pictures.items()}
    assert set(pixels.values()) == {(LEFT + 300 * 4 + RIGHT, ABOVE_MATRIX + 900 * 2 + BELOW_MATRIX)}
    row = ABOVE_MATRIX + 2 * (900 - 2)
    shown = {name: picture.getpixel((left, row)) for name, picture in pictures.items()}
    assert shown == {
        "report.png": reading_colour(PAGES, 0.2),
        "report.layers-0-1.png": reading_colour(PAGES, 0.3),
        "report.layer-2.png": GROUND,
    }


@pytest.mark.parametrize(
    ("trace", "out", "settings", "said"),
    [
        ("nothing", "report.html", [], "There is no trace at"),
        ("film", "nowhere/report.html", [], "Needed to write"),
        ("film", "report.html", ["--png", "nowhere"], "Needed to write"),
        ("film", "report.html", ["--width", "10"], "at least 480x480 pixels"),
        ("film", "report.html", ["--head-group", "1"], "a group of this film, which has 0"),
        ("damaged", "report.html", [], "Line 2 of"),
        ("film/thumbs/00001.jpg", "report.html", [], "It needs to be a trace.jsonl"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_clear_error(
    film: Path, tmp_path: Path, trace: str, out: str, settings: list[str], said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    header = (film / "trace.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "damaged").write_text(f"{header}\n{{half\n", encoding="utf-8")
    assert main(["inspect", trace, "--out", out, *settings]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert len(error.splitlines()) == 1
