"""Reading everything equals the host's own cached causal model."""

from __future__ import annotations

from collections.abc import Sequence

import comfy.k_diffusion.sampling
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import FOUR_STEPS, LATENT_CHANNELS, TINY_SIZE, prompt, render
from numerics import ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import Chunk, plan_frames
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan

SEED = 7
SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
FIRST_NOISE = 1234


def set_shift(model: ModelPatcher, shift: float) -> ModelPatcher:
    model = model.clone()
    sampling = type(model.model.model_sampling)(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    model.add_object_patch("model_sampling", sampling)
    return model


def film_noise(frames: int) -> Tensor:
    shape = (1, LATENT_CHANNELS, frames, *TINY_SIZE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(FIRST_NOISE))


def native_film(frames: int, chunk_frames: int) -> Tensor:
    """The host's own autoregressive sampler on its own causal class."""
    model = build_tiny_wan(SPEC, causal=True)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(0), prompt(99, words=3))
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": chunk_frames})
    noise = film_noise(frames)
    latents = guider.sample(
        noise, torch.zeros_like(noise), sampler, torch.tensor(FOUR_STEPS), disable_pbar=True, seed=SEED
    )
    return guider.model_patcher.model.process_latent_in(latents)


class NativeNoise:
    """The noise that the host's sampler draws."""

    def __init__(self, frames: int) -> None:
        self.first = film_noise(frames)

    def __call__(self, chunk: Chunk, step: int, shape: Sequence[int]) -> Tensor:
        if step == 0:
            return self.first[:, :, chunk.frames.start : chunk.frames.stop]
        generator = torch.Generator().manual_seed(SEED + chunk.index * 1000 + step - 1)
        return torch.randn(tuple(shape), generator=generator)


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
@pytest.mark.parametrize(("frames", "chunk_frames"), [(4, 1), (9, 3), (12, 4), (10, 3)])
def test_a_rollout_that_reads_everything_equals_the_hosts_cached_one(
    host: object, causal: bool, frames: int, chunk_frames: int
) -> None:
    expected = native_film(frames, chunk_frames)
    model = set_shift(build_tiny_wan(SPEC, causal=causal), 5.0)
    film = render(model, plan_frames(frames, chunk_frames), prompts=(prompt(0),), noise=NativeNoise(frames))
    assert relative_error(film.latents, expected) < ROLLOUT_ERROR
