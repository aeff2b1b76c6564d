"""Training of a memory encoder: what each stage shows, the same bits when resumed, and files that the host takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from encoder_runs import SHORT, SPEC, STAGES, batch_of, both_stages, broken_and_resumed, new_encoder, orthogonal_codec
from numerics import FORWARD_ERROR, NOT_ROUNDING, SAME_SUM, relative_error

from longreel.memory.encoded_history import EncodedHistory, FilmEncoder
from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import read_encoder, save_encoder
from longreel.memory.encoder_spec import LowBranch
from longreel.memory.training.clips import FilmClips, TileCodec, film_clips
from longreel.memory.training.encoder_settings import (
    Branches,
    EncoderStage,
    finetuning_of,
    tiny_encoder_spec,
    trained_spec,
)
from longreel.memory.training.encoder_training import (
    FAINTEST,
    clean_batch,
    encoder_batch,
    encoder_films,
    encoder_loss,
    noise_levels,
    predict_beside_history,
    read_history,
    train_encoder,
)
from longreel.memory.training.lora import add_lora, check_lora, lora_state, save_lora
from longreel.memory.training.run_folder import RunFolder
from longreel.memory.training.storyworld import HEIGHT, WIDTH
from longreel.memory.training.words import split_words
from longreel.memory.whole_file import ProjectError
from longreel.nodes.host.build import build_tiny_wan, host_modules
from longreel.nodes.host.wan_history import with_history


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    return orthogonal_codec()


def test_stage_one_keeps_some_frames_and_noises_all_others(host: object, codec: TileCodec) -> None:
    config = STAGES[EncoderStage.PRETRAIN]
    clips = film_clips(encoder_films(config, 0), codec)
    batch = encoder_batch(config, clips, 0)
    kept = batch.target_frames.long().tolist()
    assert len(kept) == config.kept_frames
    same = [torch.equal(batch.history[:, :, frame], clips.latents[:, :, frame]) for frame in range(6)]
    assert same == [frame in kept for frame in range(6)]
    assert torch.equal(batch.target, clips.latents[:, :, kept])
    assert batch.text.shape[1] == 1  # no prompt: everything has to come from the tokens
    drawn = {tuple(batch_of(config, codec, step).target_frames.tolist()) for step in range(6)}
    assert len(drawn) > 1


def test_stage_two_goes_on_with_a_clean_film_of_any_length_beside_some_of_its_newest_frames(
    host: object, codec: TileCodec
) -> None:
    config = STAGES[EncoderStage.FINETUNE]
    windows, lengths = set(), set()
    for step in range(40):
        clips = film_clips(encoder_films(replace(config, clips=1), step), codec)
        batch = encoder_batch(config, clips, step)
        length = batch.history.shape[2]
        assert torch.equal(torch.cat([batch.history, batch.target], dim=2), clips.latents[:, :, 6 - length :])
        assert batch.target_frames.tolist() == [length, length + 1, length + 2]
        assert torch.equal(batch.window, batch.history[:, :, length - batch.window.shape[2] :])
        windows.add(batch.window.shape[2])
        lengths.add(length)
    assert windows >= set(config.windows)
    assert {0, 6} < lengths


def test_what_is_read_in_training_lies_where_it_lies_in_a_film(host: object, codec: TileCodec) -> None:
    """Beside the same film, cut as a film in the making is: tokens, places and the frames that wait."""
    config = STAGES[EncoderStage.FINETUNE]
    network, encoder = host_modules().new_wan(SPEC).requires_grad_(False), new_encoder().requires_grad_(False)
    clips = film_clips(encoder_films(config, 0), codec)
    for later in range(7):
        shorter = FilmClips(clips.latents[:1], clips.mask[:1], clips.text[:1], clips.prompts[:1]).later(later)
        batch = clean_batch(config, shorter, window=2)
        trained = read_history(host_modules(), network, encoder, batch)
        made = EncodedHistory(
            [FilmEncoder(encoder.spec, None, lambda latents: encoder(latents, network.patch_embedding))],
            2,
            lambda latents: network.patch_embedding(latents).flatten(2).transpose(1, 2),
        )
        for frame, prompt in zip(batch.history.unbind(2), shorter.prompts[0], strict=False):
            made.append(frame[:, :, None], prompt)
        made.begin()
        if trained is None:
            assert made.current is None
            continue
        assert made.current is not None
        assert relative_error(trained.tokens, made.current.tokens) < SAME_SUM
        assert torch.equal(trained.positions - torch.tensor([6.0 - later, 0, 0]), made.current.positions)
        assert trained.counts is not None
        assert made.current.counts is not None
        assert torch.equal(trained.counts, made.current.counts)
        (ours,), (theirs,) = trained.prompts, made.current.prompts
        assert [stretch.tokens for stretch in ours] == [stretch.tokens for stretch in theirs]
        assert all(one.prompt is other.prompt for one, other in zip(ours, theirs, strict=True))


@both_stages
def test_cuts_come_as_often_as_they_are_asked_for(stage: EncoderStage) -> None:
    for longest, chunk in ((1, 1), (3, 3), (5, 6)):
        frames = longest if stage is EncoderStage.PRETRAIN else max(3, chunk)
        config = replace(STAGES[stage], history_frames=24, longest_shot=longest, pace=2.0)
        shots = [shot for step in range(10) for film in encoder_films(config, step) for shot in film.shots]
        assert max(shot.frames for shot in shots) == frames
        assert {shot.pace for shot in shots} == {2.0}


def test_whom_stage_two_goes_on_with_was_seen_before() -> None:
    for step in range(10):
        for film in encoder_films(replace(STAGES[EncoderStage.FINETUNE], clips=3), step):
            assert film.shots[-1].name in {shot.name for shot in film.shots[:-1]}


@both_stages
def test_the_last_prompts_of_a_step_have_equally_many_words(stage: EncoderStage) -> None:
    for step in range(10):
        films = encoder_films(replace(STAGES[stage], clips=5), step)
        assert len({len(split_words(film.shots[-1].prompt)) for film in films}) == 1
        assert {film.frames for film in films} == {6 + (3 if stage is EncoderStage.FINETUNE else 0)}


def test_noise_levels_lie_where_the_paper_wants_them() -> None:
    levels = noise_levels((10_000,), 5.0, torch.Generator().manual_seed(0), FAINTEST)
    assert levels.min() > FAINTEST
    assert levels.max() < 1
    assert levels.median() > 0.75


@both_stages
def test_encoder_and_lora_learn_and_the_model_stays(
    host: object, codec: TileCodec, tmp_path: Path, stage: EncoderStage
) -> None:
    modules, config = host_modules(), STAGES[stage]
    network, encoder = modules.new_wan(SPEC), new_encoder()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train_encoder(config, modules, peft, network, encoder, codec, tmp_path)
    after = {name.replace(".base_layer", ""): tensor for name, tensor in network.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    fresh = new_encoder().state_dict()
    assert not [name for name, tensor in encoder.state_dict().items() if torch.equal(tensor, fresh[name])]
    silent = [name for name, tensor in lora_state(network).items() if not tensor.any()]
    if stage is EncoderStage.PRETRAIN:  # without a prompt there is one word, which is always chosen
        silent = [name for name in silent if not ("cross_attn.q." in name or "cross_attn.k." in name)]
    assert not silent
    assert len(lora_state(network)) == 2 * 10 * SPEC.layers


@pytest.mark.parametrize(
    ("stage", "cross"), [(EncoderStage.PRETRAIN, 0), (EncoderStage.FINETUNE, 0), (EncoderStage.FINETUNE, SPEC.layers)]
)
def test_an_interrupted_training_ends_with_the_same_bits(
    host: object, codec: TileCodec, tmp_path: Path, stage: EncoderStage, cross: int
) -> None:
    modules, config = host_modules(), replace(STAGES[stage], cross_layers=cross)

    def train(folder: str, **tell: Any) -> dict[str, torch.Tensor]:
        network, encoder = modules.new_wan(SPEC), new_encoder(config)
        train_encoder(config, modules, peft, network, encoder, codec, tmp_path / folder, **tell)
        return {**encoder.state_dict(), **lora_state(network)}

    unbroken = train("unbroken")
    resumed = broken_and_resumed(train)
    assert any(name.startswith("cross") and tensor.any() for name, tensor in resumed.items()) == bool(cross)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())
    rows = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (tmp_path / "broken" / "curve.png").stat().st_size > 0


@both_stages
def test_cross_attention_begins_as_nothing_and_is_learned(host: object, codec: TileCodec, stage: EncoderStage) -> None:
    """New, a step has the loss and gradients of one without it; its ways back learn first, and then all of it."""
    modules, config = host_modules(), replace(STAGES[stage], cross_layers=SPEC.layers)
    network, crossed, plain = modules.new_wan(SPEC).requires_grad_(False), new_encoder(config), new_encoder()
    batch = batch_of(config, codec)
    with modules.training():
        losses = [encoder_loss(modules, network, encoder, batch, config, 0) for encoder in (crossed, plain)]
        for loss in losses:
            loss.backward()
        assert torch.equal(*losses)
        grads = {name: parameter.grad for name, parameter in crossed.named_parameters()}
        assert all(torch.equal(grads[name], parameter.grad) for name, parameter in plain.named_parameters())
        assert crossed.cross is not None
        assert all(layer.project.weight.grad.any() for layer in crossed.cross.layers)
        with torch.no_grad():
            for layer in crossed.cross.layers:
                layer.project.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        crossed.zero_grad()
        loss = encoder_loss(modules, network, crossed, batch, config, 0)
        loss.backward()
        assert relative_error(loss, losses[1]) > NOT_ROUNDING
        shifts = "told.bias"  # half of it moves all keys alike, which no softmax sees
        assert all(parameter.grad.any() for name, parameter in crossed.cross.named_parameters() if name != shifts)


@pytest.mark.parametrize(("broken", "said"), [(3, "checkpoint of step 2 .* is whole"), (1, "Nothing was saved")])
def test_a_loss_that_is_no_number_stops_with_one_error_and_leaves_the_last_checkpoint(
    host: object, codec: TileCodec, tmp_path: Path, broken: int, said: str
) -> None:
    modules, calls = host_modules(), iter(range(1, 9))
    network, config = modules.new_wan(SPEC), replace(SHORT, save_every=1)
    network.register_forward_hook(lambda module, args, made: made * float("nan") if next(calls) == broken else None)
    with pytest.raises(ProjectError, match=f"finite loss, got nan .* at step {broken}: .*{said}"):
        train_encoder(config, modules, peft, network, new_encoder(), codec, tmp_path)
    run = RunFolder(tmp_path, config)
    assert [row["step"] for row in run.rows()] == list(range(1, broken))
    state = run.load()
    assert (None if state is None else state["step"]) == (broken - 1 or None)
    assert state is None or all(tensor.isfinite().all() for tensor in state["encoder"].values())


def test_a_run_of_other_settings_is_not_continued(host: object, codec: TileCodec, tmp_path: Path) -> None:
    modules = host_modules()
    train_encoder(replace(SHORT, steps=1), modules, peft, modules.new_wan(SPEC), new_encoder(), codec, tmp_path)
    other = replace(SHORT, clips=3)
    with pytest.raises(ProjectError, match=r"clips=2, got 3"):
        train_encoder(other, modules, peft, modules.new_wan(SPEC), new_encoder(), codec, tmp_path)


def test_a_run_that_is_older_than_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SHORT)
    del run.settings["size"]
    run.save({"step": 1})
    state = RunFolder(tmp_path, SHORT).load()
    assert state is not None
    assert state["step"] == 1
    with pytest.raises(ProjectError, match="got 128x192"):
        RunFolder(tmp_path, replace(SHORT, size="128x192")).load()


def test_a_run_is_checked_without_being_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, SHORT)
    run.check()  # nothing is there yet
    run.save({"step": 1, "weights": torch.ones(3)})
    for step in (1, 2):
        run.log({"step": step})
    other = RunFolder(tmp_path, replace(SHORT, films="other videos"))
    other.check(unknown="films")
    with pytest.raises(ProjectError, match="got other videos"):
        other.check()
    run.check()
    assert [row["step"] for row in run.rows()] == [1, 2]
    assert run.load() is not None
    assert [row["step"] for row in run.rows()] == [1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "at least 1"),
        ({"rate": "3x3x3"}, "needs a rate of"),
        ({"stage": "third"}, "not a valid EncoderStage"),
        ({"branches": "some"}, "not a valid Branches"),
        ({"history_frames": 1}, "films of at least 2 frames"),
        ({"longest_shot": 0}, "shots of at least 1"),
        ({"pace": -1}, "moves 0 to 16 times"),
        ({"size": "wide"}, "needs a size like 96x128"),
        ({"size": "48x64", "rate": "4x4x2"}, "pictures of at least 64x64, got 48x64"),
        ({"kept_frames": 7}, "films of at least 7 frames, got 6: 7 of them"),
        (
            {"low": "video", "branches": "high"},
            "looks at latents or video, got 'video' for an encoder of branches 'high'",
        ),
        ({"low": "none"}, "looks at latents or video, got 'none'"),
        ({"cross_layers": 2, "branches": "patchifier"}, "Cross-attention reads the high-resolution branch"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(SHORT, **change)


@both_stages
def test_what_was_exported_is_in_the_host_what_it_was_in_training(
    host: object, codec: TileCodec, tmp_path: Path, stage: EncoderStage
) -> None:
    """Encoder and LoRA through their files, the LoRA through the host's own loader, in float32."""
    modules, config = host_modules(), STAGES[stage]
    network, encoder = modules.new_wan(SPEC), new_encoder()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train_encoder(replace(config, learning_rate=0.05), modules, peft, network, encoder, codec, tmp_path)
    save_encoder(tmp_path / "encoder.safetensors", trained_spec(encoder.spec, config), encoder.state_dict())
    save_lora(tmp_path / "lora.safetensors", network)

    spec, loaded = read_encoder(tmp_path / "encoder.safetensors")
    assert spec.trained[f"{stage.value} steps"] == 4
    reading = MemoryEncoder(spec)
    reading.load_state_dict(loaded)
    lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(build_tiny_wan(weights=weights), None, lora, 1.0, 0.0)
    assert len(patched.patches) == 10 * SPEC.layers
    comfy.model_management.load_models_gpu([patched])

    batch = batch_of(config, codec, step=10)
    levels = torch.full((len(batch.target),), 0.7)
    with torch.no_grad():
        with modules.training():
            history = read_history(host_modules(), network, encoder, batch)
            assert history is not None
            trained = predict_beside_history(modules, network, history, batch.target, levels, batch.text)
            plain = predict_beside_history(modules, network, None, batch.target, levels, batch.text)
        inside = patched.model.diffusion_model
        again = read_history(modules, inside, reading, batch)
        assert again is not None
        options = with_history(inside, again, {})
        exported = inside(batch.target, levels * 1000, batch.text, transformer_options=options)
    assert relative_error(exported, trained) < FORWARD_ERROR
    assert relative_error(plain, trained) > NOT_ROUNDING


def test_a_new_lora_changes_nothing_and_is_drawn_from_its_seed(host: object, codec: TileCodec) -> None:
    modules, batch = host_modules(), batch_of(SHORT, codec)
    with torch.no_grad(), modules.training():
        network, encoder = modules.new_wan(SPEC), new_encoder()
        before = encoder_loss(modules, network, encoder, batch, SHORT, 0)
        torch.manual_seed(5)
        following = torch.rand(1)
        torch.manual_seed(5)
        add_lora(peft, network, modules.family.lora_targets, 4, seed=1)
        assert torch.equal(torch.rand(1), following)
        assert torch.equal(encoder_loss(modules, network, encoder, batch, SHORT, 0), before)
    other = modules.new_wan(SPEC)
    check_lora(other, modules.family.lora_targets, 4, lora_state(network))
    with pytest.raises(
        ValueError, match=r"lora_A.weight needs to be \[8, 128\] in a LoRA of rank 8 .*, got \[4, 128\]"
    ):
        check_lora(other, modules.family.lora_targets, 8, lora_state(network))
    add_lora(peft, other, modules.family.lora_targets, 4, seed=1)
    assert all(torch.equal(lora_state(other)[name], tensor) for name, tensor in lora_state(network).items())


@pytest.mark.parametrize("branches", Branches)
@pytest.mark.parametrize(("modulation", "own_prompts"), [("clean", True), ("target", False)])
def test_stage_two_takes_the_encoder_of_stage_one(branches: Branches, modulation: str, own_prompts: bool) -> None:
    ours = {"own_prompts": own_prompts, "proportional": own_prompts}
    first = replace(SHORT, branches=branches.value, modulation=modulation, **ours)
    spec = trained_spec(tiny_encoder_spec(first, SPEC.width), first)
    config = finetuning_of(spec, steps=3)
    video = replace(spec, low=LowBranch.VIDEO if spec.low is LowBranch.LATENTS else spec.low)
    assert tiny_encoder_spec(finetuning_of(video), SPEC.width).low is video.low
    assert tiny_encoder_spec(config, SPEC.width) == replace(spec, trained={})
    assert trained_spec(spec, config).trained.keys() > spec.trained.keys()


@pytest.mark.parametrize("branches", [Branches.HIGH, Branches.LOW, Branches.PATCHIFIER])
def test_an_encoder_of_one_branch_is_trained_written_and_read(
    host: object, codec: TileCodec, tmp_path: Path, branches: Branches
) -> None:
    modules, config = host_modules(), replace(SHORT, steps=1, branches=branches.value)
    encoder = new_encoder(config)
    train_encoder(config, modules, peft, modules.new_wan(SPEC), encoder, codec, tmp_path)
    save_encoder(tmp_path / "encoder.safetensors", encoder.spec, encoder.state_dict())
    spec, weights = read_encoder(tmp_path / "encoder.safetensors")
    assert spec == encoder.spec
    assert bool(weights) is (branches is not Branches.LOW)


def test_cartoons_are_large_enough_for_every_rate() -> None:
    spec = tiny_encoder_spec(replace(SHORT, rate="4x4x2"), SPEC.width)
    assert spec.grid(SHORT.history_frames, HEIGHT // 8, WIDTH // 8) == (3, 1, 2)
