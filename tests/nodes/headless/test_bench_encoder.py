"""`longreel bench recall --compare encoders`: an ordinary model beside memory encoders, film by film."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from numerics import NOT_ROUNDING, RECALLED, ROLLOUT_ERROR, relative_error
from training_side import TrainingNoise, training_network

from longreel.memory.chunks import plan_chunks
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.training.clips import FilmClips
from longreel.memory.training.encoder_chain import EncoderChain
from longreel.memory.training.encoder_settings import EncoderStage, EncoderTraining, tiny_encoder_spec
from longreel.memory.training.encoder_training import clean_batch, predict_beside_history, read_history
from longreel.memory.training.export import save_weights
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import LORA_TARGETS, add_lora
from longreel.memory.training.recall import recall_film, sampling_levels
from longreel.memory.training.recall_policies import ENCODERS, REFERENCE, UNTRAINED, WHOLE, Cell, RecallBench
from longreel.memory.training.recall_samples import Samples
from longreel.memory.training.small_video_codec import SmallVideoCodec
from longreel.memory.training.words import embed_text
from longreel.nodes.headless import bench as bench_command
from longreel.nodes.headless import recall_command
from longreel.nodes.headless.bench_encoder import encoded_models
from longreel.nodes.headless.bench_recall import RecallRun, TinyModel, bench_settings, load_weights
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.encoder_files import save_encoders
from longreel.nodes.host.build import TinyWanSpec, host_modules
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, new_hunyuan

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=5)
CHUNKS, SIZE = 5, 3
TRAINING = EncoderTraining(stage=EncoderStage.FINETUNE.value, widths=(8, 16), lora_rank=4)
TRAININGS = {
    "mine": TRAINING,
    "crossed": replace(TRAINING, cross_layers=SPEC.layers),
    "two": TRAINING,
    "pictured": replace(TRAINING, low="video"),
}


@pytest.fixture(scope="module")
def folder(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model, and beside it in folders named after TRAININGS random encoders with LoRAs that do something."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(host_modules().new_wan(SPEC).state_dict(), folder, "wan")
    for name, config in TRAININGS.items():
        network, encoder = adapted(folder, config)
        save_encoders(folder / name, config, network, chained(encoder) if name == "two" else encoder)
    return folder


def chained(first: MemoryEncoder) -> EncoderChain:
    """The encoder, and a finer one beside it of the newest frames alone."""
    generator = torch.Generator().manual_seed(2)
    fine = MemoryEncoder(tiny_encoder_spec(replace(TRAINING, rate="2x2x1"), SPEC.width))
    initialise_encoder(fine, generator)
    assert isinstance(fine.high, HighResolutionBranch)
    with torch.no_grad():
        fine.high.project.weight.normal_(generator=generator)
    return EncoderChain([first, fine], [None, 4])


def adapted(folder: Path, config: EncoderTraining = TRAINING) -> tuple[Any, MemoryEncoder]:
    """Model with LoRA and encoder, as training has them."""
    network, encoder = (
        training_network(SPEC, load_weights(folder, "wan")),
        MemoryEncoder(tiny_encoder_spec(config, SPEC.width)),
    )
    generator = torch.Generator().manual_seed(1)
    initialise_encoder(encoder, generator)
    assert isinstance(encoder.high, HighResolutionBranch)
    with torch.no_grad():
        encoder.high.project.weight.normal_(generator=generator)
        for layer in () if encoder.cross is None else encoder.cross.layers:
            layer.project.weight.normal_(generator=generator)
        for parameter in add_lora(peft, network, LORA_TARGETS["wan"], TRAINING.lora_rank, seed=1):
            parameter.normal_(std=0.05, generator=generator)
    return network, encoder


@torch.no_grad()
@pytest.mark.parametrize("row", TRAININGS)
def test_the_product_draws_beside_an_encoder_what_training_draws(folder: Path, row: str) -> None:
    """For a film whose shots have prompts of their own: tokens alone, beside the window, and everything whole."""
    model = TinyModel(folder)
    film = recall_film(3, CHUNKS, SIZE, 4, 4)
    latents = model.encode(film).clone()
    prompts = [shot.prompt for shot in film.shots]
    vectors = [words for prompt in prompts for words in [embed_text(prompt)[0]] * SIZE]
    clips = FilmClips(latents, torch.zeros(1, CHUNKS * SIZE, 12, 16), vectors[-1][None], [vectors])
    noise, plan = TrainingNoise(11), plan_chunks([1] * CHUNKS, SIZE)
    rows = {each.name: each for each in encoded_models({row: folder / row}, load_weights(folder, "wan"), SIZE)}
    made = {}
    network, first = adapted(folder, TRAININGS[row])
    modules = host_modules()
    small = SmallVideoCodec(model.vae.first_stage_model, modules.latent_mean, modules.latent_std, SIZE)
    encoder = chained(first) if row == "two" else EncoderChain([first], [None], small)
    for name, window in ((row, 0), (f"{row} + window", 9)):
        drawn = model.draw(rows[name].remembering(model.vae), plan, prompts, latents[:, :, :-SIZE], noise)
        history = read_history(modules, network, encoder, clean_batch(TRAINING, clips, window))
        x = noise(None, 0, (1, 16, SIZE, 12, 16))
        with host_modules().training():
            for level, lower in pairwise(sampling_levels()):
                flow = predict_beside_history(host_modules(), network, history, x, torch.full((1,), level), clips.text)
                x = x + (lower - level) * flow
        assert relative_error(drawn.probes[0], x) < ROLLOUT_ERROR
        made[name] = x
    assert relative_error(*made.values()) > NOT_ROUNDING
    whole = [model.draw(rows[name].remembering(), plan, prompts, latents[:, :, :-SIZE], noise) for name in WHOLE]
    assert relative_error(whole[0].probes[0], whole[1].probes[0]) > NOT_ROUNDING
    assert all(drawn.chunks[-1].frames_worth == (CHUNKS - 1) * SIZE for drawn in whole)


def test_encoders_are_rows_beside_the_causal_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smallest = RecallBench(films=2, cells=(Cell(CHUNKS, 4),), drift_films=0, characters=4)
    monkeypatch.setattr(recall_command, "QUICK", smallest)
    command = ["bench", "recall", "--quick", "--characters", "4", "--chunk-frames", "3", "--weights", str(folder)]
    command += ["--compare", ENCODERS, "--encoder", str(folder / "mine"), "--json", str(tmp_path / "found.json")]
    assert main(command) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    read = {row["policy"]: row["keys_read_fraction"] for row in found["rows"]}
    # 12 frames of history are 6 frames of tokens, each a quarter of the model's own; the window has 9.
    mine = {"mine": 1.5 / 12, "mine + window": 10.5 / 12, "mine, read once": 1.5 / 12, "mine, committed": 1.5 / 12}
    # A frame has 6 x 8 tokens, so 4 x 4 of them are joined twice in it.
    smaller = {
        "4x4x2": 2 / 48 / 2,
        "2x2x2": 1 / 8,
        "2x2x1": 1 / 4,
        "2x2x4": 1 / 16,
        "2x2x8": 1 / 4 / 12,
        "4x4x4": 2 / 48 / 4,
    }
    untrained = {f"smaller frames {rate}": fraction for rate, fraction in smaller.items()}
    assert set(untrained) == set(UNTRAINED)
    wanted = {REFERENCE: 1, "window": 0.5, WHOLE[0]: 1, WHOLE[1]: 1, **untrained, **mine}
    assert read == {name: pytest.approx(fraction) for name, fraction in wanted.items()}
    cost = found["encoders"]["mine"]
    assert cost["tokens_per_second"] == 4 / 2 * 12
    assert cost["bytes"] > 0
    assert cost["milliseconds_per_second"] > 0
    said = capsys.readouterr().out
    assert "| mine | 24 |" in said
    assert main([*command, "--encoder", str(tmp_path)]) != 0
    assert "needs a folder with encoder.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize("encoder", [None, "no stage I"])
def test_the_command_that_rows_are_told_with_asks_for_the_same_rows(encoder: str | None) -> None:
    """Also where names hold spaces, and for the encoder that ships, which no argument names."""
    parser = argparse.ArgumentParser()
    bench_command.add_arguments(parser)
    policy, json_file = "smaller frames 2x2x2", "my rows.json"
    given = ["recall", "--compare", ENCODERS, "--policy", policy, "--json", f"/results/{json_file}"]
    args = parser.parse_args([*given, *([] if encoder is None else ["--encoder", f"/encoders/{encoder}"])])
    bench = recall_command._recall_bench(args)
    header = recall_command._recall_header(args, bench, {"policies": {}}, [], {})
    again = parser.parse_args(shlex.split(header["command"])[2:])
    assert again.encoder == (None if encoder is None else [Path(encoder)])
    assert (again.policy, again.json) == ([policy], Path(json_file))
    assert recall_command._recall_bench(again) == bench


def test_hunyuanvideo_has_the_rows_that_need_no_training_and_those_of_its_own_encoders(
    host: Host, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1)
    save_weights(new_hunyuan(spec).state_dict(), tmp_path, "hunyuan")
    smallest = RecallBench(films=2, cells=(Cell(CHUNKS, 4),), drift_films=0, characters=4)
    monkeypatch.setattr(recall_command, "QUICK", smallest)
    command = ["bench", "recall", "--quick", "--characters", "4", "--chunk-frames", "3", "--weights", str(tmp_path)]
    command += ["--compare", ENCODERS, "--policy", WHOLE[0], "--policy", "smaller frames 2x2x2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert WHOLE[0] in said
    assert "smaller frames 2x2x2" in said
    assert main([*command, "--encoder", str(folder / "mine")]) != 0
    assert "made for the tiny model that comes with LongReel" in capsys.readouterr().err
    config = replace(TRAINING, family="hunyuan")
    encoder, network = MemoryEncoder(tiny_encoder_spec(config, spec.width)), new_hunyuan(spec)
    initialise_encoder(encoder, torch.Generator().manual_seed(1))
    add_lora(peft, network, LORA_TARGETS["hunyuan"], config.lora_rank, seed=1)
    save_encoders(tmp_path / "ours", config, network, encoder)
    assert main([*command[:-4], "--policy", "ours", "--encoder", str(tmp_path / "ours")]) == 0
    assert "| ours | 24 |" in capsys.readouterr().out


def test_the_encoder_that_ships_brings_back_who_was_seen_once(host: Host) -> None:
    """Films of 27 frames whose returning character was in the first three; another film's history is the control."""
    model = TinyModel()
    model.encoded = encoded_models({"tiny": None}, load_weights(None, "wan"), SIZE)
    bench = RecallBench(
        films=4, chunk_frames=SIZE, drift_films=0, compare=ENCODERS, encoders=("tiny",), policies=("tiny",)
    )
    run = RecallRun(bench, model, Samples(None, bench_settings(bench, model), "commit"))
    run.policies.clear()
    for film in range(bench.films):
        run._measure_cell(Cell(9, 8), film)
    found = list(run.samples.samples.values())
    assert [sample.policy for sample in found] == ["tiny"] * 4
    identity, control = (
        sum(getattr(sample, name) for sample in found) / 4 for name in ("identity_cosine", "control_cosine")
    )
    assert identity > control + RECALLED
    assert all(sample.keys_read_fraction == 1 / 8 for sample in found)


def test_encoders_are_named_once_and_in_their_own_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["--encoder", str(folder / "mine")]
    for more in (again, [*again, *again, "--compare", ENCODERS]):
        assert main(["bench", "recall", "--quick", "--weights", str(folder), *more]) != 0
        assert "--encoder needs --compare encoders and folders of different names" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no policy 'hers'"):
        replace(RecallBench(), compare=ENCODERS, encoders=("mine",), policies=("hers",))
