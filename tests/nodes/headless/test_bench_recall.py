"""`longreel bench recall` at its smallest: the product path draws what training draws, and a stop loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import FORWARD_ERROR, ROLLOUT_ERROR, STREAMED_PICTURE_ERROR, relative_error
from torch import Tensor
from training_side import TrainingNoise, draw_last_chunk, training_batch, training_network

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import MemoryConfig
from longreel.memory.gates import GateForm, fresh_gates
from longreel.memory.positions import PositionPolicy
from longreel.memory.training.clips import ClipBatch
from longreel.memory.training.export import save_weights
from longreel.memory.training.joined import predict_joined_flow
from longreel.memory.training.recall import recall_film, sampling_levels, swapped_name
from longreel.memory.training.recall_policies import PINS, RELEASED, Cell, RecallBench, recall_policies
from longreel.memory.training.recall_samples import Samples
from longreel.memory.training.recall_scores import last_truth
from longreel.memory.training.storyworld import Film, first_rgb_frame, render_film
from longreel.nodes.headless import recall_command
from longreel.nodes.headless.bench_recall import RecallRun, TinyModel, bench_settings, family_in, load_weights
from longreel.nodes.headless.bench_transitions import Switch
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.host import build
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, host_modules, read_shards
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, new_hunyuan

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=5)
SMALLEST = RecallBench(films=2, cells=(Cell(5, 4),), drift_films=1, drift_chunks=5, characters=4)
FULL_MEMORY = MemoryConfig(window_frames=None, sink_frames=0)


@pytest.fixture(scope="module")
def folder(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny model as `longreel train tiny` would leave it."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(host_modules().new_wan(SPEC).state_dict(), folder, "wan", shard_bytes=400_000)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> TinyModel:
    return TinyModel(folder)


@torch.no_grad()
def draw_last_joined_chunk(network: torch.nn.Module, batch: ClipBatch, seed: int) -> Tensor:
    """What `draw_last_chunk` draws, of HunyuanVideo: the clip goes in clean, and once more with the last chunk in the making."""
    size = batch.chunk_frames
    latents = batch.latents.repeat(2, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    latents[1:, :, -size:] = torch.randn(latents[1:, :, -size:].shape, generator=generator)
    sigmas = torch.zeros(2, latents.shape[2])
    for level, lower in pairwise(sampling_levels()):
        sigmas[1:, -size:] = level
        flow = predict_joined_flow(network, latents, sigmas, batch)[1:, :, -size:]
        latents[1:, :, -size:] += (lower - level) * flow
    return latents[1:, :, -size:]


def test_the_product_draws_the_chunk_that_training_draws_with_hunyuan_video(tmp_path: Path, host: Host) -> None:
    spec = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, guidance=False, seed=5)
    save_weights(new_hunyuan(spec).state_dict(), tmp_path, "hunyuan")
    model, network = TinyModel(tmp_path), new_hunyuan(spec)
    assert (model.positions, model.gated) == (PositionPolicy.ANCHORED, ())
    network.load_state_dict({name: tensor.float() for name, tensor in read_shards(tmp_path, "hunyuan").items()})
    film = recall_film(3, 5, 1, 4, 4)
    latents = model.encode(film)
    batch = training_batch(film, latents, 1)
    remembering = attach_memory(model.model, MemoryConfig(None, 0, model.positions))
    prompts = [shot.prompt for shot in film.shots]
    drawn = model.draw(remembering, plan_chunks([1] * 5, 1), prompts, latents[:, :, :-1], TrainingNoise(11))
    assert relative_error(drawn.probes[0], draw_last_joined_chunk(network, batch, seed=11)) < ROLLOUT_ERROR


@pytest.mark.parametrize("chunk_frames", [1, 3])
@pytest.mark.parametrize("positions", [PositionPolicy.ABSOLUTE, PositionPolicy.CONTIGUOUS])
def test_the_product_draws_the_chunk_that_training_draws(
    model: TinyModel, folder: Path, chunk_frames: int, positions: PositionPolicy
) -> None:
    film = recall_film(3, 5, chunk_frames, 4, 4)
    latents = model.encode(film)
    network = training_network(SPEC, load_weights(folder, "wan"))
    swapped, size = swapped_name(film), chunk_frames
    prompts = [shot.prompt for shot in (*film.shots, swapped.shots[-1])]
    remembering = attach_memory(model.model, MemoryConfig(None, 0, positions))
    plan = plan_chunks([1] * 5, chunk_frames)
    drawn = model.draw(remembering, plan, prompts, latents[:, :, :-size], TrainingNoise(11), (5,))
    for made, named in zip(drawn.probes, (film, swapped), strict=True):
        expected = draw_last_chunk(network, training_batch(named, latents, size), seed=11)
        assert relative_error(made, expected) < ROLLOUT_ERROR
    assert relative_error(drawn.probes[0], drawn.probes[1]) > ROLLOUT_ERROR


def test_gates_of_a_model_are_rows_of_their_own_beside_those_without(folder: Path, tmp_path: Path) -> None:
    for shard in folder.glob("tiny_wan*"):
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    for form in GateForm:
        gates = fresh_gates(form, SPEC.layers, SPEC.heads, SPEC.width, torch.Generator().manual_seed(1))
        save_weights(gates.named(), tmp_path, f"gates_{form.value}")
    model, plain = TinyModel(tmp_path), TinyModel(folder)
    samples = Samples(None, bench_settings(SMALLEST, model), "commit")
    one_film = replace(SMALLEST, drift_films=0)
    run = RecallRun(one_film, model, samples)
    run.policies = {name: config for name, config in run.policies.items() if "Mem" in name}
    assert list(run.policies) == ["OmniMem", "DecMem", "OmniMem, gated", "DecMem, gated"]
    run._measure_cell(one_film.cells[0], 0)
    read = {sample.policy: sample.keys_read_fraction for sample in samples.samples.values()}
    assert read["OmniMem, gated"] > read["OmniMem"]  # it reads the means of all pages, too
    assert read["DecMem, gated"] == read["DecMem"]
    assert list(bench_settings(SMALLEST, plain)["policies"]) == list(recall_policies(1))
    gated = bench_settings(SMALLEST, model)["policies"]
    assert gated["OmniMem, gated"]["gates"] != gated["DecMem, gated"]["gates"]
    assert not bench_settings(replace(SMALLEST, compare="budgets"), model)["policies"].keys() & {"OmniMem, gated"}


def test_a_family_is_had_by_its_name_or_by_what_lies_in_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, guidance=False, seed=5)
    save_weights(new_hunyuan(spec).state_dict(), tmp_path, "hunyuan")
    assert (family_in(None), family_in(folder), family_in(tmp_path)) == ("wan", "wan", "hunyuan")
    given = TinyModel(tmp_path)
    save_weights(load_weights(None, "vae"), tmp_path, "vae")
    monkeypatch.setattr(build, "WEIGHTS_FOLDER", tmp_path)
    shipped = TinyModel(None, "hunyuan")
    assert shipped.fingerprint == given.fingerprint
    assert (shipped.positions, shipped.gated) == (PositionPolicy.ANCHORED, ())


def test_gates_alone_in_a_folder_go_with_the_model_that_ships(tmp_path: Path, host: Host) -> None:
    gates = fresh_gates(GateForm.DECMEM, 4, 2, 256, torch.Generator().manual_seed(1))
    save_weights(gates.named(), tmp_path, "gates_decmem")
    assert load_weights(tmp_path, "wan").keys() == load_weights(None, "wan").keys()


def test_looking_again_under_another_name_leaves_film_and_memory_as_they_are(model: TinyModel) -> None:
    film = recall_film(4, 5, 1, 4, 4)
    prompts = [shot.prompt for shot in film.shots]
    remembering, plan = attach_memory(model.model, FULL_MEMORY), plan_chunks([1] * 5, 1)
    noise = TrainingNoise(2)
    alone = model.draw(remembering, plan, prompts, None, noise)
    probed = model.draw(remembering, plan, [*prompts, "zoe waves left in the snow"], None, noise, (5,))
    assert len(probed.chunks) == len(alone.chunks) == 5
    for ours, theirs in zip(probed.chunks, alone.chunks, strict=True):
        assert torch.equal(ours.latents, theirs.latents)


def test_shots_encoded_and_chunks_decoded_alone_are_those_of_the_whole_film(model: TinyModel) -> None:
    film = recall_film(5, 3, 2, 2, 1)
    with torch.inference_mode():
        whole = model.vae.encode(render_film(film))
        expected = model.vae.decode(whole)[0, first_rgb_frame(film.frames - 1) :]
    latents = model.encode(film)
    assert relative_error(latents, model.model.model.process_latent_in(whole)) < FORWARD_ERROR
    chunk = model.last_pictures(latents)[0]
    assert chunk.shape == expected.shape == (4, 96, 128, 3)
    assert (chunk - expected).abs().max() < STREAMED_PICTURE_ERROR
    score = last_truth(film).score(chunk)
    assert (score.who_is_it, score.obedience) == (1.0, 1.0)
    assert score.identity_cosine > 0.95


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, host: Host) -> None:
    """The quick bench is made smaller."""
    monkeypatch.setattr(recall_command, "QUICK", SMALLEST)


def bench(folder: Path, *more: str) -> list[str]:
    """Arguments of the smallest bench."""
    return ["bench", "recall", "--quick", "--characters", "4", "--weights", str(folder), *more]


UNTIMED = ("identity_cosine", "who_is_it", "obedience", "control_cosine", "name_swap", "keys_read_fraction", "drift_db")


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a result without what differs from run to run."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [{name: row[name] for name in ("policy", "chunks", "distance", "films", *UNTIMED)} for row in rows]


def test_the_bench_goes_on_after_a_stop_and_ends_with_the_same_numbers(
    small: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert main(bench(folder, "--json", str(whole), "--plot", str(tmp_path / "whole.png"))) == 0
    said = capsys.readouterr().out
    encode, seen = TinyModel.encode, 0

    def stop_in_the_second_film(self: TinyModel, film: Film) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == len(SMALLEST.cells) + 1:
            raise KeyboardInterrupt
        return encode(self, film)

    with monkeypatch.context() as patch:
        patch.setattr(TinyModel, "encode", stop_in_the_second_film)
        assert main(bench(folder, "--json", str(broken))) == 130
    assert "The same command goes on from here." in capsys.readouterr().err
    kept = untimed(broken)
    assert {row["films"] for row in kept} == {1}
    assert main(bench(folder, "--json", str(broken))) == 0
    assert untimed(broken) == untimed(whole)

    rows = untimed(whole)
    assert len(rows) == len(SMALLEST.cells) * len(recall_policies(1))
    read = {row["policy"]: row["keys_read_fraction"] for row in rows}
    assert (read["full, absolute"], read["window"], read["window + sink"]) == (1.0, 2 / 4, 3 / 4)
    assert all(row["drift_db"] is not None for row in rows)
    assert "Chance of who is it 0.25" in said
    assert (tmp_path / "whole.png").stat().st_size > 0
    header = json.loads(whole.read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(header)
    assert header["command"].startswith("longreel bench recall --films 2 --quick --weights ")


def test_banks_are_compared_and_what_is_pinned_is_read_beside_them(small: None, folder: Path, tmp_path: Path) -> None:
    banks = ("prompt bank", "key-key, per layer", "MemFlow", RELEASED, "prompt bank, anchors", PINS)
    chosen = [argument for name in banks for argument in ("--policy", name)]
    target = tmp_path / "banks.json"
    arguments = bench(
        folder, "--compare", "banks", "--cell", "9:5", "--drift-films", "0", *chosen, "--json", str(target)
    )
    assert main(arguments) == 0
    read = {row["policy"]: round(8 * row["keys_read_fraction"]) for row in untimed(target)}
    # The sink, 2 chunks of the window, 3 of the bank. MemFlow records every third chunk: 0 is the sink, 6 is in the window.
    assert read.pop("full, absolute") == 8
    assert read == {banks[0]: 6, banks[1]: 6, "MemFlow": 4, RELEASED: 4, banks[4]: 6, PINS: 7}
    assert json.loads(target.read_text(encoding="utf-8"))["drift"] == []


def test_transitions_are_compared_by_when_the_new_prompt_shows(host: Host, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "transitions.json"
    arguments = ["bench", "recall", "--compare", "transitions", "--films", "2", "--weights", str(folder)]
    assert main([*arguments, "--json", str(target)]) == 0
    rows = {row["transition"]: row for row in json.loads(target.read_text(encoding="utf-8"))["rows"]}
    # A window of 2 older chunks, the sink, and 3 frames that the prompt brings back.
    read = {"keep": 6.0, "recache": 6.0, "blend": 6.0, "cut": 4.0, "cut clean": 1.0}
    assert {kind: row["frames_read"] for kind, row in rows.items()} == read
    assert all(1 <= row["chunks_until"] <= 5 for row in rows.values())
    assert Switch("keep", (False, True, True, False), 0.0, False, 0).until == 2
    assert Switch("keep", (False, False), 0.0, False, 0).until == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--films", "1"], "at least 2 films, got 1"),
        (["--chunk-frames", "5"], "chunks of 1 to 3 frames, got 5"),
        (["--characters", "2"], "characters a film, got 2"),
        (["--weights", "nowhere"], "needs tiny_wan*.safetensors, got none in nowhere"),
        (["--weights", "nowhere", "--family", "hunyuan"], "needs tiny_hunyuan*.safetensors, got none in nowhere"),
        (["--json", "."], "is a folder"),
        (["--cell", "48-40"], "--cell needs CHUNKS:DISTANCE, as in 48:40, got 48-40"),
        (["--cell", "12:12"], "after 1 to 11 chunks, got 12"),
        (["--compare", "all"], "compares memories, budgets, ablations, banks, encoders or transitions, got all"),
        (["--compare", "banks", "--policy", "window"], "has no policy 'window'. Choose among: full, absolute; "),
    ],
)
def test_bad_arguments_are_one_error_before_anything_is_measured(
    host: Host, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "recall", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.out == ""


def test_a_full_disk_is_one_error_and_the_tables_are_still_said(
    small: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "a":
            raise OSError(28, "No space left on device")
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    assert main(bench(folder, "--json", str(tmp_path / "recall.json"))) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert "longreel bench recall" in captured.out
