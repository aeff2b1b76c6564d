"""A memory encoder is trained beside the host's own HunyuanVideo: what it learns from is what a film shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from encoder_runs import STAGES, batch_of, both_stages, orthogonal_codec
from encoders import encoders_in
from film import film_on_disk, planned, prompt
from hunyuan_film import SPEC, lively_hunyuan, lively_network
from numerics import FORWARD_ERROR, NOT_ROUNDING, SLOPE_ERROR, relative_error
from torch import Tensor

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import save_encoder
from longreel.memory.encoder_spec import Modulation, Rate
from longreel.memory.training.encoder_recall import measure_encoder_recall
from longreel.memory.training.encoder_settings import EncoderStage, EncoderTraining, tiny_encoder_spec, trained_spec
from longreel.memory.training.encoder_training import (
    EncoderBatch,
    encoder_loss,
    predict_beside_history,
    read_history,
    train_encoder,
)
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import add_lora, lora_state, save_lora
from longreel.memory.training.retrieval import ask_films, mean_retrieval
from longreel.memory.training.words import pooled_words
from longreel.nodes.host.build_hunyuan import build_tiny_hunyuan, modules_of
from longreel.nodes.host.encoder_check import fits
from longreel.nodes.host.encoder_model import load_encoder

SMALL = replace(SPEC, width=128, double_layers=1, single_layers=1)
SLOPE_STEP = 1e-4
MATRICES = 4 + 4 + 2
"""Those of a double layer, for picture and for words, and of a single one."""
CONFIGS = {stage: replace(config, steps=2, family="hunyuan") for stage, config in STAGES.items()}


def conditioning(seed: int, count: int = 7) -> list[Any]:
    """A prompt with the one vector for all its words that the demo's text encoder makes of them."""
    ((vectors, _),) = prompt(seed, count)
    return [[vectors, {"pooled_output": pooled_words(vectors, torch.tensor([[count]]))}]]


PROMPTS = (conditioning(0), conditioning(1, 5), conditioning(2, 4))
NEGATIVE = conditioning(99, 3)


@pytest.mark.parametrize("own_prompts", [False, True])
@pytest.mark.parametrize("modulation", Modulation)
def test_what_training_computes_is_the_chunk_that_a_film_makes(
    host: object, tmp_path: Path, modulation: Modulation, own_prompts: bool
) -> None:
    """With distilled guidance; the film's first two shots are encoded, a frame of them is whole, two wait."""
    model = lively_hunyuan(SPEC)
    how = {"width": SPEC.width, "modulation": modulation, "own_prompts": own_prompts, "proportional": True}
    loaded = encoders_in(tmp_path)(HistoryConfig(1), rate=Rate(2, 2, 4), **how)
    board = planned("[0.75s] a beach\n[0.75s] a town\n[0.75s] a forest", prompts=PROMPTS)
    film = film_on_disk(model, replace(board, negative=NEGATIVE), encoder=loaded)
    latents = model.model.process_latent_in(film.make(tmp_path / "films").latents)
    past, made = latents[:, :, :6], latents[:, :, 6:]
    noise = film.film_sampler(None, None).noise(film.plan.chunks[2], 0, made.shape)
    first, second, text = (read[0][0][0] for read in PROMPTS)
    prompts = [first] * 3 + [second] * 3
    mask, times = torch.zeros(1, 3, 4, 8), torch.arange(6.0, 9.0)
    batch = EncoderBatch(past, noise, times, mask, text[None], past[:, :, -1:], [prompts])
    modules, network = modules_of("hunyuan"), model.model.diffusion_model
    with torch.no_grad(), modules.training():
        history = read_history(modules, network, loaded.patcher.model, batch)
        flow = predict_beside_history(modules, network, history, noise, torch.ones(1), batch.text)
        alone = predict_beside_history(modules, network, None, noise, torch.ones(1), batch.text)
    assert relative_error(noise - flow, made) < FORWARD_ERROR
    assert relative_error(noise - alone, made) > NOT_ROUNDING


def new_encoder(config: EncoderTraining) -> MemoryEncoder:
    """For the small model, from its own embedding."""
    encoder = MemoryEncoder(tiny_encoder_spec(config, SMALL.width))
    initialise_encoder(encoder, torch.Generator().manual_seed(0))
    return encoder


@both_stages
def test_films_of_a_step_read_nothing_of_each_other(host: object, stage: EncoderStage) -> None:
    modules, network = modules_of("hunyuan"), lively_network(SMALL).requires_grad_(False)
    encoder, batch = new_encoder(CONFIGS[stage]).requires_grad_(False), batch_of(CONFIGS[stage], orthogonal_codec())
    levels = torch.tensor([0.8, 0.3])

    def flow(films: slice) -> Tensor:
        tensors = {name: getattr(batch, name)[films] for name in ("history", "target", "text", "window", "prompts")}
        history = read_history(modules, network, encoder, batch._replace(**tensors))
        return predict_beside_history(modules, network, history, tensors["target"], levels[films], tensors["text"])

    both, apart = flow(slice(2)), [flow(slice(row, row + 1)) for row in range(2)]
    assert relative_error(both, torch.cat(apart)) < FORWARD_ERROR
    assert relative_error(*apart) > NOT_ROUNDING


@both_stages
def test_both_stages_teach_encoder_and_lora_and_end_with_the_same_bits_when_stopped(
    host: object, tmp_path: Path, stage: EncoderStage
) -> None:
    modules, config = modules_of("hunyuan"), CONFIGS[stage]

    def train(folder: str, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        network, encoder = lively_network(SMALL), new_encoder(config)
        taken = replace(config, steps=steps, cool_down=0)
        train_encoder(taken, modules, peft, network, encoder, orthogonal_codec(), tmp_path / folder)
        kept = {name.replace(".base_layer", ""): weight for name, weight in network.state_dict().items()}
        assert all(torch.equal(kept[name], weight) for name, weight in lively_network(SMALL).state_dict().items())
        return encoder.state_dict(), lora_state(network)

    encoder, lora = train("unbroken", 2)
    train("stopped", 1)
    for one, other in zip((encoder, lora), train("stopped", 2), strict=True):
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    fresh = new_encoder(config).state_dict()
    assert not [name for name, weight in encoder.items() if torch.equal(weight, fresh[name])]
    assert len(lora) == 2 * MATRICES
    assert not [name for name, weight in lora.items() if not weight.any()]


@both_stages
def test_the_way_back_through_the_join_is_that_of_the_loss(host: object, stage: EncoderStage) -> None:
    """Against differences of the loss; the host adds to hidden states in place, which autograd is let do."""
    modules, config = modules_of("hunyuan"), CONFIGS[stage]
    network, encoder, generator = lively_network(SMALL), new_encoder(config), torch.Generator().manual_seed(1)
    trained = [*encoder.parameters(), *add_lora(peft, network, modules.family.lora_targets, 4, seed=1)]
    network.double().dtype = torch.float64
    encoder.double()
    batch = batch_of(config, orthogonal_codec())
    batch = batch._replace(window=batch.history[:, :, : 1 if stage is EncoderStage.FINETUNE else 0])
    tensors = {name: getattr(batch, name).double() for name in ("history", "target", "mask", "text", "window")}
    ways = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in trained]

    def loss() -> Tensor:
        return encoder_loss(modules, network, encoder, batch._replace(**tensors), config, 0)

    def moved(step: float) -> Tensor:
        for weight, way in zip(trained, ways, strict=True):
            weight.add_(way, alpha=step)
        return loss()

    with modules.training():
        with torch.no_grad():
            moved(0.05)  # away from adapters and branches that are zero at first
        loss().backward()
        slope = torch.stack([(weight.grad * way).sum() for weight, way in zip(trained, ways, strict=True)]).sum()
        with torch.no_grad():
            difference = moved(SLOPE_STEP) - moved(-2 * SLOPE_STEP)
    assert relative_error(slope, difference / (2 * SLOPE_STEP)) < SLOPE_ERROR


def test_what_was_learned_is_measured(host: object) -> None:
    """Frames that come back, and who comes back, beside the film's own tokens, another's and none."""
    modules, network, codec = modules_of("hunyuan"), lively_network(SMALL).requires_grad_(False), orthogonal_codec()
    config = CONFIGS[EncoderStage.PRETRAIN]
    found = mean_retrieval(ask_films(config, modules, network, new_encoder(config), codec, batches=1))
    assert len(set(found)) == 4
    config = replace(CONFIGS[EncoderStage.FINETUNE], history_frames=5, segment_frames=1)
    recalled = measure_encoder_recall(config, modules, network, new_encoder(config), codec, films=2)
    assert len({recalled.identity, recalled.other, recalled.window}) == 3


def test_a_trained_pair_makes_a_film_through_the_loaders_of_the_host(host: object, tmp_path: Path) -> None:
    """And training draws the frames that the film shows."""
    modules, config = modules_of("hunyuan"), replace(CONFIGS[EncoderStage.FINETUNE], learning_rate=0.02)
    network, encoder = lively_network(SMALL), new_encoder(config)
    train_encoder(config, modules, peft, network, encoder, orthogonal_codec(), tmp_path / "run")
    save_encoder(tmp_path / "encoder.safetensors", trained_spec(encoder.spec, config), encoder.state_dict())
    save_lora(tmp_path / "lora.safetensors", network)
    loaded = load_encoder(tmp_path / "encoder.safetensors", HistoryConfig(1), torch.float32)
    assert "made for the tiny HunyuanVideo that comes with LongReel" in fits(loaded)
    assert "finetune steps: 2" in fits(loaded)
    lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    plain = build_tiny_hunyuan(weights=lively_network(SMALL).state_dict())
    model = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)[0]
    assert len(model.patches) == MATRICES
    board = planned("[0.75s] a beach\n[0.75s] a town", prompts=PROMPTS[:2])
    film = film_on_disk(model, replace(board, negative=NEGATIVE), encoder=loaded)
    latents = model.model.process_latent_in(film.make(tmp_path / "films").latents)
    past, made = latents.split(3, dim=2)
    noise = film.film_sampler(None, None).noise(film.plan.chunks[1], 0, made.shape)
    first, text = (read[0][0][0] for read in PROMPTS[:2])
    batch = EncoderBatch(past, noise, torch.arange(3.0, 6.0), noise[:, 0], text[None], past[:, :, -1:], [[first] * 3])
    with torch.no_grad(), modules.training():
        history = read_history(modules, network, encoder, batch)
        flow = predict_beside_history(modules, network, history, noise, torch.ones(1), batch.text)
    assert relative_error(noise - flow, made) < FORWARD_ERROR
