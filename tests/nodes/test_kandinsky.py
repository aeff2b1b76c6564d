"""Kandinsky 5 remembers: what memory gives is attention as it is defined, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import comfy.supported_models
import pytest
import torch
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.model_patcher import ModelPatcher
from film import FULL, LATENT_CHANNELS, TINY_SIZE, Film, film_on_disk, planned, prompt, render
from hunyuan_film import drawn
from numerics import FORWARD_ERROR, GUIDANCE_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import Chunk, plan_chunks, plan_frames
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.presets import PRESETS
from longreel.memory.select import select_frames
from longreel.memory.session import RunSession
from longreel.nodes.host.attach import adapter_for, attach_memory, default_memory
from longreel.nodes.host.attention import chunk_rope
from longreel.nodes.host.build import build_tiny_vae
from longreel.nodes.host.film_sampler import SeededNoise
from longreel.nodes.host.keys import SESSION
from longreel.nodes.prompt_bank import PromptRetrievedMemoryBank

TEXT_WIDTH, CLIP_WIDTH, WORDS = 3584, 768, 7
SIZES = {"model_dim": 128, "ff_dim": 256, "time_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2}
FRAME_TOKENS = TINY_SIZE[0] * TINY_SIZE[1] // 4
LEVEL = 300.0
WINDOW_AND_SINK = MemoryConfig(window_frames=6, sink_frames=1)
FORGETFUL = MemoryConfig(window_frames=3, sink_frames=0)
CHOOSY = MemoryConfig(3, 1, bank=BankConfig(frames_worth=0.5, shortlist=16, index_frames=3))
EVERY_PAGE = replace(CHOOSY, bank=BankConfig(frames_worth=1000.0, shortlist=100_000))
TWO_SHOTS = plan_chunks((2, 2), 3)
TWO_STEPS = (1.0, 0.8333, 0.0)


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    """The host's network at tiny size, through the host's loader; beside the latents it takes a picture and a mask."""
    network = Kandinsky5(
        **SIZES,
        visual_embed_dim=4 * (2 * LATENT_CHANNELS + 1),
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 4) ** 0.5)
    return comfy.sd.load_diffusion_model_state_dict(network.state_dict(), model_options={"dtype": torch.float32})


def words(seed: int, count: int = WORDS, **extras: Any) -> list[Any]:
    """A CONDITIONING as this model's text encoders give it."""
    vectors = drawn(seed, 1, count, TEXT_WIDTH)
    return [[vectors, {"pooled_output": drawn(1000 + seed, 1, CLIP_WIDTH), **extras}]]


def film(model: ModelPatcher, *args: Any, **settings: Any) -> Film:
    own = {"config": FULL, "negative": words(99, 3), "prompts": (words(0), words(1)), "sigmas": TWO_STEPS}
    return render(model, *args, **{**own, **settings})


def forward(network: Any, latents: Tensor, options: dict[str, Any]) -> Tensor:
    mask = torch.zeros_like(latents[:, :1])
    ((context, extras),) = words(0)
    out: Tensor = network(
        torch.cat([latents, torch.zeros_like(latents), mask], dim=1),
        torch.tensor([LEVEL]),
        context,
        extras["pooled_output"],
        transformer_options=options,
    )
    return out


def in_one_piece(model: ModelPatcher, chunks: list[Tensor], config: MemoryConfig) -> Tensor:
    """The definition: the whole film in one forward of the host's network, with a mask that says who sees whom."""
    plan = plan_frames(sum(chunk.shape[2] for chunk in chunks), chunks[0].shape[2])
    sees = torch.zeros(plan.total_frames, plan.total_frames, dtype=torch.bool)
    for chunk in plan.chunks:
        read = select_frames(range(chunk.frames.start), chunk.frames.start, plan.longest_chunk, config).read
        for frame in chunk.frames:
            sees[frame, [*read, *chunk.frames]] = True
    tokens = sees.repeat_interleave(FRAME_TOKENS, 0).repeat_interleave(FRAME_TOKENS, 1)
    hidden = torch.zeros(tokens.shape).masked_fill(~tokens, -torch.inf)

    def masked(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        among_pictures = q.shape[2] == k.shape[2] == len(hidden)
        return attention(q, k, v, *args, **{**kwargs, "mask": hidden} if among_pictures else kwargs)

    comfy.model_management.load_models_gpu([model])
    return forward(model.model.diffusion_model, torch.cat(chunks, dim=2), {"optimized_attention_override": masked})


def with_memory(model: ModelPatcher, chunks: list[Tensor], config: MemoryConfig) -> Tensor:
    """The same film chunk by chunk, each in a forward of its own."""
    remembering = attach_memory(model, config)
    comfy.model_management.load_models_gpu([remembering])
    frames, longest = sum(chunk.shape[2] for chunk in chunks), chunks[0].shape[2]
    memory = KVMemory(adapter_for(remembering).kv_spec(remembering, *TINY_SIZE), config, 1, longest, frames)
    memory.allocate()
    session = RunSession(memory)
    answers, first = [], 0
    for chunk in chunks:
        session.begin(range(first, first + chunk.shape[2]))
        with session.committing():
            answers.append(forward(remembering.model.diffusion_model, chunk, {SESSION: session, "cond_or_uncond": [0]}))
        first += chunk.shape[2]
    return torch.cat(answers, dim=2)


@pytest.mark.parametrize("config", [FULL, WINDOW_AND_SINK], ids=["full", "window"])
@pytest.mark.parametrize(("frames", "chunk_frames"), [(9, 3), (10, 4), (3, 1)])
def test_memory_is_the_attention_of_the_whole_film_in_one_piece(
    model: ModelPatcher, frames: int, chunk_frames: int, config: MemoryConfig
) -> None:
    chunks = list(drawn(5, 1, LATENT_CHANNELS, frames, *TINY_SIZE).split(chunk_frames, dim=2))
    with torch.inference_mode():
        expected, made = (whole(model, chunks, config) for whole in (in_one_piece, with_memory))
        forgetful = with_memory(model, chunks, replace(FORGETFUL, window_frames=chunk_frames))
    assert relative_error(made, expected) < FORWARD_ERROR
    assert relative_error(forgetful, expected) > 10 * FORWARD_ERROR


def unpatched_chunk(model: ModelPatcher, index: int) -> Tensor:
    """What the host's own Euler sampler makes of the noise of a chunk, without us, as latents of the model."""
    chunk = Chunk(index, range(3 * index, 3 * index + 3), 0)
    noise = SeededNoise((7,))(chunk, 0, (1, LATENT_CHANNELS, 3, *TINY_SIZE))
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(words(0), words(99, 3))
    euler = comfy.samplers.ksampler("euler")
    latents = guider.sample(noise, torch.zeros_like(noise), euler, torch.tensor(TWO_STEPS), disable_pbar=True, seed=7)
    return model.model.process_latent_out(model.model.process_latent_in(latents))


def test_a_memory_with_nothing_to_read_makes_every_chunk_as_the_unpatched_model_does(model: ModelPatcher) -> None:
    made = film(model, plan_frames(6, 3), config=FORGETFUL, inner=comfy.samplers.ksampler("euler"))
    for index, finished in enumerate(made.chunks):
        mine = model.model.process_latent_out(finished.latents)
        assert torch.equal(
            model.model.process_latent_out(model.model.process_latent_in(mine)), unpatched_chunk(model, index)
        )
    assert made.read_frames == [(), ()]


@pytest.mark.parametrize("config", [FULL, CHOOSY], ids=["full", "choosy"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_two_runs_and_a_resumed_one_have_the_same_bits_and_an_unpatched_clone_is_as_before(
    model: ModelPatcher, config: MemoryConfig, cfg: float
) -> None:
    before = unpatched_chunk(model, 0)
    plan = plan_chunks((2, 2), 3, seeded_frames=1)
    settings: dict[str, Any] = {
        "config": config,
        "cfg": cfg,
        "inner": comfy.samplers.ksampler("euler"),
        "start": drawn(5, 1, LATENT_CHANNELS, 1, *TINY_SIZE),
        "recache_shots": frozenset({1}),
    }
    first, second = (film(model, plan, **settings) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    saved = {chunk.chunk.index: chunk.latents for chunk in first.chunks[:3]}
    resumed = film(model, plan, **settings, load=saved.get)
    assert [chunk.replayed for chunk in resumed.chunks] == [True, True, True, False]
    assert torch.equal(resumed.latents, first.latents)
    assert torch.equal(unpatched_chunk(model, 0), before)


@pytest.mark.parametrize("first", [0, 258, 7200])
def test_pictures_are_turned_to_their_own_time(model: ModelPatcher, first: int) -> None:
    """The host's table in float32 is the definition; its own for bf16 tokens is handed in, with the chunk's own times."""
    frames, network = range(first, first + 3), model.get_model_object("diffusion_model")
    handed = network.rope_encode_3d(3, *TINY_SIZE, dtype=torch.bfloat16)
    expected = network.rope_encode_3d(3, *TINY_SIZE, t_start=first, dtype=torch.float32)
    spec = adapter_for(model).kv_spec(model, *TINY_SIZE)
    memory = KVMemory(spec, WINDOW_AND_SINK, 1, 3, frames.stop)
    memory.allocate()
    session = RunSession(memory)
    session.begin(frames)
    assert relative_error(chunk_rope(session, handed).absolute, expected) < FORWARD_ERROR


def test_guidance_by_the_prompt_itself_changes_nothing(model: ModelPatcher) -> None:
    plain, guided, other = (
        film(model, plan_frames(9, 3), prompts=(words(0),), **settings).latents
        for settings in ({}, {"negative": words(0), "cfg": 5.0}, {"cfg": 5.0})
    )
    assert relative_error(guided, plain) < GUIDANCE_ERROR
    assert relative_error(other, plain) > 10 * GUIDANCE_ERROR


@pytest.mark.parametrize("policy", PositionPolicy)
def test_reading_every_page_is_full_attention(model: ModelPatcher, policy: PositionPolicy) -> None:
    sparse, full = (
        film(model, TWO_SHOTS, config=replace(config, positions=policy, trained_frames=6)).latents
        for config in (EVERY_PAGE, FULL)
    )
    assert relative_error(sparse, full) < ROLLOUT_ERROR


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_film(model: ModelPatcher, preset: str) -> None:
    made = film(model, plan_chunks((3, 2), 3), config=PRESETS[preset])
    assert made.latents.isfinite().all()
    assert made.peak_bytes > 0


def test_the_picture_model_of_this_family_is_refused_by_name(host: object) -> None:
    """The host tells it by its width of 2560, which is too much to load here: so its class is taken as the loader takes it."""
    config = comfy.supported_models.Kandinsky5Image({**SIZES, "visual_embed_dim": 4 * LATENT_CHANNELS})
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    picture_model = ModelPatcher(config.get_model({}, device=cpu), load_device=cpu, offload_device=cpu)
    with pytest.raises(ValueError, match="got Kandinsky5Image"):
        attach_memory(picture_model, MemoryConfig())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vae": True}, "VAE Decode (Tiled)"),
        ({"prompt": prompt(0)}, "qwen_2.5_vl_7b"),
        ({"prompt": words(0, time_dim_replace=torch.zeros(1))}, "frames put in place of others"),
    ],
    ids=["vae", "another encoder", "image to video"],
)
def test_what_its_films_cannot_be_made_of_is_refused_and_the_rest_is_good(
    model: ModelPatcher, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    def made(conditioning: list[Any], **more: Any) -> Any:
        board = replace(planned(prompts=(conditioning,)), negative=words(99, 3))
        return film_on_disk(model, board, **more).make(tmp_path)

    with pytest.raises(ValueError) as refused:  # noqa: PT011
        made(change.get("prompt", words(0)), **({"vae": build_tiny_vae()} if "vae" in change else {}))
    assert named in str(refused.value)
    assert made(words(0)).latents.isfinite().all()


def test_a_layer_that_another_pack_holds_is_refused_by_its_place(model: ModelPatcher) -> None:
    held = model.clone()
    held.add_object_patch("diffusion_model.visual_transformer_blocks.1.self_attention.forward", print)
    with pytest.raises(ValueError, match=r"visual_transformer_blocks\.1\.self_attention.*Remove that node"):
        attach_memory(held, FULL)


def test_a_scorer_that_asks_the_model_is_refused_and_its_positions_are_clamped(model: ModelPatcher) -> None:
    assert default_memory(model).positions is PositionPolicy.CLAMPED
    bank = PromptRetrievedMemoryBank.execute(model, 3, 0.3, True, "", "", scorer="key-key").args[0]
    with pytest.raises(ValueError, match="anew at every step"):
        film(bank, attached=True)
