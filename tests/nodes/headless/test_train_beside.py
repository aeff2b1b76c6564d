"""`longreel train encoder finetune --beside` as a user types it: two encoders and one LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_runs import SHORT, new_encoder

from longreel.memory.encoder_file import read_encoder, save_encoder
from longreel.memory.encoder_spec import LowBranch
from longreel.memory.film import write_segment
from longreel.memory.training.encoder_chain import EncoderChain, trained_specs
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.encoder_files import BESIDE_FILE, ENCODER_FILE, encoders_in
from longreel.nodes.host.build import TINY_ENCODER

FINETUNE = ["train", "encoder", "finetune", "--encoder", str(TINY_ENCODER)]


def storm(folder: Path) -> list[str]:
    """Arguments that name a folder with a captioned video, of small pictures."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (81, 32, 48, 3), dtype=np.uint8)
    write_segment(folder / "noise.mp4", pictures, 16)
    (folder / "noise.txt").write_text("a storm", encoding="utf-8")
    return ["--videos", str(folder), "--size", "32x48", "--history-frames"]


def test_two_encoders_are_trained_written_and_measured_together(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, source = tmp_path / "two", storm(tmp_path / "videos")
    command = [*FINETUNE, "--beside", str(TINY_ENCODER), "--out", str(out), "--clips", "1", *source, "6"]
    command += ["--steps", "2", "--beside-frames"]
    assert main([*command, "4"]) == 0
    said = capsys.readouterr().out
    assert f"encoder  {out / 'encoder.safetensors'}\nencoder  {out / 'encoder_beside.safetensors'}\nLoRA " in said
    assert "What comes next in the parts of the videos that were left out" in said
    (coarse, first), (fine, second) = (
        read_encoder(out / f"{name}.safetensors") for name in ("encoder", "encoder_beside")
    )
    assert coarse.trained["trained beside"] == "2x2x2 of the newest 4 frames"
    assert fine.trained["newest latent frames"] == 4
    before = read_encoder(TINY_ENCODER)[1]
    assert not torch.equal(first["high.project.weight"], before["high.project.weight"])
    assert not torch.equal(first["high.project.weight"], second["high.project.weight"])
    assert main([*command, "3"]) == 1
    assert (
        "was made with beside=2x2x2 of the newest 4 frames, got 2x2x2 of the newest 3 frames" in capsys.readouterr().err
    )
    bench = [
        "bench",
        "retrieval",
        "--encoder",
        str(out),
        "--films",
        "2",
        "--history-frames",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert main(bench) == 0
    (row,) = json.loads((tmp_path / "lengths.json").read_text(encoding="utf-8"))
    assert row["settings"]["beside"] == "2x2x2 of the newest 4 frames"
    assert row["tokens_per_second"] == 24 + 12  # 2 s, and half of them again


def test_an_encoder_that_looks_at_a_smaller_video_goes_through_both_stages(host: Host, tmp_path: Path) -> None:
    source, one, two = storm(tmp_path / "videos"), tmp_path / "one", tmp_path / "two"
    short = ["--clips", "1", *source, "6", "--steps", "1"]
    assert main(["train", "encoder", "pretrain", "--low", "video", "--out", str(one), *short]) == 0
    spec, weights = read_encoder(one / "encoder.safetensors")
    assert spec.low is LowBranch.VIDEO
    finetune = ["train", "encoder", "finetune", "--encoder", str(one / "encoder.safetensors")]
    assert main([*finetune, "--beside", str(TINY_ENCODER), "--out", str(two), *short]) == 0
    again, learned = read_encoder(two / "encoder.safetensors")
    assert again.low is LowBranch.VIDEO
    assert not torch.equal(weights["high.project.weight"], learned["high.project.weight"])
    assert read_encoder(two / "encoder_beside.safetensors")[0].low is LowBranch.LATENTS


def test_an_encoder_that_is_left_of_an_earlier_training_is_not_taken_for_one_beside(host: Host, tmp_path: Path) -> None:
    first, second = new_encoder(), new_encoder()
    specs = trained_specs(EncoderChain([first, second], [None, 4]), SHORT)
    for name, spec in zip((ENCODER_FILE, BESIDE_FILE), specs, strict=True):
        save_encoder(tmp_path / name, spec, first.state_dict())
    assert [file.longest_frames for file in encoders_in(tmp_path)] == [None, 4]
    save_encoder(tmp_path / ENCODER_FILE, trained_specs(first, SHORT)[0], first.state_dict())
    assert [file.path.name for file in encoders_in(tmp_path)] == [ENCODER_FILE]
    (tmp_path / ENCODER_FILE).unlink()
    assert encoders_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--beside-frames", "4"], "error: --beside-frames needs --beside"),
        (["--beside", "gone"], "error: --beside needs a file that `longreel train encoder pretrain` wrote"),
        (["--beside", str(TINY_ENCODER), "--beside-frames", "1"], "error: --beside-frames needs to be 2 or more"),
        (["--beside", "other.safetensors"], "error: --beside needs an encoder for the tiny model, of width 256"),
    ],
)
def test_what_cannot_be_trained_beside_is_one_line(
    host: Host,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "other.safetensors", new_encoder().spec, new_encoder().state_dict())
    assert main([*FINETUNE, "--out", "run", *arguments]) == 1
    assert capsys.readouterr().err.startswith(said)
