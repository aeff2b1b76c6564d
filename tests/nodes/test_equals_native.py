"""Reading everything equals the host's own cached causal model."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import FOUR_STEPS, FULL, LATENT_CHANNELS, TINY_SIZE, prompt, render
from numerics import FORWARD_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import plan_frames
from longreel.memory.config import MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.session import RunSession
from longreel.nodes.headless.bench_loop import HostNoise
from longreel.nodes.host.attach import adapter_for, attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.keys import SESSION

SEED = 7
SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
FIRST_NOISE = 1234
FRAME_TOKENS = TINY_SIZE[0] * TINY_SIZE[1] // 4
CLASSES = pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])


def set_shift(model: ModelPatcher, shift: float) -> ModelPatcher:
    model = model.clone()
    sampling = type(model.model.model_sampling)(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    model.add_object_patch("model_sampling", sampling)
    return model


def film_noise(frames: int) -> Tensor:
    shape = (1, LATENT_CHANNELS, frames, *TINY_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(FIRST_NOISE))


def native_film(frames: int, chunk_frames: int, start: Tensor | None = None) -> Tensor:
    """The host's own autoregressive sampler on its own causal class; `start` is a LATENT of the first frames."""
    model = build_tiny_wan(SPEC, causal=True)
    if start is not None:
        model.model_options["transformer_options"]["ar_config"] = {"initial_latent": start}
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(0), prompt(99, words=3))
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": chunk_frames})
    noise = film_noise(frames)
    latents = guider.sample(
        noise, torch.zeros_like(noise), sampler, torch.tensor(FOUR_STEPS), disable_pbar=True, seed=SEED
    )
    return guider.model_patcher.model.process_latent_in(latents)


def our_film(frames: int, chunk_frames: int, causal: bool = True, config: MemoryConfig = FULL) -> Tensor:
    model = set_shift(build_tiny_wan(SPEC, causal=causal), 5.0)
    noise = HostNoise(film_noise(frames), SEED)
    return render(model, plan_frames(frames, chunk_frames), prompts=(prompt(0),), noise=noise, config=config).latents


@CLASSES
@pytest.mark.parametrize(("frames", "chunk_frames"), [(4, 1), (9, 3), (12, 4), (10, 3)])
def test_a_rollout_that_reads_everything_equals_the_hosts_cached_one(
    host: object, causal: bool, frames: int, chunk_frames: int
) -> None:
    expected = native_film(frames, chunk_frames)
    assert relative_error(our_film(frames, chunk_frames, causal), expected) < ROLLOUT_ERROR


@pytest.mark.parametrize("chunk_frames", [1, 3, 4])
def test_a_rollout_that_reads_nothing_is_another_film(host: object, chunk_frames: int) -> None:
    """The control for the test above."""
    forgetful = MemoryConfig(window_frames=chunk_frames, sink_frames=0)
    made = our_film(10, chunk_frames, config=forgetful)
    assert relative_error(made, native_film(10, chunk_frames)) > 10 * ROLLOUT_ERROR


@CLASSES
def test_a_film_from_a_start_image_equals_the_hosts_own(host: object, causal: bool) -> None:
    frames, chunk_frames = 10, 3
    start = torch.randn(1, LATENT_CHANNELS, 1, *TINY_SIZE, generator=torch.Generator().manual_seed(5))
    expected = native_film(frames, chunk_frames, start)
    model = set_shift(build_tiny_wan(SPEC, causal=causal), 5.0)
    plan = plan_frames(frames, chunk_frames, seeded_frames=1)
    film = render(model, plan, prompts=(prompt(0),), noise=HostNoise(film_noise(frames), SEED), start=start)
    assert relative_error(film.latents, expected[:, :, 1:]) < ROLLOUT_ERROR
    without = native_film(frames, chunk_frames)
    assert relative_error(without[:, :, 1:], expected[:, :, 1:]) > 10 * ROLLOUT_ERROR  # the image matters


def native_forwards(chunks: Sequence[Tensor], context: Tensor) -> list[Tensor]:
    """What the host's causal network answers at t = 0, chunk after chunk, with its own caches."""
    model = build_tiny_wan(SPEC, causal=True)
    comfy.model_management.load_models_gpu([model])
    network = model.model.diffusion_model
    frames = sum(chunk.shape[2] for chunk in chunks)
    keys = network.init_kv_caches(1, frames * FRAME_TOKENS, model.load_device, torch.float32)
    texts = network.init_crossattn_caches(1, model.load_device, torch.float32)
    answers, first = [], 0
    for chunk in chunks:
        count = chunk.shape[2]
        answers.append(network.forward_block(chunk, torch.zeros(1, count), context, first, keys, texts))
        first += count
    return answers


def our_forwards(model: ModelPatcher, chunks: Sequence[Tensor], context: Tensor) -> list[Tensor]:
    """What our patched network answers to the same, remembering everything."""
    remembering = attach_memory(model, FULL)
    comfy.model_management.load_models_gpu([remembering])
    network = remembering.model.diffusion_model
    frames, longest = sum(chunk.shape[2] for chunk in chunks), chunks[0].shape[2]
    memory = KVMemory(adapter_for(remembering).kv_spec(remembering, *TINY_SIZE), FULL, 1, longest, frames)
    memory.allocate()
    session = RunSession(memory)
    options = {SESSION: session, "cond_or_uncond": [0]}
    answers, first = [], 0
    for chunk in chunks:
        session.begin(range(first, first + chunk.shape[2]))
        with session.committing():
            answers.append(network(chunk, torch.zeros(1), context, transformer_options=options))
        first += chunk.shape[2]
    return answers


@CLASSES
@pytest.mark.parametrize(("frames", "chunk_frames"), [(3, 1), (10, 3), (10, 4)])
def test_a_forward_that_reads_everything_equals_the_hosts_cached_one(
    host: object, causal: bool, frames: int, chunk_frames: int
) -> None:
    chunks = film_noise(frames).split(chunk_frames, dim=2)
    ((context, _),) = prompt(0)
    with torch.inference_mode():
        expected = native_forwards(chunks, context)
        made = our_forwards(build_tiny_wan(SPEC, causal=causal), chunks, context)
    errors = [relative_error(ours, native) for ours, native in zip(made, expected, strict=True)]
    assert max(errors) < FORWARD_ERROR, errors
