"""`longreel train encoder table` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "error: Training an encoder needs steps"),
        (["--row", "9x9x9:both"], "error: A memory encoder needs a rate of 4x4x2"),
        (["--row", "2x2x2"], "error: --row needs RATE:BRANCHES with branches both"),
        (["--row", "2x2x2:both", "--row", "2x2x2:both"], "error: A table needs rows that differ"),
        (["--size", "large"], "error: A picture needs a size like 96x128"),
        (["--films", "3"], "error: --films needs a multiple of --clips (2) and of 2, got 3"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "encoder", "table", "--out", str(tmp_path / "run"), *arguments]) == 1
    assert capsys.readouterr().err.startswith(said)
    assert not list(tmp_path.iterdir())


def test_rows_are_trained_measured_and_shown_side_by_side_and_only_once(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "encoder", "table", "--out", str(tmp_path), "--steps", "1", "--clips", "1", "--films", "2"]
    command += ["--size", "96x128", "--row", "2x2x8:patchifier"]
    assert main(command) == 0
    found = tmp_path / "2x2x8-patchifier" / "retrieval.json"
    older = json.loads(found.read_text(encoding="utf-8"))
    del older["settings"]["cross_layers"]  # as if made before there was such a setting
    found.write_text(json.dumps(older), encoding="utf-8")
    before = found.stat().st_mtime_ns
    assert main([*command, "--row", "2x2x8:both"]) == 0
    assert found.stat().st_mtime_ns == before
    rows = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == ["2x2x8 large patchifier", "2x2x8 both"]
    said = capsys.readouterr().out
    assert "| 2x2x8 large patchifier | 6 |" in said
    assert said.count("| 2x2x8 both | 6 |") == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 128
    for row in ("2x2x8-patchifier", "2x2x8-both"):
        assert (tmp_path / row / "encoder.safetensors").is_file()
        assert (tmp_path / row / "encoder_lora.safetensors").is_file()
