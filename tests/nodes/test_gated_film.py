"""Films read in gated branches, in the real host."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import prompt, render
from numerics import OPEN_GATE_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor
from training_side import TrainingNoise, draw_last_chunk, training_batch, training_network

from longreel.memory.chunks import plan_chunks, plan_frames
from longreel.memory.config import MemoryConfig
from longreel.memory.gates import GateForm, Gates, fresh_gates
from longreel.memory.presets import GATED_PRESETS, PRESETS
from longreel.memory.training.export import save_weights
from longreel.memory.training.gate_training import clip_spec, gated_reader
from longreel.memory.training.recall import recall_film
from longreel.nodes.headless.bench_recall import TinyModel, load_weights
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.fingerprint import model_fingerprint
from longreel.nodes.host.gates import use_gates, used_gates
from longreel.nodes.host.wan import time_channels

SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
TWO_SHOTS = plan_chunks((3, 2), 3)


def lively_gates(form: GateForm, seed: int = 0) -> Gates:
    """Gates that differ from token to token and head to head."""
    made = fresh_gates(form, SPEC.layers, SPEC.heads, SPEC.width, torch.Generator().manual_seed(seed))
    return replace(made, weights=made.weights * 100, biases=torch.randn(made.biases.shape) * 0.5)


def config_of(form: GateForm, chunk_frames: int = 3) -> MemoryConfig:
    """The preset of a form with a window that a short film leaves."""
    return replace(PRESETS[GATED_PRESETS[form]], window_frames=2 * chunk_frames)


def gated(model: ModelPatcher, config: MemoryConfig, gates: Gates | None) -> ModelPatcher:
    remembering = attach_memory(model, config)
    use_gates(remembering, gates)
    return remembering


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=True)


@pytest.mark.parametrize("chunk_frames", [1, 3])
@pytest.mark.parametrize("form", GateForm)
def test_the_product_draws_the_chunk_that_training_with_gates_draws(
    host: object, tmp_path_factory: pytest.TempPathFactory, form: GateForm, chunk_frames: int
) -> None:
    """Two implementations: pages, lists and merged slices here, masks over whole clips there."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(host_modules().new_wan(SPEC).state_dict(), folder, "wan")
    tiny, network = TinyModel(folder), training_network(SPEC, load_weights(folder, "wan"))
    gates = lively_gates(form)
    reader = gated_reader(gates, chunk_frames, clip_spec(network, time_channels(128)))
    film = recall_film(3, 6, chunk_frames, 4, 5)
    latents = tiny.encode(film)
    remembering = gated(tiny.model, reader.config, gates)
    prompts = [shot.prompt for shot in film.shots]
    plan = plan_chunks([1] * 6, chunk_frames)
    drawn = tiny.draw(remembering, plan, prompts, latents[:, :, :-chunk_frames], TrainingNoise(11))
    expected = draw_last_chunk(network, training_batch(film, latents, chunk_frames), 11, reader)
    assert relative_error(drawn.probes[0], expected) < ROLLOUT_ERROR
    ungated = tiny.draw(
        attach_memory(tiny.model, reader.config), plan, prompts, latents[:, :, :-chunk_frames], TrainingNoise(11)
    )
    assert relative_error(ungated.probes[0], expected) > ROLLOUT_ERROR
