"""Films that choose what they read, in the real host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import FULL, prompt, render
from numerics import EIGHT_BIT_FILM_ERROR, GUIDANCE_ERROR, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.chunks import Plan, plan_chunks, plan_frames
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.frame_pages import PageShape
from longreel.memory.positions import PositionPolicy
from longreel.memory.presets import PRESETS
from longreel.memory.rollout import FinishedChunk
from longreel.nodes.host import attach
from longreel.nodes.host.attach import memory_config
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.sparse_kv_memory import OPTIONS, SparseKVMemory

SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
# Fewer pages than there are: shortlist, index and lists all have to choose.
CHOOSY = MemoryConfig(3, 1, bank=BankConfig(frames_worth=0.5, shortlist=16, index_frames=3))
EVERYTHING = MemoryConfig(3, 1, bank=BankConfig(frames_worth=1000.0, shortlist=100_000))
SEARCHING = ("LongReel", "OmniMem", "DecMem")
TWO_SHOTS = plan_chunks((3, 2), 3)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "causal"])
def model(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=request.param)


@pytest.mark.parametrize("policy", PositionPolicy)
@pytest.mark.parametrize("plan", [plan_frames(15, 3), plan_frames(7, 1), plan_frames(13, 4)], ids=["3", "1", "4"])
def test_reading_every_page_is_full_attention(model: ModelPatcher, plan: Plan, policy: PositionPolicy) -> None:
    window = plan.longest_chunk
    settings = {"positions": policy, "trained_frames": 6}
    sparse = render(model, plan, config=replace(EVERYTHING, window_frames=window, **settings)).latents
    full = render(model, plan, config=replace(FULL, **settings)).latents
    assert relative_error(sparse, full) < ROLLOUT_ERROR


@pytest.mark.parametrize("shape", PageShape)
def test_reading_every_page_is_full_attention_for_pages_of_any_shape(model: ModelPatcher, shape: PageShape) -> None:
    bank = BankConfig(frames_worth=1000.0, shortlist=100_000, pages=shape)
    sparse = render(model, TWO_SHOTS, config=replace(EVERYTHING, bank=bank)).latents
    assert relative_error(sparse, render(model, TWO_SHOTS).latents) < ROLLOUT_ERROR


def test_reading_every_page_is_full_attention_under_guidance(model: ModelPatcher) -> None:
    prompts, negative = (prompt(0, words=7), prompt(1, words=4)), prompt(99, words=11)
    sparse, full = (
        render(model, TWO_SHOTS, config=config, cfg=5.0, prompts=prompts, negative=negative).latents
        for config in (EVERYTHING, FULL)
    )
    assert relative_error(sparse, full) < GUIDANCE_ERROR


def test_reading_a_few_pages_is_neither_the_window_nor_everything(model: ModelPatcher) -> None:
    few, none, everything = (
        render(model, TWO_SHOTS, config=config).latents for config in (CHOOSY, replace(CHOOSY, bank=None), FULL)
    )
    assert relative_error(few, none) > ROLLOUT_ERROR
    assert relative_error(few, everything) > ROLLOUT_ERROR


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_shot_2_reads_pages_of_shot_1(model: ModelPatcher, cfg: float) -> None:
    """The only difference between the films is what the bank holds: the middle of shot 1."""

    def last_chunk(first_words: int) -> Tensor:
        prompts = (prompt(first_words), prompt(1, words=5))
        made = render(model, TWO_SHOTS, config=CHOOSY, prompts=prompts, cfg=cfg, load=load).chunks[-1].latents
        return made

    def load(index: int) -> Tensor | None:
        return same[index] if index != 1 and index < 4 else None

    same = [chunk.latents for chunk in render(model, TWO_SHOTS, config=FULL, cfg=cfg).chunks]
    assert not torch.equal(last_chunk(0), last_chunk(5))


def test_two_runs_that_choose_give_the_same_bits(model: ModelPatcher) -> None:
    first, second = (render(model, TWO_SHOTS, config=CHOOSY).latents for _ in range(2))
    assert torch.equal(first, second)


def test_a_longer_film_that_chooses_starts_with_the_shorter_one(model: ModelPatcher) -> None:
    short, long = (render(model, plan_chunks(shots, 3), config=CHOOSY).latents for shots in ((3, 1), (3, 4)))
    assert torch.equal(long[:, :, : short.shape[2]], short)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_a_film_that_chooses_and_was_stopped_goes_on_with_the_same_bits(model: ModelPatcher, cfg: float) -> None:
    whole = render(model, TWO_SHOTS, config=CHOOSY, cfg=cfg)
    kept = {chunk.chunk.index: chunk.latents for chunk in whole.chunks[:3]}
    resumed = render(model, TWO_SHOTS, config=CHOOSY, cfg=cfg, load=kept.get)
    assert [chunk.replayed for chunk in resumed.chunks] == [True, True, True, False, False]
    assert torch.equal(resumed.latents, whole.latents)


def test_recache_encodes_the_window_anew_and_leaves_the_bank_as_it_was(model: ModelPatcher) -> None:
    config = replace(CHOOSY, window_frames=6)
    film = render(model, TWO_SHOTS, config=config, recache_shots=frozenset({1}))
    assert film.chunks[3].recached_frames == (6, 7, 8)
    assert not torch.equal(film.latents, render(model, TWO_SHOTS, config=config).latents)


def test_pages_in_files_make_the_film_of_pages_in_ram_and_leave_no_file(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_ram = render(model, TWO_SHOTS, config=CHOOSY).latents
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(attach, "fits_in_ram", lambda needed: False)
    seen: list[set[str]] = []

    def look(chunk: FinishedChunk) -> None:
        seen.append({file.name for file in tmp_path.glob("*/*")})

    assert torch.equal(render(model, TWO_SHOTS, config=CHOOSY, on_chunk=look).latents, in_ram)
    assert seen == [{"keys", "values", "page_means", "frame_means"}] * 5
    assert list(tmp_path.iterdir()) == []


def test_pages_of_8_bits_make_nearly_the_same_film(model: ModelPatcher) -> None:
    assert EVERYTHING.bank is not None
    config = replace(EVERYTHING, bank=replace(EVERYTHING.bank, eight_bit=True))
    rounded, exact = (render(model, TWO_SHOTS, config=c).latents for c in (config, EVERYTHING))
    assert not torch.equal(rounded, exact)
    assert relative_error(rounded, exact) < EIGHT_BIT_FILM_ERROR


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_film(model: ModelPatcher, preset: str) -> None:
    film = render(model, plan_frames(15, 3), config=PRESETS[preset])
    assert torch.isfinite(film.latents).all()
    older = film.chunks[-1].chunk.frames.start
    assert 0 < film.chunks[-1].frames_worth <= older


@pytest.mark.parametrize("preset", OPTIONS)
def test_every_choice_of_the_node_is_a_memory(model: ModelPatcher, preset: str) -> None:
    (remembering,) = SparseKVMemory.execute(
        model, preset, 6, 2, "clamped", 12, read=1.5, look_back=40, eight_bit=True
    ).args
    config = memory_config(remembering)
    assert config is not None
    assert (config.positions, config.trained_frames) == (PositionPolicy.CLAMPED, 12)
    if preset in PRESETS:
        assert (config.window_frames, config.sink_frames) == (
            PRESETS[preset].window_frames,
            PRESETS[preset].sink_frames,
        )
    else:
        assert (config.window_frames, config.sink_frames) == (6, 0 if preset == "window" else 2)
    searches = preset in (*SEARCHING, "custom")
    assert (config.bank is not None) == searches
    if config.bank is not None:
        assert (config.bank.look_back, config.bank.eight_bit) == (40, True)
        assert preset in SEARCHING or config.bank.frames_worth == 1.5


def test_custom_that_may_read_nothing_has_no_bank(model: ModelPatcher) -> None:
    (remembering,) = SparseKVMemory.execute(model, "custom", 6, 2, "absolute", 21, read=0.0).args
    config = memory_config(remembering)
    assert config is not None
    assert config.bank is None
