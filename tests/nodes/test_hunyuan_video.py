"""HunyuanVideo remembers: what memory gives is attention as it is defined, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import LATENT_CHANNELS, TINY_SIZE
from hunyuan_film import ANCHORED, FULL, SPEC, drawn, hunyuan_film, lively_hunyuan, words
from numerics import FORWARD_ERROR, GUIDANCE_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import Chunk, plan_chunks, plan_frames
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.presets import PRESETS
from longreel.memory.prompt_bank import PromptBankConfig
from longreel.memory.select import select_frames
from longreel.memory.session import Phase, RunSession
from longreel.nodes.host.attach import adapter_for, attach_memory
from longreel.nodes.host.attention import chunk_rope
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH, TEXT_WIDTH
from longreel.nodes.host.film_sampler import SeededNoise
from longreel.nodes.host.keys import SESSION

FRAME_TOKENS = TINY_SIZE[0] * TINY_SIZE[1] // 4
WORDS = 7
LEVEL = 300.0
ABSOLUTE = PositionPolicy.ABSOLUTE
WINDOW_AND_SINK = MemoryConfig(window_frames=6, sink_frames=1)
FORGETFUL = MemoryConfig(window_frames=3, sink_frames=0, positions=ANCHORED)
CHOOSY = MemoryConfig(3, 1, ANCHORED, bank=BankConfig(frames_worth=0.5, shortlist=16, index_frames=3))
EVERY_PAGE = replace(CHOOSY, bank=BankConfig(frames_worth=1000.0, shortlist=100_000))
ONE_AND_ONE, TWO_SHOTS = plan_chunks((2, 1), 3), plan_chunks((2, 2), 3)


@pytest.fixture(scope="module", params=[True, False], ids=["distilled guidance", "no guidance input"])
def model(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return lively_hunyuan(replace(SPEC, guidance=request.param))


@pytest.fixture(scope="module")
def distilled(host: object) -> ModelPatcher:
    return lively_hunyuan(SPEC)


def inputs() -> dict[str, Tensor]:
    """What the network is given beside latents and time."""
    return {
        "context": drawn(1, 1, WORDS, TEXT_WIDTH),
        "y": drawn(2, 1, CLIP_WIDTH),
        "guidance": torch.tensor([6.0]),
    }


def in_one_piece(
    model: ModelPatcher, chunks: list[Tensor], config: MemoryConfig, level: float, mask: Tensor | None = None
) -> Tensor:
    """The definition: the whole film in one forward of the host's network, with a mask that says who sees whom.

    Every chunk has its own copy of the text. Text and picture of a chunk see that copy, and the pictures of the frames that
    the chunk reads and of its own; the token refiner sees a copy alone. `level` is the time step of everybody, `mask` says which words are read.
    """
    plan = plan_frames(sum(chunk.shape[2] for chunk in chunks), chunks[0].shape[2])
    chunk_of_word = torch.arange(len(chunks)).repeat_interleave(WORDS)
    chunk_of_frame = torch.tensor([chunk.index for chunk in plan.chunks for _ in chunk.frames])
    frame_of_picture = torch.arange(len(chunk_of_frame)).repeat_interleave(FRAME_TOKENS)
    chunk_of_token = torch.cat([chunk_of_word, chunk_of_frame[frame_of_picture]])
    sees_frame = torch.zeros(len(chunks), len(chunk_of_frame), dtype=torch.bool)
    for chunk in plan.chunks:
        read = select_frames(range(chunk.frames.start), chunk.frames.start, plan.longest_chunk, config).read
        sees_frame[chunk.index, [*read, *chunk.frames]] = True
    live = torch.ones(WORDS, dtype=torch.bool) if mask is None else mask[0].bool()
    sees_word = (chunk_of_token[:, None] == chunk_of_word) & live.repeat(len(chunks))
    sees = torch.cat([sees_word, sees_frame[chunk_of_token][:, frame_of_picture]], dim=1)
    hidden = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)

    def masked(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        size = q.shape[2]
        return attention(q, k, v, *args, **{**kwargs, "mask": hidden[:size, :size]})

    comfy.model_management.load_models_gpu([model])
    given = inputs()
    given["context"] = given["context"].repeat(1, len(chunks), 1)
    options = {"optimized_attention_override": masked}
    out: Tensor = model.model.diffusion_model(
        torch.cat(chunks, dim=2), torch.tensor([level]), **given, transformer_options=options
    )
    return out


def with_memory(
    model: ModelPatcher, chunks: list[Tensor], config: MemoryConfig, level: float, mask: Tensor | None = None
) -> Tensor:
    """The same film chunk by chunk, each in a forward of its own."""
    remembering = attach_memory(model, config)
    comfy.model_management.load_models_gpu([remembering])
    frames, longest = sum(chunk.shape[2] for chunk in chunks), chunks[0].shape[2]
    spec = adapter_for(remembering).kv_spec(remembering, *TINY_SIZE)
    memory = KVMemory(spec, config, 1, longest, frames, words=WORDS)
    memory.allocate()
    session = RunSession(memory)
    patches = remembering.model_options["transformer_options"]["patches"]
    options = {SESSION: session, "cond_or_uncond": [0], "patches": patches}
    answers, first = [], 0
    for chunk in chunks:
        session.begin(range(first, first + chunk.shape[2]))
        with session.committing():
            given = {**inputs(), "attention_mask": mask, "transformer_options": options}
            answers.append(remembering.model.diffusion_model(chunk, torch.tensor([level]), **given))
        first += chunk.shape[2]
    return torch.cat(answers, dim=2)


@pytest.mark.parametrize("config", [replace(FULL, positions=ABSOLUTE), WINDOW_AND_SINK], ids=["full", "window"])
@pytest.mark.parametrize(("frames", "chunk_frames"), [(9, 3), (10, 4), (3, 1)])
def test_memory_is_the_attention_of_the_whole_film_in_one_piece(
    model: ModelPatcher, frames: int, chunk_frames: int, config: MemoryConfig
) -> None:
    chunks = list(drawn(5, 1, LATENT_CHANNELS, frames, *TINY_SIZE).split(chunk_frames, dim=2))
    with torch.inference_mode():
        expected, made = (film(model, chunks, config, LEVEL) for film in (in_one_piece, with_memory))
    assert relative_error(made, expected) < FORWARD_ERROR


def test_a_word_that_a_prompt_masks_is_read_by_nobody(distilled: ModelPatcher) -> None:
    chunks = list(drawn(5, 1, LATENT_CHANNELS, 6, *TINY_SIZE).split(3, dim=2))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    with torch.inference_mode():
        expected = in_one_piece(distilled, chunks, FULL, LEVEL, mask)
        made = with_memory(distilled, chunks, FULL, LEVEL, mask)
        unmasked = with_memory(distilled, chunks, FULL, LEVEL)
    assert relative_error(made, expected) < FORWARD_ERROR
    assert relative_error(unmasked, expected) > 10 * FORWARD_ERROR


@pytest.mark.parametrize("first", [0, 258, 7200])
def test_pictures_are_turned_to_their_own_time_and_words_are_not(distilled: ModelPatcher, first: int) -> None:
    """The host's table in float32 is the definition; its own for bf16 tokens is handed in, with the chunk's own times."""
    frames, network = range(first, first + 3), distilled.get_model_object("diffusion_model")
    latents = torch.zeros(1, LATENT_CHANNELS, 3, *TINY_SIZE)
    places = network.img_ids(latents)
    text = torch.zeros(1, WORDS, 3)
    handed = network.pe_embedder(torch.cat([text, network.img_ids(latents.bfloat16()).float()], dim=1))
    places[..., 0] += first
    expected = network.pe_embedder(torch.cat([text, places], dim=1))
    memory = KVMemory(
        adapter_for(distilled).kv_spec(distilled, *TINY_SIZE), WINDOW_AND_SINK, 1, 3, frames.stop, words=WORDS
    )
    memory.allocate()
    session = RunSession(memory)
    session.begin(frames)
    session.phase = Phase.COMMIT
    rope = chunk_rope(session, handed, tokens_at=2, words=WORDS)
    assert relative_error(rope.absolute, expected) < FORWARD_ERROR
    assert rope.timeless is not None
    places[..., 0] = 0
    assert relative_error(rope.timeless, network.pe_embedder(torch.cat([text, places], dim=1))) < FORWARD_ERROR


def unpatched_chunk(model: ModelPatcher, index: int) -> Tensor:
    """What the host's own Euler sampler makes of the noise of a chunk, without us, as latents of the model."""
    chunk = Chunk(index, range(3 * index, 3 * index + 3), 0)
    noise = SeededNoise((7,))(chunk, 0, (1, LATENT_CHANNELS, 3, *TINY_SIZE))
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(words(0), words(99, 3))
    sigmas = torch.tensor([1.0, 0.8333, 0.0])
    latents = guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.ksampler("euler"), sigmas, disable_pbar=True, seed=7
    )
    return model.model.process_latent_out(model.model.process_latent_in(latents))


def test_a_memory_with_nothing_to_read_makes_every_chunk_as_the_unpatched_model_does(model: ModelPatcher) -> None:
    film = hunyuan_film(model, plan_frames(6, 3), config=FORGETFUL, inner=comfy.samplers.ksampler("euler"))
    for index, finished in enumerate(film.chunks):
        mine = model.model.process_latent_out(finished.latents)
        assert torch.equal(
            model.model.process_latent_out(model.model.process_latent_in(mine)), unpatched_chunk(model, index)
        )
    assert film.read_frames == [(), ()]


@pytest.mark.parametrize("config", [FULL, CHOOSY], ids=["full", "choosy"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_two_runs_and_a_resumed_one_have_the_same_bits_and_an_unpatched_clone_is_as_before(
    distilled: ModelPatcher, config: MemoryConfig, cfg: float
) -> None:
    before = unpatched_chunk(distilled, 0)
    plan = plan_chunks((2, 2), 3, seeded_frames=1)
    settings: dict[str, Any] = {
        "config": config,
        "cfg": cfg,
        "inner": comfy.samplers.ksampler("euler"),
        "start": drawn(5, 1, LATENT_CHANNELS, 1, *TINY_SIZE),
        "recache_shots": frozenset({1}),
    }
    first, second = (hunyuan_film(distilled, plan, **settings) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    saved = {chunk.chunk.index: chunk.latents for chunk in first.chunks[:3]}
    resumed = hunyuan_film(distilled, plan, **settings, load=saved.get)
    assert [chunk.replayed for chunk in resumed.chunks] == [True, True, True, False]
    assert torch.equal(resumed.latents, first.latents)
    assert torch.equal(unpatched_chunk(distilled, 0), before)


def said_twice(conditioning: list[Any]) -> list[Any]:
    """The same prompt twice over, the second time masked: longer, and read as the prompt alone."""
    ((vectors, extras),) = conditioning
    mask = torch.tensor([[1] * WORDS + [0] * WORDS])
    return [[torch.cat([vectors] * 2, dim=1), {**extras, "attention_mask": mask}]]


@pytest.mark.parametrize("same", [words(0), said_twice(words(0))], ids=["one batch", "one after the other"])
def test_guidance_by_the_prompt_itself_changes_nothing(model: ModelPatcher, same: list[Any]) -> None:
    plan = plan_frames(9, 3)
    plain = hunyuan_film(model, plan, prompts=(words(0),))
    guided = hunyuan_film(model, plan, prompts=(words(0),), negative=same, cfg=5.0)
    assert relative_error(guided.latents, plain.latents) < GUIDANCE_ERROR
    other = hunyuan_film(model, plan, prompts=(words(0),), cfg=5.0)
    assert relative_error(other.latents, plain.latents) > 10 * GUIDANCE_ERROR


def test_distilled_guidance_reaches_the_model_and_what_is_remembered(distilled: ModelPatcher) -> None:
    films = [
        hunyuan_film(distilled, TWO_SHOTS, prompts=(words(0, guidance=strength), words(1))).latents
        for strength in (1.0, 6.0)
    ]
    assert relative_error(*films) > ROLLOUT_ERROR


@pytest.mark.parametrize("config", [FORGETFUL, FULL, CHOOSY], ids=["forgetful", "full", "choosy"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_shot_2_reads_what_shot_1_showed(distilled: ModelPatcher, config: MemoryConfig, cfg: float) -> None:
    def last_chunk(first: int) -> Tensor:
        settings: dict[str, Any] = {"config": config, "cfg": cfg, "sigmas": (1.0, 0.0)}
        return hunyuan_film(distilled, ONE_AND_ONE, prompts=(words(first), words(1, 5)), **settings).chunks[-1].latents

    assert torch.equal(last_chunk(0), last_chunk(5)) == (config is FORGETFUL)


@pytest.mark.parametrize(("policy", "cfg"), [*((policy, 1.0) for policy in PositionPolicy), (ANCHORED, 5.0)])
def test_reading_every_page_is_full_attention_words_included(
    distilled: ModelPatcher, policy: PositionPolicy, cfg: float
) -> None:
    settings: dict[str, Any] = {"positions": policy, "trained_frames": 6}
    sparse, full = (
        hunyuan_film(distilled, TWO_SHOTS, config=replace(config, **settings), cfg=cfg).latents
        for config in (EVERY_PAGE, FULL)
    )
    assert relative_error(sparse, full) < (ROLLOUT_ERROR if cfg == 1.0 else GUIDANCE_ERROR)


def test_reading_a_few_pages_is_neither_the_window_nor_everything(distilled: ModelPatcher) -> None:
    few, none, everything = (
        hunyuan_film(distilled, TWO_SHOTS, config=config).latents
        for config in (CHOOSY, replace(CHOOSY, bank=None), FULL)
    )
    assert relative_error(few, none) > ROLLOUT_ERROR
    assert relative_error(few, everything) > ROLLOUT_ERROR


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_film(distilled: ModelPatcher, preset: str) -> None:
    film = hunyuan_film(distilled, plan_chunks((3, 2), 3), config=replace(PRESETS[preset], positions=ANCHORED))
    assert film.latents.isfinite().all()
    assert film.peak_bytes > 0


def test_the_prompt_brings_back_the_shot_it_speaks_of(distilled: ModelPatcher) -> None:
    config = MemoryConfig(3, 0, ANCHORED, prompt_bank=PromptBankConfig(frames=2))
    prompts = (words(0), words(1), words(0))
    film = hunyuan_film(distilled, plan_chunks((1, 2, 1), 3), config=config, prompts=prompts)
    assert set(film.chunks[-1].brought_frames) < {0, 1, 2}
    assert len(film.chunks[-1].brought_frames) == 2


def test_times_stay_within_the_trained_length_so_that_text_is_never_farther_away(distilled: ModelPatcher) -> None:
    """The middle of a long film is like its beginning: the same noise and pages at the same times give the same bits."""
    films = [
        hunyuan_film(
            distilled,
            plan_chunks((3,), 3, seeded_frames=first),
            config=replace(WINDOW_AND_SINK, sink_frames=0, positions=ANCHORED),
            prompts=(words(0),),
        )
        for first in (0, 3000)
    ]
    assert torch.equal(films[0].latents, films[1].latents)
