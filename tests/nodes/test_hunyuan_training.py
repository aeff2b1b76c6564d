"""The tiny HunyuanVideo learns what films are made of: what training computes is what memory gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.model_management
import pytest
import torch
from film import FULL, LATENT_CHANNELS, TINY_SIZE
from hunyuan_film import SPEC, drawn, hunyuan_film, lively_hunyuan, lively_network
from numerics import FORWARD_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import plan_chunks
from longreel.memory.kv_memory import KVMemory
from longreel.memory.session import RunSession
from longreel.memory.training.causal import TRAIN_TIMESTEPS, ReadingLesson
from longreel.memory.training.clips import ClipBatch, TileCodec, text_batch
from longreel.memory.training.export import save_weights
from longreel.memory.training.joined import predict_joined_flow
from longreel.memory.training.tiny_training import Stage, TinyTraining, train_tiny
from longreel.memory.training.words import pooled_words
from longreel.nodes.host.attach import adapter_for, attach_memory
from longreel.nodes.host.build import read_shards
from longreel.nodes.host.build_hunyuan import build_tiny_hunyuan, hunyuan_modules, new_hunyuan
from longreel.nodes.host.keys import SESSION

UNGUIDED = replace(SPEC, guidance=False)
CHUNKS, CHUNK_FRAMES, COPIES = 3, 2, 2
PROMPTS = [
    ["anna waves left", "ben jumps right", "anna walks left"],
    ["dora waves left", "dora sits right", "ben waves left"],
]
FRAMES = CHUNKS * CHUNK_FRAMES


@pytest.fixture
def batch(host: object) -> ClipBatch:
    text, text_mask = text_batch(PROMPTS)
    mask = torch.zeros(2, FRAMES, *TINY_SIZE)
    mask[:, :, 2:6, 2:6] = 1
    returns = torch.zeros(2, CHUNKS, CHUNKS, dtype=torch.bool)
    returns[0, 2, 0] = True
    return ClipBatch(drawn(1, 2, LATENT_CHANNELS, FRAMES, *TINY_SIZE), mask, text, text_mask, returns, CHUNK_FRAMES)


def noisy(batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Every clip clean, then with another noise level on every chunk: latents and the sigma of each frame."""
    levels = torch.tensor([[0.0] * CHUNKS, [0.9, 0.5, 0.7]]).repeat(2, 1).repeat_interleave(CHUNK_FRAMES, dim=1)
    clean = batch.latents.repeat_interleave(COPIES, dim=0)
    level = levels[:, None, :, None, None]
    return clean * (1 - level) + drawn(2, *clean.shape) * level, levels


def flow_with_memory(clip: int, batch: ClipBatch, latents: Tensor, sigmas: Tensor) -> Tensor:
    """The noisy chunks of a clip as a film makes them: each reads what was committed clean before it."""
    remembering = attach_memory(lively_hunyuan(UNGUIDED), FULL)
    comfy.model_management.load_models_gpu([remembering])
    texts = batch.text[clip].unflatten(0, (CHUNKS, -1))
    spec = adapter_for(remembering).kv_spec(remembering, *TINY_SIZE)
    memory = KVMemory(spec, FULL, 1, CHUNK_FRAMES, FRAMES, words=texts.shape[1])
    memory.allocate()
    session = RunSession(memory)
    patches = remembering.model_options["transformer_options"]["patches"]
    options = {SESSION: session, "cond_or_uncond": [0], "patches": patches}
    flows = []
    for chunk, text in enumerate(texts):
        frames = range(chunk * CHUNK_FRAMES, (chunk + 1) * CHUNK_FRAMES)
        y = pooled_words(text[None], torch.tensor([[len(text)]]))

        def run(copy: int, frames: range = frames, text: Tensor = text, y: Tensor = y) -> Tensor:
            row = COPIES * clip + copy
            part = slice(frames.start, frames.stop)
            level = sigmas[row, frames.start][None] * TRAIN_TIMESTEPS
            made: Tensor = remembering.model.diffusion_model(
                latents[row, None, :, part], level, text[None], y=y, transformer_options=options
            )
            return made

        session.begin(frames)
        flows.append(run(copy=1))
        with session.committing():
            run(copy=0)
    return torch.cat(flows, dim=2)[0]


def test_what_training_computes_is_what_a_film_computes_with_full_memory(batch: ClipBatch) -> None:
    latents, sigmas = noisy(batch)
    with torch.inference_mode():
        trained = predict_joined_flow(lively_network(UNGUIDED), latents, sigmas, batch)
        for clip in range(len(PROMPTS)):
            made = flow_with_memory(clip, batch, latents, sigmas)
            assert relative_error(trained[COPIES * clip + 1], made) < FORWARD_ERROR


def test_gradients_reach_every_weight_and_the_lesson_listens(batch: ClipBatch) -> None:
    latents, sigmas = noisy(batch)
    model = new_hunyuan(UNGUIDED).requires_grad_(True)
    lesson = ReadingLesson(batch)
    with hunyuan_modules().training():
        flow = predict_joined_flow(model, latents, sigmas, batch, lesson)
        (flow.square().mean() + lesson.loss).backward()
    assert lesson.loss > 0
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert without == []
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters() if weight.grad is not None)


def test_padded_words_change_nothing(batch: ClipBatch) -> None:
    latents, sigmas = noisy(batch)
    model, words = lively_network(UNGUIDED), batch.text_mask.shape[-1]
    text = torch.nn.functional.pad(batch.text.unflatten(1, (CHUNKS, words)), (0, 0, 0, 2), value=7.0).flatten(1, 2)
    padded = batch._replace(text=text, text_mask=torch.nn.functional.pad(batch.text_mask, (0, 2)))
    with torch.inference_mode():
        flows = [predict_joined_flow(model, latents, sigmas, each) for each in (padded, batch)]
    assert relative_error(*flows) < FORWARD_ERROR


def test_clips_are_normalised_as_the_model_takes_latents(host: object) -> None:
    modules, latents = hunyuan_modules(), drawn(1, 1, LATENT_CHANNELS, 1, *TINY_SIZE)
    expected = build_tiny_hunyuan(UNGUIDED).model.process_latent_in(latents)
    assert relative_error((latents - modules.latent_mean) / modules.latent_std, expected) < FORWARD_ERROR


def test_training_can_be_stopped_and_what_it_writes_makes_films(host: object, tmp_path: Path) -> None:
    codec = TileCodec(drawn(1, 768, 16) / 28, torch.zeros(16), drawn(2, 16, 768) / 4, torch.zeros(768))
    stages = (Stage(0, 1, 3, (1,), 1, 1, 2, 12, 0.5, 1.0, 8.0, 0.1),)
    small = replace(UNGUIDED, width=128, double_layers=1, single_layers=1)

    def train(steps: int, folder: str) -> dict[str, Tensor]:
        config = TinyTraining(steps=steps, stages=stages, warm_up=1, cool_down=0, save_every=1, start="seeded hunyuan")
        model = new_hunyuan(small)
        train_tiny(config, hunyuan_modules(), model, codec, tmp_path / folder, predict=predict_joined_flow)
        return model.state_dict()

    unbroken = train(2, "unbroken")
    train(1, "stopped")
    resumed = train(2, "stopped")
    assert all(torch.equal(weight, resumed[name]) for name, weight in unbroken.items())
    save_weights(unbroken, tmp_path, "hunyuan")
    model = build_tiny_hunyuan(weights=read_shards(tmp_path, "hunyuan"))
    film = hunyuan_film(model, plan_chunks((1, 1), 3), sigmas=(1.0, 0.0))
    assert film.latents.isfinite().all()
