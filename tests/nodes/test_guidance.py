"""Guidance keeps one history for the prompt and one for the negative, and the text of each for a shot."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import CFGOverride
from film import FULL, prompt, render
from numerics import GUIDANCE_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import plan_chunks, plan_frames
from longreel.memory.rollout import FinishedChunk
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.guider import FilmGuider


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(TinyWanSpec(width=256, layers=2, ffn=512, seed=3))


def said_twice(conditioning: list[Any]) -> list[Any]:
    """The same text twice over: attention averages over it, so the model answers as to the text once."""
    return [[torch.cat([conditioning[0][0]] * 2, dim=1), {}]]


@pytest.mark.parametrize("negative", [prompt(0), said_twice(prompt(0))], ids=["one batch", "one after the other"])
def test_guidance_by_the_prompt_itself_changes_nothing(model: ModelPatcher, negative: list[Any]) -> None:
    plan = plan_frames(12, 3)
    plain = render(model, plan, prompts=(prompt(0),))
    guided = render(model, plan, prompts=(prompt(0),), negative=negative, cfg=5.0)
    assert relative_error(guided.latents, plain.latents) < GUIDANCE_ERROR


def test_guidance_needs_twice_the_memory(model: ModelPatcher) -> None:
    plain, guided = (render(model, cfg=cfg).peak_bytes for cfg in (1.0, 5.0))
    page_lengths = 9 * 6 * 4  # bytes: 9 frames of 6 pages; one table serves both histories
    assert guided == 2 * plain - page_lengths


def test_the_text_of_a_shot_is_projected_once(model: ModelPatcher) -> None:
    calls: list[int] = []
    projection = model.model.diffusion_model.blocks[0].cross_attn.k
    handle = projection.register_forward_hook(lambda *args: calls.append(1))
    try:
        render(model, plan_chunks((2, 2, 1), 3), prompts=tuple(prompt(seed) for seed in (0, 1, 0)))
        once_a_shot = len(calls)
        render(model, plan_chunks((2, 2, 1), 3), prompts=tuple(prompt(seed) for seed in (0, 1, 0)), cfg=5.0)
    finally:
        handle.remove()
    assert once_a_shot == 3
    assert len(calls) - once_a_shot == 6


@pytest.mark.parametrize("words", [3, 7], ids=["one batch", "one after the other"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_keeping_the_text_of_a_shot_changes_no_bit(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch, cfg: float, words: int
) -> None:
    def film() -> Tensor:
        prompts = tuple(prompt(seed, words) for seed in (0, 1))
        return render(
            model,
            plan_chunks((2, 2), 3),
            prompts=prompts,
            negative=prompt(99, 3),
            cfg=cfg,
            recache_shots=frozenset({1}),
        ).latents

    kept = film()
    monkeypatch.setattr(FilmGuider, "text_tokens", 0)  # projected at every step
    assert torch.equal(kept, film())


def lora(seed: int = 1) -> dict[str, Tensor]:
    """A LoRA on what reads the text, among others."""
    generator = torch.Generator().manual_seed(seed)
    layers = [f"diffusion_model.blocks.1.{part}" for part in ("cross_attn.k", "self_attn.v", "ffn.0")]
    sizes = (256, 256, 512)
    down = {f"{layer}.lora_A.weight": torch.randn(4, 256, generator=generator) for layer in layers}
    up = {
        f"{layer}.lora_B.weight": torch.randn(size, 4, generator=generator) / 8
        for layer, size in zip(layers, sizes, strict=True)
    }
    return {**down, **up}


def with_own_lora(conditioning: list[Any]) -> list[Any]:
    """The prompt with the LoRA hooked to it."""
    ((vectors, _),) = conditioning
    return [[vectors, {"hooks": comfy.hooks.create_hook_lora(lora(), 1.0, 0.0)}]]


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_lora_that_every_prompt_has_for_itself_makes_the_film_of_the_lora_on_the_model(
    model: ModelPatcher, cfg: float
) -> None:
    loaded, _ = comfy.sd.load_lora_for_models(model, None, lora(), 1.0, 0.0)
    expected = render(loaded, prompts=(prompt(0),), cfg=cfg).latents
    negative = with_own_lora(prompt(99, words=3))
    film = render(model, prompts=(with_own_lora(prompt(0)),), negative=negative, cfg=cfg).latents
    assert relative_error(film, expected) < ROLLOUT_ERROR
    assert relative_error(render(model, prompts=(prompt(0),), cfg=cfg).latents, expected) > 10 * ROLLOUT_ERROR


def test_a_lora_of_one_shot_leaves_the_shot_before_it_as_it_was(model: ModelPatcher) -> None:
    plan = plan_chunks((2, 2, 1), 3)
    plain = render(model, plan, prompts=(prompt(0), prompt(1), prompt(0))).latents
    film = render(model, plan, prompts=(prompt(0), with_own_lora(prompt(1)), prompt(0))).latents
    assert torch.equal(film[:, :, :6], plain[:, :, :6])
    assert relative_error(film[:, :, 6:12], plain[:, :, 6:12]) > ROLLOUT_ERROR


def test_the_text_of_a_prompt_with_hooks_is_not_kept(model: ModelPatcher) -> None:
    assert FilmGuider(model, [prompt(0)], prompt(99), 1.0).text_tokens > 0
    assert FilmGuider(model, [with_own_lora(prompt(0))], prompt(99), 1.0).text_tokens == 0


def fading(executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Another pack that makes the prompt stronger from step to step."""
    return executor(x, timestep, context * (1.5 - timestep.max() / 1000), *args, **kwargs)


def fading_call(apply: Any, call: dict[str, Any]) -> Tensor:
    text = call["c"]["c_crossattn"] * (1.5 - call["timestep"].max())
    return apply(call["input"], call["timestep"], **{**call["c"], "c_crossattn": text})


def fading_replacement(call: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    stronger = 1.5 - call["transformer_options"]["sigmas"].max()
    return extra["original_block"]({**call, "txt": call["txt"] * stronger})


@pytest.mark.parametrize("place", ["wrapper", "function", "replacement"])
def test_a_prompt_that_another_pack_changes_from_step_to_step_is_never_an_old_one(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    faded = model.clone()
    if place == "wrapper":
        faded.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", fading)
    elif place == "function":
        faded.set_model_unet_function_wrapper(fading_call)
    else:
        faded.set_model_patch_replace(fading_replacement, "dit", "double_block", 0)
    film = render(faded, prompts=(prompt(0),)).latents
    monkeypatch.setattr(FilmGuider, "text_tokens", 0)  # projected at every step
    assert torch.equal(film, render(faded, prompts=(prompt(0),)).latents)
    assert relative_error(film, render(model, prompts=(prompt(0),)).latents) > ROLLOUT_ERROR


def guided_from(model: ModelPatcher, cfg: float, start: float, end: float) -> ModelPatcher:
    """The model behind the host's CFG Override node."""
    return CFGOverride.execute(model, cfg, start, end).result[0]


def test_guidance_that_begins_in_the_middle_is_one_clear_error_before_a_chunk_is_finished(model: ModelPatcher) -> None:
    finished: list[FinishedChunk] = []
    with pytest.raises(ValueError, match=r"2 prompts at once.*keeps 1.*CFG Override.*cfg of the Chunked AR Sampler"):
        render(guided_from(model, 5.0, 0.5, 1.0), prompts=(prompt(0),), on_chunk=finished.append)
    assert not finished


def test_guidance_that_ends_in_the_middle_keeps_both_histories(model: ModelPatcher) -> None:
    turned_down = guided_from(model, 1.0, 0.5, 1.0)
    plan = plan_frames(12, 3)
    whole = render(turned_down, plan, prompts=(prompt(0),), cfg=5.0)
    for guidance in (1.0, 5.0):
        always = render(model, plan, prompts=(prompt(0),), cfg=guidance).latents
        assert relative_error(whole.latents, always) > ROLLOUT_ERROR
    saved = {finished.chunk.index: finished.latents for finished in whole.chunks[:2]}
    resumed = render(turned_down, plan, prompts=(prompt(0),), cfg=5.0, load=saved.get)
    assert torch.equal(resumed.latents, whole.latents)


class OtherTextAttention:
    """What another pack puts in the place of a layer's cross-attention."""

    def __init__(self, original: Any) -> None:
        self.original, self.calls = original, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.original(*args, **kwargs)


def test_another_packs_cross_attention_keeps_its_place_before_and_after_the_memory(model: ModelPatcher) -> None:
    place = "diffusion_model.blocks.0.cross_attn.forward"
    plain = render(model, prompts=(prompt(0),))
    before, after = model.clone(), attach_memory(model, FULL)
    others = [OtherTextAttention(model.model.diffusion_model.blocks[0].cross_attn.forward) for _ in range(2)]
    before.add_object_patch(place, others[0])
    after.add_object_patch(place, others[1])
    for patched, other in zip((attach_memory(before, FULL), after), others, strict=True):
        film = render(patched, prompts=(prompt(0),), attached=True)
        assert other.calls > 0
        assert torch.equal(film.latents, plain.latents)
