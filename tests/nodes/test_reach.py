"""What artists put on a model reaches the chunks that read memory: each effect is there with it and absent without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingSD3
from film import FULL, LATENT_CHANNELS, film_on_disk, planned, prompt, render
from film import Film as Rendered
from numerics import (
    BF16_COMPUTE_ERROR,
    BF16_WEIGHT_ERROR,
    FORWARD_ERROR,
    FP8_WEIGHT_ERROR,
    FP16_WEIGHT_ERROR,
    ROLLOUT_ERROR,
    relative_error,
)
from torch import Tensor
from wan_variants import build_tiny_wan22

from longreel.kernels.page_copy import time_rotation
from longreel.memory.chunks import Plan, plan_frames
from longreel.memory.config import MemoryConfig
from longreel.nodes.headless.bench_loop import HostNoise
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan, host_modules
from longreel.nodes.host.guider import FilmGuider
from longreel.nodes.host.keys import SESSION
from longreel.nodes.host.wan import WanAttention, time_channels
from longreel.nodes.recorder import Recorder

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
SIZE = (4, 8)
FRAME_TOKENS = 2 * 4
TWO_CHUNKS = plan_frames(6, 3)
ONE_STEP = (1.0, 0.0)
LORA_RANK = 2
LORA_LAYOUTS = {
    "peft": (
        "diffusion_model.blocks.1.self_attn.k.lora_A.weight",
        "diffusion_model.blocks.1.self_attn.k.lora_B.weight",
    ),
    "kohya": ("lora_unet_blocks_1_self_attn_k.lora_down.weight", "lora_unet_blocks_1_self_attn_k.lora_up.weight"),
}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "causal"])
def model(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=request.param)


@pytest.fixture(scope="module")
def plain(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC)


@pytest.fixture(scope="module")
def first_chunk() -> Tensor:
    """Clean latents that the films of one comparison begin with, so that only the reading chunk can differ."""
    return torch.randn(1, LATENT_CHANNELS, 3, *SIZE, generator=torch.Generator().manual_seed(5))


class Spy:
    """A user's `optimized_attention_override`: keeps the keys of self-attention over memory, and may change the result."""

    def __init__(self, strength: float = 1.0) -> None:
        self.strength = strength
        self.remembered: list[Tensor] = []

    def __call__(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kw: Any
    ) -> Tensor:
        out = attention(q, k, v, *args, **kw)
        if q.shape[1] == 3 * FRAME_TOKENS and k.shape[1] > q.shape[1]:
            self.remembered.append(k[:, : -q.shape[1]].clone())
            out = out * self.strength
        return out


def overridden(model: ModelPatcher, override: Any) -> ModelPatcher:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def film_of(model: ModelPatcher, plan: Plan = TWO_CHUNKS, **settings: Any) -> Rendered:
    return render(model, plan, **{"sigmas": ONE_STEP, "size": SIZE, "prompts": (prompt(0),), **settings})


def reading_chunk(model: ModelPatcher, first: Tensor, **settings: Any) -> Tensor:
    """The second chunk of a film whose first one is given."""
    return film_of(model, load=lambda index: first if index == 0 else None, **settings).chunks[1].latents


# LoRA


def lora(layout: str) -> dict[str, Tensor]:
    down, up = LORA_LAYOUTS[layout]
    generator = torch.Generator().manual_seed(1)
    return {
        down: torch.randn(LORA_RANK, SPEC.width, generator=generator),
        up: torch.randn(SPEC.width, LORA_RANK, generator=generator),
    }


def with_lora(model: ModelPatcher, strength: float, layout: str = "peft") -> ModelPatcher:
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora(layout), strength, 0.0)
    return loaded


@pytest.mark.parametrize("layout", LORA_LAYOUTS)
def test_a_lora_changes_the_chunk_that_reads_memory(model: ModelPatcher, first_chunk: Tensor, layout: str) -> None:
    without = reading_chunk(model, first_chunk)
    loaded = reading_chunk(with_lora(model, 1.0, layout), first_chunk)
    assert relative_error(loaded, without) > ROLLOUT_ERROR
    assert torch.equal(reading_chunk(with_lora(model, 0.0, layout), first_chunk), without)
    assert torch.equal(reading_chunk(model, first_chunk), without)


def test_a_lora_may_come_before_or_after_the_memory(model: ModelPatcher, first_chunk: Tensor) -> None:
    before = reading_chunk(attach_memory(with_lora(model, 1.0), FULL), first_chunk, attached=True)
    after = reading_chunk(with_lora(attach_memory(model, FULL), 1.0), first_chunk, attached=True)
    assert torch.equal(before, after)


def test_a_lora_changes_what_memory_keeps(model: ModelPatcher, first_chunk: Tensor) -> None:
    spies = {strength: Spy() for strength in (0.0, 1.0)}
    for strength, spy in spies.items():
        reading_chunk(overridden(with_lora(model, strength), spy), first_chunk)
    layers = [relative_error(*pair) for pair in zip(spies[1.0].remembered, spies[0.0].remembered, strict=True)]
    assert len(layers) == 2 * SPEC.layers  # once to denoise, once to commit
    assert layers[0] == 0  # the LoRA changes the keys of the second layer alone
    assert layers[1] > ROLLOUT_ERROR


# Number formats


def scaled_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the 'fp8 scaled' files that are shared for Wan: layers in fp8, each with its own scale."""
    out = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}  # two numbers: multiply in full precision
    for key, weight in state.items():
        if not key.startswith("blocks.") or weight.ndim < 2 or not key.endswith(".weight"):
            out[key] = weight
            continue
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        out[key] = (weight / scale).to(torch.float8_e4m3fn)
        out[key.replace(".weight", ".scale_weight")] = scale
    return out


def formats() -> dict[str, tuple[Callable[[dict[str, Tensor]], ModelPatcher], float]]:
    def cast(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], ModelPatcher]:
        return lambda state: build_tiny_wan(weights=state, dtype=dtype)

    return {
        "fp16": (cast(torch.float16), FP16_WEIGHT_ERROR),
        "bf16": (cast(torch.bfloat16), BF16_WEIGHT_ERROR),
        "fp8": (cast(torch.float8_e4m3fn), FP8_WEIGHT_ERROR),
        "fp8 scaled": (
            lambda state: comfy.sd.load_diffusion_model_state_dict(scaled_fp8(state)),
            FP8_WEIGHT_ERROR,
        ),
    }


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8", "fp8 scaled"])
def test_a_checkpoint_of_fewer_bits_makes_nearly_the_film_of_the_whole_one(host: object, name: str) -> None:
    load, tolerance = formats()[name]
    state = host_modules().new_wan(SPEC).state_dict()
    whole = film_of(build_tiny_wan(weights=state)).latents
    loaded = load(dict(state))
    spy = Spy()
    film = film_of(overridden(loaded, spy)).latents
    assert {keys.dtype for keys in spy.remembered} == {loaded.model.get_dtype_inference()}
    assert 0 < relative_error(film, whole) < tolerance


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_memory_has_the_number_format_that_the_model_computes_in(plain: ModelPatcher, order: str) -> None:
    spy = Spy()
    compute = ModelComputeDtype()
    if order == "before":
        model = attach_memory(compute.patch(plain, "bf16")[0], FULL)
    else:
        (model,) = compute.patch(attach_memory(plain, FULL), "bf16")
    film = film_of(overridden(model, spy), attached=True).latents
    whole = film_of(plain).latents
    assert {keys.dtype for keys in spy.remembered} == {torch.bfloat16}
    assert 0 < relative_error(film, whole) < BF16_COMPUTE_ERROR


# Attention


def test_a_users_attention_override_is_used_over_memory(model: ModelPatcher, first_chunk: Tensor) -> None:
    without = reading_chunk(model, first_chunk)
    watching, halving = Spy(), Spy(strength=0.5)
    assert torch.equal(reading_chunk(overridden(model, watching), first_chunk), without)
    assert len(watching.remembered) == 2 * SPEC.layers
    remembering = attach_memory(overridden(model, halving), FULL)
    assert relative_error(reading_chunk(remembering, first_chunk, attached=True), without) > ROLLOUT_ERROR
    assert remembering.model_options["transformer_options"]["optimized_attention_override"] is halving


def test_a_patch_on_self_attention_is_used_over_memory(plain: ModelPatcher, first_chunk: Tensor) -> None:
    seen: list[bool] = []

    def halve(given: dict[str, Any]) -> Tensor:
        session = given["transformer_options"][SESSION]
        seen.append(bool(session.memory.read_frames))
        assert given["q"].shape == given["k"].shape
        return given["x"] * 0.5 if session.memory.read_frames else given["x"]

    patched = plain.clone()
    patched.set_model_attn1_patch(halve)
    assert relative_error(reading_chunk(patched, first_chunk), reading_chunk(plain, first_chunk)) > ROLLOUT_ERROR
    assert seen == [False] * SPEC.layers + [True] * 2 * SPEC.layers


# Positions


def scaled(model: ModelPatcher, scale_t: float, shift_t: float) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_rope_options(1.0, 0.0, 1.0, 0.0, scale_t, shift_t)
    return clone


def test_a_stretched_time_reaches_what_is_remembered(model: ModelPatcher, first_chunk: Tensor) -> None:
    without = reading_chunk(model, first_chunk)
    assert relative_error(reading_chunk(scaled(model, 0.5, 0.0), first_chunk), without) > ROLLOUT_ERROR
    assert relative_error(reading_chunk(scaled(model, 1.0, 7.0), first_chunk), without) < ROLLOUT_ERROR


def test_a_stretched_film_has_its_past_and_its_present_at_stretched_times(
    model: ModelPatcher, first_chunk: Tensor
) -> None:
    """Turning the keys of a film at half speed by the missing half gives those of the film at full speed."""
    spies = {scale: Spy() for scale in (0.5, 1.0)}
    for scale, spy in spies.items():
        reading_chunk(overridden(scaled(model, scale, 0.0), spy), first_chunk)
    half, full = (spies[scale].remembered[0].unflatten(2, (SPEC.heads, -1)) for scale in (0.5, 1.0))  # [1, L, H, D]
    channels = time_channels(half.shape[-1])
    missing = time_rotation([0.0, 0.5, 1.0], channels, 10_000.0, half.device).repeat_interleave(FRAME_TOKENS, dim=0)
    pairs = half[..., :channels].unflatten(-1, (-1, 2, 1))  # [1, L, H, pairs, 2, 1]
    turned = (missing[None, :, None] @ pairs).flatten(-3)
    assert relative_error(turned, full[..., :channels]) < FORWARD_ERROR
    assert relative_error(half[..., :channels], full[..., :channels]) > ROLLOUT_ERROR
    assert torch.equal(half[..., channels:], full[..., channels:])


def test_a_stretched_film_of_one_chunk_is_what_the_unpatched_model_makes(model: ModelPatcher) -> None:
    stretched = scaled(model, 0.5, 3.0)
    noise = torch.randn(1, LATENT_CHANNELS, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    guider = comfy.samplers.CFGGuider(stretched)
    guider.set_conds(prompt(0), prompt(99, words=3))
    euler, sigmas = comfy.samplers.ksampler("euler"), torch.tensor(ONE_STEP)
    native = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)
    film = film_of(stretched, plan_frames(3, 3), noise=HostNoise(noise, 0), inner=euler)
    assert torch.equal(model.model.process_latent_out(film.latents), native)


# Other packs


def test_another_packs_wrapper_is_called_and_stays(model: ModelPatcher, first_chunk: Tensor) -> None:
    calls: list[int] = []

    def wrapper(executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(x.shape[2])
        return executor(x, *args, **kwargs) * 0.5

    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", wrapper)
    remembering = attach_memory(wrapped, FULL)
    changed = reading_chunk(remembering, first_chunk, attached=True)
    assert relative_error(changed, reading_chunk(model, first_chunk)) > ROLLOUT_ERROR
    assert calls == [3, 3, 3]  # the first chunk's commit, then denoise and commit
    assert remembering.get_wrappers(WrappersMP.APPLY_MODEL, "another pack") == [wrapper]


def test_a_flow_shift_may_come_before_or_after_the_memory(model: ModelPatcher) -> None:
    def shifted(patcher: ModelPatcher) -> ModelPatcher:
        return ModelSamplingSD3().patch(patcher, 3.0)[0]

    def film(patcher: ModelPatcher) -> Tensor:
        sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 2)
        return film_of(patcher, sigmas=tuple(sigmas.tolist()), attached=True).latents

    before, after = film(attach_memory(shifted(model), FULL)), film(shifted(attach_memory(model, FULL)))
    assert torch.equal(before, after)
    assert relative_error(before, film(attach_memory(model, FULL))) > ROLLOUT_ERROR


# Wan 2.2 5B


def test_wan_22_5b_remembers_its_first_chunk(host: object, tmp_path: Path) -> None:
    model = build_tiny_wan22()
    assert type(model.model) is comfy.model_base.WAN22
    film = film_on_disk(model, planned()).make(tmp_path)
    assert film.latents.shape == (1, 48, 6, 2, 4)  # a pixel in sixteen
    forgetful = attach_memory(model, MemoryConfig(window_frames=3, sink_frames=0))
    forgotten = film_on_disk(forgetful, planned(), project="forgotten").make(tmp_path)
    assert torch.equal(film.latents[:, :, :3], forgotten.latents[:, :, :3])
    assert relative_error(film.latents[:, :, 3:], forgotten.latents[:, :, 3:]) > ROLLOUT_ERROR


# The host's own ways


@pytest.mark.parametrize("lora_of", ["model", "prompt"])
def test_a_film_survives_that_its_model_is_unloaded_between_chunks(
    plain: ModelPatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_of: str
) -> None:
    """As on a card where the VAE has room only when the model has left."""
    model, vae, board = overridden(plain, Spy(strength=0.5)), build_tiny_vae(dim=8), planned()
    if lora_of == "model":
        model = with_lora(model, 1.0)
    else:
        hooks = comfy.hooks.create_hook_lora(lora("peft"), 1.0, 0.0)
        board = planned(prompts=([[prompt(0)[0][0], {"hooks": hooks}]],))
    undisturbed = film_on_disk(model, board, project="undisturbed").make(tmp_path).latents
    unchanged = film_on_disk(overridden(plain, Spy(strength=0.5)), planned(), project="unchanged").make(tmp_path)
    assert relative_error(undisturbed, unchanged.latents) > ROLLOUT_ERROR
    decode = Recorder._decode

    def decode_and_unload(self: Recorder, chunk: Any, latents: Tensor) -> bool:
        decoded = decode(self, chunk, latents)
        comfy.model_management.unload_all_models()
        assert not isinstance(plain.model.diffusion_model.blocks[0].self_attn.forward, WanAttention)
        return decoded

    monkeypatch.setattr(Recorder, "_decode", decode_and_unload)
    disturbed = film_on_disk(model, board, vae=vae, project="disturbed").make(tmp_path).latents
    assert torch.equal(disturbed, undisturbed)
    monkeypatch.setattr(FilmGuider, "reload", lambda self: None)
    with pytest.raises(RuntimeError, match="were skipped"):
        film_on_disk(model, board, vae=vae, project="without").make(tmp_path)


def test_memory_on_a_copy_that_the_host_takes_uses_the_layers_of_the_copy(plain: ModelPatcher) -> None:
    """Prompts with hooks run on a copy of the model without dynamic VRAM, which has layers of its own."""
    other = build_tiny_wan(dataclasses.replace(SPEC, seed=4))
    copied = attach_memory(plain, FULL).clone(model_override=other.get_clone_model_override())
    assert torch.equal(film_of(copied, attached=True).latents, film_of(other).latents)


def test_a_film_is_the_same_inside_and_outside_inference_mode(model: ModelPatcher) -> None:
    outside = film_of(model).latents
    with torch.inference_mode():
        inside = film_of(model).latents
    assert torch.equal(inside, outside)
    assert torch.equal(film_of(model).latents, outside)
