"""`longreel train` as a user types it: it says what is wrong, stops when asked and goes on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_runs import new_encoder

from longreel.memory.encoder_file import read_encoder, save_encoder
from longreel.memory.training.export import save_weights
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.train import LAYERS
from longreel.nodes.host.build import ENCODER_LORA, TINY_ENCODER
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, new_hunyuan


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "error: Training needs steps"),
        (["--gates", "decmem", "--steps", "0"], "error: Training needs steps"),
        (["--gates", "decmem", "--quick"], "error: --quick is for a whole model"),
        (["--weights", "."], r"error: --weights needs a folder with tiny_wan*.safetensors, got ."),
    ],
)
def test_bad_arguments_are_one_line_before_anything_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny", "--out", "run", *arguments]) == 1
    assert capsys.readouterr().err.startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("")
    assert main(["train", "tiny", "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("error: --out should be a folder that can be written to")


def test_training_writes_weights_that_the_bench_and_the_demo_can_take(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", "--out", str(tmp_path), "--steps", "1", "--device", "cpu"]) == 0
    weights = tmp_path / "tiny_wan.safetensors"
    said = capsys.readouterr().out
    assert f"weights  {weights}" in said
    assert f"longreel bench recall --quick --weights {tmp_path}" in said
    from longreel.nodes.host.build import build_tiny_wan, read_shards

    assert build_tiny_wan(weights=read_shards(tmp_path, "wan")).model.diffusion_model.dim == 256
    assert main(["train", "tiny", "--out", str(tmp_path), "--steps", "1", "--seed", "1", "--device", "cpu"]) == 1
    assert "was made with seed=0, got 1. Give the old value" in capsys.readouterr().err


def test_training_gates_writes_gates_that_fit_the_model_that_ships(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", "--gates", "decmem", "--out", str(tmp_path), "--steps", "1", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"weights  {tmp_path / 'tiny_gates_decmem.safetensors'}" in said
    assert f"longreel bench recall --quick --weights {tmp_path}" in said
    from longreel.memory.gates import GateForm, find_gates
    from longreel.nodes.host.build import gated_weights, shipped_weights

    weights, shipped = gated_weights(GateForm.DECMEM, tmp_path), shipped_weights("wan")
    assert weights is not None
    assert shipped is not None
    gates = find_gates(weights)
    assert gates is not None
    assert gates.weights.shape == (4, 2, 256)
    assert weights.keys() == shipped.keys() | gates.named().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in shipped.items() if ".self_attn." not in name)
    assert gated_weights(GateForm.OMNIMEM, tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pretrain", "--steps", "0"], "error: Training an encoder needs steps"),
        (["pretrain", "--rate", "1x1x1"], "error: A memory encoder needs a rate of 4x4x2"),
        (
            ["finetune", "--encoder", "gone"],
            "error: --encoder needs a file that `longreel train encoder pretrain` wrote",
        ),
        (["finetune", "--encoder", "text"], "error: text needs to be a safetensors file"),
        (["finetune", "--encoder", "text", "--size", "128x192"], "error: --size needs --videos in stage II"),
        (["pretrain", "--videos", "gone"], "error: --videos needs a folder with videos"),
        (["table", "--videos", "gone"], "error: --videos needs a folder with videos"),
    ],
)
def test_bad_arguments_for_an_encoder_are_one_line_before_anything_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no encoder")
    assert main(["train", "encoder", arguments[0], "--out", "run", *arguments[1:]]) == 1
    assert capsys.readouterr().err.startswith(said)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_training_an_encoder_says_which_package_it_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    assert main(["train", "encoder", "pretrain", "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith("error: Training an encoder needs the package peft")
    assert not list(tmp_path.iterdir())


def test_stage_two_refuses_an_encoder_or_a_lora_of_another_model_before_it_looks_at_videos(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(tmp_path / "other.safetensors", new_encoder().spec, new_encoder().state_dict())
    (tmp_path / "wall.mp4").write_text("no video")
    (tmp_path / "wall.txt").write_text("a wall")
    command = ["train", "encoder", "finetune", "--out", str(tmp_path / "run"), "--videos", str(tmp_path)]
    assert main([*command, "--encoder", str(tmp_path / "other.safetensors")]) == 1
    assert (
        "error: --encoder needs an encoder for the tiny model, of width 256, got one of width 128"
        in capsys.readouterr().err
    )
    command += ["--encoder", str(TINY_ENCODER)]
    for lora, said in ((TINY_ENCODER, "lora_A.weight needs to be [32, 256]"), (tmp_path / "wall.txt", "deserializing")):
        assert main([*command, "--lora", str(lora)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: --lora needs the encoder_lora.safetensors of stage I, got ")
        assert said in error
    assert main([*command, "--lora", str(ENCODER_LORA)]) == 1
    assert "error: wall.mp4 cannot be read as a video" in capsys.readouterr().err


@pytest.mark.parametrize("frames", ["4", "12", "25"])
def test_stage_two_refuses_cartoons_that_it_could_not_make_or_measure(
    tmp_path: Path, frames: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "encoder", "finetune", "--encoder", str(TINY_ENCODER), "--out", str(tmp_path / "run")]
    assert main([*command, "--history-frames", frames]) == 1
    assert capsys.readouterr().err.startswith(
        "error: --history-frames of cartoons needs to be a multiple of 3 in stage II"
    )
    assert not list(tmp_path.iterdir())


def noise_video(folder: Path, captions: str = "") -> Path:
    """A folder with a video of 89 pictures of 48x32, and captions if there are any."""
    from longreel.memory.film import write_segment

    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (89, 32, 48, 3), dtype=np.uint8)
    write_segment(folder / "noise.mp4", pictures, 16)
    if captions:
        (folder / "noise.txt").write_text(captions, encoding="utf-8")
    return folder


def test_an_encoder_for_hunyuanvideo_goes_through_both_stages(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    """From weights as `train tiny` writes them, and what does not fit them is refused."""
    save_weights(new_hunyuan(TinyHunyuanSpec(guidance=False)).state_dict(), tmp_path / "weights", "hunyuan")
    save_weights(new_hunyuan(TinyHunyuanSpec(width=128)).state_dict(), tmp_path / "narrow", "hunyuan")
    given = ["--steps", "1", "--clips", "1", "--history-frames", "4", "--size", "32x48"]
    given += ["--videos", str(noise_video(tmp_path / "videos", "0:00 a storm\n0:01 a storm of snow"))]

    def run(stage: str, out: str, *more: str, family: str = "hunyuan", weights: str = "weights") -> int:
        folders = ["--out", str(tmp_path / out), "--weights", str(tmp_path / weights)]
        return main(["train", "encoder", stage, "--family", family, *folders, *given, *more])

    assert run("pretrain", "one", weights="narrow") == 1
    assert (
        "error: --weights needs the weights of a tiny HunyuanVideo as `longreel train tiny`" in capsys.readouterr().err
    )
    assert run("pretrain", "one", weights=".") == 1
    assert "error: --weights needs a folder with tiny_hunyuan*.safetensors" in capsys.readouterr().err
    assert run("pretrain", "one", "--cross-attention") == 1
    assert "got cross-attention for the family hunyuan" in capsys.readouterr().err
    assert run("pretrain", "one") == 0
    assert "finetune --family hunyuan --encoder" in capsys.readouterr().out
    encoder = ["--encoder", str(tmp_path / "one" / "encoder.safetensors")]
    spec, _ = read_encoder(tmp_path / "one" / "encoder.safetensors")
    assert spec.base == "the tiny HunyuanVideo that comes with LongReel"
    assert main(["train", "encoder", "finetune", *encoder, "--out", str(tmp_path / "two"), *given]) == 1
    assert (
        "error: --encoder needs an encoder for the tiny model that comes with LongReel, got one"
        in capsys.readouterr().err
    )
    assert main(["bench", "retrieval", "--encoder", str(tmp_path / "one")]) == 1
    assert "is for the tiny HunyuanVideo that comes with LongReel" in capsys.readouterr().err
    lora = ["--lora", str(tmp_path / "one" / "encoder_lora.safetensors")]
    assert run("finetune", "two", *encoder, *lora) == 0
    assert (tmp_path / "two" / "continuation.json").is_file()


def test_an_encoder_learns_from_a_folder_of_videos_in_both_stages(
    tmp_path: Path, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = noise_video(tmp_path / "videos")
    train = ["train", "encoder"]
    source = ["--videos", str(videos), "--size", "32x48", "--steps", "1", "--clips", "1", "--history-frames", "4"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*train, "pretrain", "--out", str(one), *source]) == 1
    assert "error: noise.mp4 needs a caption in noise.txt beside it" in capsys.readouterr().err
    (videos / "noise.txt").write_text("0:00 a storm\n0:01 a storm of snow", encoding="utf-8")
    crossed = ["--cross-attention", *source]
    assert main([*train, "pretrain", "--out", str(one), *crossed]) == 0
    assert "encoding noise.mp4" in capsys.readouterr().out
    bench = ["bench", "retrieval", "--encoder", str(one), "--out", str(one), *source[:4], "--history-frames", "8"]
    assert main(bench) == 1
    assert "error: --history-frames 8 needs other videos than those that one was trained on" in capsys.readouterr().err
    encoder = str(one / "encoder.safetensors")
    assert main([*train, "finetune", "--out", str(two), "--encoder", encoder, *source]) == 0
    assert "What comes next in the parts of the videos that were left out" in capsys.readouterr().out
    assert json.loads((two / "continuation.json").read_text(encoding="utf-8")).keys() == {"own", "other", "nothing"}
    spec, _ = read_encoder(two / "encoder.safetensors")
    assert spec.cross_layers == LAYERS
    assert str(spec.trained["films"]).startswith("1 video ")
    assert str(spec.trained["films"]).endswith(", 32x48")
    assert main([*train, "pretrain", "--out", str(one), "--cross-attention", *source[2:]]) == 1
    assert "was made with films=1 video" in capsys.readouterr().err
    assert main([*train, "pretrain", "--out", str(tmp_path / "three"), *source[:-1], "12"]) == 1
    assert "noise.mp4 needs to be at least 7.3 s long" in capsys.readouterr().err
