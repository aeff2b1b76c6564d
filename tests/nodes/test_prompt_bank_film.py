"""Films whose prompts choose what comes back, in the real host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import FULL, Film, film_on_disk, planned, prompt, render
from numerics import FORWARD_ERROR, ROLLOUT_ERROR
from torch import Tensor

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.film_moments import Marks
from longreel.memory.presets import MEMFLOW, PRESETS, memflow
from longreel.memory.prompt_bank import PromptBankConfig, Scorer
from longreel.memory.text_record import TextRecord
from longreel.nodes.host.attach import attach_memory, memory_config, plan_story
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.guider import FilmGuider
from longreel.nodes.prompt_bank import PromptRetrievedMemoryBank
from longreel.nodes.sparse_kv_memory import SparseKVMemory

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
PLAN = plan_chunks((2, 2, 2, 2), 3)
# Shot 4 asks for what shot 2 showed.
PROMPTS = (prompt(0), prompt(1), prompt(2), prompt(1))
WINDOW = MemoryConfig(window_frames=3, sink_frames=1)
LISTENING = replace(WINDOW, prompt_bank=PromptBankConfig(frames=3, variety=0.3))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "causal"])
def model(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=request.param)


@pytest.fixture(scope="module")
def plain(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC)


def test_a_shot_reads_the_frames_that_its_prompt_speaks_of(model: ModelPatcher) -> None:
    film = render(model, PLAN, config=LISTENING, prompts=PROMPTS)
    last = film.chunks[-1]
    assert len(last.brought_frames) == 3
    assert set(last.brought_frames) <= set(range(6, 12))
    assert last.read_frames == tuple(sorted({0, *last.brought_frames}))
    assert last.frames_worth == 4.0
    first_of_the_shot = film.chunks[6]
    assert set(first_of_the_shot.brought_frames) <= set(range(6, 12))


def test_what_is_brought_back_changes_the_film(model: ModelPatcher) -> None:
    with_bank, without = (render(model, PLAN, config=config, prompts=PROMPTS).latents for config in (LISTENING, WINDOW))
    assert torch.equal(with_bank[:, :, :3], without[:, :, :3])
    assert not torch.equal(with_bank, without)


def test_what_is_pinned_is_always_read_and_what_is_vetoed_never(model: ModelPatcher) -> None:
    bank = PromptBankConfig(frames=3, pins="0.5s", vetoes="shot 2, 0s")  # frame 2 is pinned
    film = render(model, PLAN, config=replace(WINDOW, prompt_bank=bank), prompts=PROMPTS)
    assert film.chunks[-1].brought[2].why == "pin"
    assert len(film.chunks[-1].brought) == 4
    check_marks(film)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_storyboards_pins_and_vetoes_hold_in_every_memory(model: ModelPatcher, preset: str) -> None:
    config = PRESETS[preset]
    if config.window_frames is not None:
        config = replace(config, window_frames=3)
    film = render(model, PLAN, config=config, prompts=PROMPTS, marks=Marks("", "0.5s", "shot 2, 0s"))
    check_marks(film)


def check_marks(film: Film) -> None:
    for chunk in film.chunks:
        older = range(chunk.chunk.frames.start)
        assert (2 in chunk.read_frames) == (2 in older)
        of_its_shot = {
            frame for frame in older if frame // 6 == chunk.chunk.shot
        }  # what it may see though it is vetoed
        assert not ({0, *range(6, 12)} - of_its_shot) & set(chunk.read_frames)


def test_pages_are_never_read_of_what_is_vetoed_or_brought_back_already(model: ModelPatcher) -> None:
    searching = replace(LISTENING, bank=BankConfig(frames_worth=0.5))
    everything = replace(searching, bank=BankConfig(frames_worth=1000.0, shortlist=100_000))
    full = MemoryConfig(window_frames=None, sink_frames=0)
    made, whole = (render(model, PLAN, config=config, prompts=PROMPTS).latents for config in (everything, full))
    assert torch.allclose(made, whole, atol=1e-4 * float(whole.abs().max()))
    film = render(model, PLAN, config=searching, prompts=PROMPTS)
    assert film.chunks[-1].frames_worth == 4.5


def test_a_stopped_film_whose_prompts_choose_goes_on_with_the_same_bits(model: ModelPatcher) -> None:
    config = replace(LISTENING, bank=BankConfig(frames_worth=0.5, shortlist=16, index_frames=3))
    whole = render(model, PLAN, config=config, prompts=PROMPTS)
    kept = {chunk.chunk.index: chunk.latents for chunk in whole.chunks[:5]}
    resumed = render(model, PLAN, config=config, prompts=PROMPTS, load=kept.get)
    assert torch.equal(resumed.latents, whole.latents)


def test_a_longer_film_starts_with_the_shorter_one_though_its_prompts_choose(model: ModelPatcher) -> None:
    more = (*PROMPTS, prompt(2))
    short = render(model, plan_chunks((2, 2, 2), 3), config=LISTENING, prompts=PROMPTS[:3]).latents
    long = render(model, plan_chunks((2, 2, 2, 2, 1), 3), config=LISTENING, prompts=more).latents
    assert torch.equal(long[:, :, : short.shape[2]], short)


def test_the_node_goes_before_or_after_sparse_kv_memory_or_alone(model: ModelPatcher) -> None:
    def sparse(given: ModelPatcher) -> ModelPatcher:
        return SparseKVMemory.execute(given, "LongReel", 9, 3, "clamped", 12).args[0]

    def bank(given: ModelPatcher) -> ModelPatcher:
        return PromptRetrievedMemoryBank.execute(given, 4, 0.2, True, "", "").args[0]

    before, after, alone = (memory_config(made) for made in (sparse(bank(model)), bank(sparse(model)), bank(model)))
    assert before == after
    assert before is not None
    assert before.bank is not None
    assert before.prompt_bank == PromptBankConfig(4, 0.2, anchors=True)
    assert alone == MemoryConfig(prompt_bank=PromptBankConfig(4, 0.2, anchors=True))


def test_the_published_bank_is_a_preset(model: ModelPatcher) -> None:
    made = PromptRetrievedMemoryBank.execute(model, 7, 0.2, True, "1s", "", preset=MEMFLOW).args[0]
    config = memory_config(made)
    assert config == memflow(MemoryConfig(), pins="1s")
    assert config is not None
    assert (config.window_frames, config.sink_frames) == (9, 3)
    assert config.prompt_bank is not None
    assert (config.prompt_bank.frames, config.prompt_bank.record_every) == (3, 9)


def bank_of(scorer: Scorer, **settings: Any) -> MemoryConfig:
    return replace(WINDOW, prompt_bank=PromptBankConfig(frames=2, scorer=scorer, **settings))


BANKS = {
    "key-key": bank_of(Scorer.KEY_KEY),
    "key-key, per layer": bank_of(Scorer.KEY_KEY, variety=0.0, per_layer=True),
    "attention mass": bank_of(Scorer.ATTENTION_MASS),
    "attention mass, per layer": bank_of(Scorer.ATTENTION_MASS, per_layer=True),
    "visual query": bank_of(Scorer.VISUAL_QUERY),
    "visual query, per layer": bank_of(Scorer.VISUAL_QUERY, per_layer=True),
    "parts": bank_of(Scorer.LATE_INTERACTION, parts=0.5),
    "MemFlow": replace(memflow(WINDOW), window_frames=3, sink_frames=1),
}


@pytest.mark.parametrize("name", BANKS)
def test_a_stopped_film_goes_on_with_the_same_bits_whatever_scores(plain: ModelPatcher, name: str) -> None:
    whole = render(plain, PLAN, config=BANKS[name], prompts=PROMPTS, cfg=2.0)
    kept = {chunk.chunk.index: chunk.latents for chunk in whole.chunks[:5]}
    resumed = render(plain, PLAN, config=BANKS[name], prompts=PROMPTS, cfg=2.0, load=kept.get)
    assert torch.equal(resumed.latents, whole.latents)
    assert [chunk.brought for chunk in resumed.chunks] == [chunk.brought for chunk in whole.chunks]
    assert all(chunk.brought for chunk in whole.chunks[4:])


@pytest.mark.parametrize("scorer", [Scorer.KEY_KEY, Scorer.ATTENTION_MASS, Scorer.VISUAL_QUERY])
def test_a_window_that_is_encoded_anew_is_recorded_anew(plain: ModelPatcher, scorer: Scorer) -> None:
    config = replace(bank_of(scorer), window_frames=6)
    film = render(plain, PLAN, config=config, prompts=PROMPTS, recache_shots=frozenset({2}))
    assert film.chunks[4].recached_frames == (9, 10, 11)
    assert film.latents.isfinite().all()
    assert all(len(chunk.brought) == 2 for chunk in film.chunks[4:])


@pytest.mark.parametrize("scorer", [Scorer.KEY_KEY, Scorer.ATTENTION_MASS, Scorer.VISUAL_QUERY])
def test_layers_that_choose_for_themselves_read_the_same_of_a_bank_that_holds_all(
    plain: ModelPatcher, scorer: Scorer
) -> None:
    everything = replace(WINDOW, prompt_bank=PromptBankConfig(frames=100, scorer=scorer, per_layer=True))
    made, full = (render(plain, PLAN, config=config, prompts=PROMPTS).latents for config in (everything, FULL))
    assert torch.allclose(made, full, atol=ROLLOUT_ERROR * float(full.abs().max()))


def test_a_bank_whose_parts_are_all_read_is_read_whole(plain: ModelPatcher) -> None:
    whole, parts = (
        render(
            plain, PLAN, config=replace(WINDOW, prompt_bank=PromptBankConfig(frames=3, parts=parts)), prompts=PROMPTS
        )
        for parts in (0.0, 3.0)
    )
    assert torch.allclose(parts.latents, whole.latents, atol=ROLLOUT_ERROR * float(whole.latents.abs().max()))
    assert parts.chunks[-1].brought == whole.chunks[-1].brought
    assert parts.chunks[-1].read_frames == (0,)


def test_parts_of_a_bank_and_a_search_of_the_whole_film_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="Set 'parts'"):
        replace(WINDOW, bank=BankConfig(), prompt_bank=PromptBankConfig(parts=1.0))


def test_banks_of_layers_and_a_search_of_the_whole_film_exclude_each_other() -> None:
    """A page of a frame that one layer reads whole would be hidden from all others."""
    with pytest.raises(ValueError, match="Turn 'per_layer'"):
        replace(bank_of(Scorer.KEY_KEY, per_layer=True), bank=BankConfig())


def test_what_a_bank_hears_of_the_text_is_what_cross_attention_computes(plain: ModelPatcher) -> None:
    """The keys of a prompt that no chunk was made under yet, padding left out."""
    padded = [[torch.cat([PROMPTS[1][0][0], torch.zeros(1, 50, 4096)], dim=1), {}]]
    remembering = attach_memory(plain, BANKS["key-key"])
    guider = FilmGuider(remembering, (PROMPTS[0], padded), prompt(9), 1.0)
    guider.inner_model = remembering.model
    sampler = film_on_disk(remembering, planned("[1.5s] a\n[1.5s] b")).film_sampler(None, None)
    heard: Tensor = plan_story(guider, sampler).text_keys(1)
    network = remembering.model.diffusion_model
    context = network.text_embedding(PROMPTS[1][0][0])
    cross = network.blocks[1].cross_attn
    expected = cross.norm_k(cross.k(context))[0].mean(dim=0)
    assert torch.allclose(heard[1].flatten(), expected, atol=FORWARD_ERROR)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_what_is_recorded_is_of_the_films_own_stream_and_of_real_words(
    plain: ModelPatcher, cfg: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, range, tuple[int, ...], int]] = []

    def write(self: TextRecord, layer: int, frames: range, q: Tensor, k: Tensor) -> None:
        written.append((layer, frames, tuple(q.shape), len(k)))

    monkeypatch.setattr(TextRecord, "write", write)
    padded = [[torch.cat([prompt(0)[0][0], torch.zeros(1, 50, 4096)], dim=1), {}]]
    render(plain, plan_chunks((1, 1), 3), config=BANKS["attention mass"], prompts=(padded, prompt(1, words=4)), cfg=cfg)
    tokens = 3 * 6 * 8
    assert written == [
        (layer, frames, (tokens, 1, 128), words)
        for frames, words in ((range(3), 7), (range(3, 6), 4))
        for layer in range(2)
    ]


def test_a_scorer_that_cannot_listen_is_refused_with_a_way_out(plain: ModelPatcher) -> None:
    taken = plain.clone()
    taken.add_object_patch("diffusion_model.blocks.0.cross_attn.forward", lambda x, context, **kwargs: x)
    film = film_on_disk(attach_memory(taken, BANKS["visual query"]), planned())
    with pytest.raises(ValueError, match=r"'visual query' needs the model's cross-attention.*'late interaction'"):
        film.check()


def test_memory_that_reads_everything_needs_no_prompt_bank(model: ModelPatcher) -> None:
    full = attach_memory(model, MemoryConfig(window_frames=None, sink_frames=0))
    with pytest.raises(ValueError, match="reads everything needs no bank"):
        PromptRetrievedMemoryBank.execute(full, 3, 0.2, True, "", "")


@pytest.mark.parametrize(
    ("pin", "said"),
    [("90s", "lies behind the film"), ("shot 7", "one of the film's 2 shots")],
)
def test_pins_that_make_no_sense_are_told_before_anything_is_loaded(model: ModelPatcher, pin: str, said: str) -> None:
    (remembering,) = PromptRetrievedMemoryBank.execute(model, 3, 0.2, True, pin, "").args
    film = film_on_disk(remembering, planned("[1.5s] a beach\n[1.5s] a town"))
    with pytest.raises(ValueError, match=said):
        film.check()


def test_anchors_bring_back_the_shots_that_mention_the_character(model: ModelPatcher) -> None:
    text = "@anna: a girl\n@ben: a boy\n[1.5s] @anna walks\n[1.5s] @ben walks\n[1.5s] a town\n[1.5s] @anna sits"
    storyboard = planned(text, prompts=tuple(prompt(seed) for seed in range(4)))  # prompts that have nothing in common
    (remembering,) = PromptRetrievedMemoryBank.execute(attach_memory(model, WINDOW), 3, 0.0, True, "", "").args
    film = film_on_disk(remembering, storyboard)
    sampler = film.film_sampler(None, None)
    assert sampler.cast == ({"anna"}, {"ben"}, set(), {"anna"})
    brought = (
        render(remembering, film.plan, prompts=storyboard.conditionings, attached=True, cast=sampler.cast)
        .chunks[-1]
        .brought_frames
    )
    assert len(brought) == 3
    assert set(brought) <= set(range(6))


@pytest.mark.parametrize("config", [WINDOW, LISTENING], ids=["window + sink", "prompt bank"])
def test_what_is_pinned_is_planned_for_and_never_forgotten(model: ModelPatcher, config: MemoryConfig) -> None:
    pins = Marks("", "0.75s-1.25s")  # frames 3 to 5
    film = render(model, PLAN, config=config, prompts=PROMPTS, marks=pins)
    plain = render(model, PLAN, config=config, prompts=PROMPTS)
    assert set(film.chunks[-1].read_frames) == {3, 4, 5} | set(plain.chunks[-1].read_frames)
    frame = film.peak_bytes - plain.peak_bytes
    assert frame > 0


def test_pins_and_vetoes_are_another_setting_only_as_far_as_they_change_the_film(model: ModelPatcher) -> None:
    text = "[1.5s] a beach\n[1.5s] a town"
    (bank,) = PromptRetrievedMemoryBank.execute(attach_memory(model, WINDOW), 3, 0.0, True, "0.5s", "").args
    pinned = film_on_disk(bank, planned(text))
    same = [film_on_disk(bank, planned(f"pin: {pin}\n{text}")) for pin in ("0.5s", "0.48s", "0.5s, 2.75s")]
    others = [film_on_disk(bank, planned(f"{line}\n{text}")) for line in ("pin: 1s", "veto: 1s")]
    assert all(film._settings() == pinned._settings() for film in same)
    assert all(film._settings() != pinned._settings() for film in others)
    assert others[0]._settings() != others[1]._settings()
