"""Laws of the prompt bank: what may come back, what must, what never."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import FORWARD_ERROR
from torch import Tensor

from longreel.memory.chunks import Plan, plan_chunks
from longreel.memory.film_moments import Marks, Moments, find_moments, read_moments
from longreel.memory.prompt_affinity import PromptAffinity
from longreel.memory.prompt_bank import PromptBankConfig, Scorer, Wish, choose_bank
from longreel.memory.select import Choice
from longreel.memory.story import Story, make_story
from longreel.memory.transitions import Reach
from longreel.memory.wishes import grant

PLAN = plan_chunks((2, 3, 4), 3)
FPS = 16.0
WORDS: dict[str, Tensor] = {}


def word(text: str) -> Tensor:
    """A vector that stands for a word."""
    if text not in WORDS:
        WORDS[text] = torch.randn(256, generator=torch.Generator().manual_seed(len(WORDS) + 1))
    return WORDS[text]


def said(text: str) -> Tensor:
    return torch.stack([word(each) for each in text.split()])


def unlike(frames: Sequence[int], others: Sequence[int]) -> Tensor:
    return torch.tensor([[float(a == b) for b in others] for a in frames])


def scored(scores: dict[int, float], **marks: frozenset[int]) -> Wish:
    """A wish with these scores, and 0 for other frames of the first 500."""
    return Wish(torch.tensor([scores.get(frame, 0.0) for frame in range(500)])[None, :, None], range(500), **marks)


def affinity_of(prompts: Sequence[Tensor], film: int | None = None) -> Tensor:
    """Affinity `[prompts, film]`, 0 to later shots."""
    affinity = PromptAffinity(prompts, film)
    rows = [affinity.evidence(asking).sum(dim=1) for asking in range(len(prompts))]
    return torch.stack([torch.nn.functional.pad(row, (0, affinity.film - len(row))) for row in rows])


frame_sets = st.sets(st.integers(0, 400), max_size=200)


@given(
    frame_sets,
    st.dictionaries(st.integers(0, 60), st.floats(0, 2), max_size=60),
    st.sets(st.integers(0, 400), max_size=8),
    st.sets(st.integers(0, 60), max_size=10),
    st.integers(0, 401),
    st.none() | st.builds(PromptBankConfig, frames=st.integers(1, 150), variety=st.floats(0, 1)),
    st.booleans(),
)
def test_no_frame_twice_pins_always_vetoes_never_and_never_too_many(
    frames: set[int],
    scores: dict[int, float],
    pinned: set[int],
    vetoed: set[int],
    cut: int,
    config: PromptBankConfig | None,
    searched: bool,
) -> None:
    """Whatever else the memory reads: with and without a prompt bank, with and without pages, behind a cut, too."""
    wish = scored(scores, pinned=frozenset(pinned - vetoed), vetoed=frozenset(vetoed))
    older = sorted(frames)
    dense = tuple(older[-5:])
    pages = tuple(older[:-5]) if searched else ()
    ((read, bank),), brought = grant(wish, Choice(dense, pages), older, Reach(0, cut), config, unlike)
    assert list(read) == sorted(set(read))
    assert not set(read) & set(bank)
    assert set(read) | set(bank) <= frames - vetoed
    assert frames & (pinned - vetoed) <= set(read)
    assert set(brought) == set(read) - set(dense)
    limit = 0 if config is None else config.frames
    of_prompt = [frame for frame in brought if brought[frame].why != "pin"]
    open_frames = [frame for frame in older[:-5] if frame >= cut and frame not in vetoed | pinned]
    assert len(of_prompt) == min(limit, len(open_frames))
    assert all(frame >= cut for frame in of_prompt)


@given(st.dictionaries(st.integers(0, 60), st.floats(0, 1), min_size=5, max_size=60))
def test_without_variety_the_bank_is_the_best_frames(scores: dict[int, float]) -> None:
    chosen = choose_bank(sorted(scores), scored(scores), PromptBankConfig(frames=3, variety=0.0), unlike)
    best = sorted(scores.values(), reverse=True)[:3]
    assert sorted((scores[frame] for frame in chosen), reverse=True) == best


def test_a_bank_shows_all_that_a_prompt_speaks_of_and_not_three_times_the_place() -> None:
    """Three shots say the same of the place; the only one that says who comes is less like the prompt than each of them."""
    film = [said("zoe snow moon"), *[said(f"{name} waves left at the old harbour") for name in ("ben", "cleo", "dora")]]
    prompts = [*film, said("zoe waves left at the old harbour")]
    story = make_story(plan_chunks((1,) * 5, 1), prompts, (), Moments(), PromptBankConfig())
    scores = [story.wish(4).score(frame) or 0.0 for frame in range(4)]
    assert max(range(4), key=scores.__getitem__) > 0
    assert 0 in choose_bank(range(4), story.wish(4), PromptBankConfig(frames=2, variety=0.0), unlike)


def test_variety_keeps_a_bank_from_being_three_copies_of_one_frame() -> None:
    """As MemFlow's released bank becomes."""
    scores = dict.fromkeys(range(10), 1.0) | {10: 0.9, 11: 0.8}

    def alike(frames: Sequence[int], others: Sequence[int]) -> Tensor:
        return torch.tensor([[1.0 if max(a, b) < 10 or a == b else 0.0 for b in others] for a in frames])

    chosen = choose_bank(range(12), scored(scores), PromptBankConfig(frames=3, variety=0.5), alike)
    assert chosen == (9, 10, 11)


def test_a_frame_of_the_first_second_can_be_chosen_in_the_tenth_minute() -> None:
    plan = plan_chunks((1, *[10] * 79, 1), 3)
    prompts = [said("anna red beach"), *[said(f"town street {number}") for number in range(79)], said("anna town")]
    story = make_story(plan, prompts, (), Moments(), PromptBankConfig())
    chosen = choose_bank(range(plan.total_frames - 3), story.wish(80), PromptBankConfig(variety=0.0), unlike)
    assert plan.total_frames * 4 / FPS > 590
    assert chosen == (0, 1, 2)


def test_a_rare_word_says_more_than_a_common_one() -> None:
    prompts = [said("anna in a forest"), *[said(f"ben in a forest {n}") for n in range(6)], said("anna in a desert")]
    affinity = affinity_of(prompts)
    assert int(affinity[-1, :-1].argmax()) == 0


def test_a_prompt_is_nearest_to_itself_and_padding_does_not_count() -> None:
    prompts = [said("anna in a forest"), said("ben on a beach"), said("the moon over a town")]
    affinity = affinity_of(prompts)
    padded = affinity_of([torch.cat([prompt, torch.zeros(500, 256)]) for prompt in prompts])
    assert torch.equal(affinity, padded)
    assert torch.equal(affinity.argmax(dim=1), torch.arange(3))
    assert bool((affinity.diagonal() > 0.999).all())
    assert torch.equal(affinity, affinity.tril())
    assert float(affinity.min()) >= 0


def test_who_only_asks_does_not_change_what_is_rare() -> None:
    """As the mixed prompts of a blend, and those by which the benchmark looks at a film."""
    film = [said("anna red beach"), said("ben green town"), said("cleo town"), said("anna town")]
    mixed = [torch.lerp(film[0], film[1], weight / 17) for weight in range(1, 17)]
    alone, asked = affinity_of(film), affinity_of([*film, *mixed], 4)
    assert asked.shape == (20, 4)
    assert torch.allclose(asked[:4], alone, atol=FORWARD_ERROR)


def test_a_prompt_that_comes_again_is_worth_the_same() -> None:
    film = [said("anna beach"), said("ben town"), said("anna beach")]
    affinity = affinity_of(film)
    assert float(affinity[2, 0]) == float(affinity[2, 2])


def test_a_longer_film_knows_of_its_first_shots_what_the_shorter_one_knows() -> None:
    film = [said("anna red beach"), said("ben town"), said("cleo beach"), said("anna town"), said("red moon")]
    assert torch.equal(affinity_of(film)[:3, :3], affinity_of(film[:3]))


def test_a_vetoed_shot_sees_itself_while_it_is_made() -> None:
    moments = find_moments(PLAN, FPS, Marks("of the Storyboard", vetoes="shot 2"))
    story = make_story(PLAN, [said("a"), said("b"), said("c")], (), moments, None)
    assert story.wish(1).vetoed == frozenset()
    assert story.wish(2).vetoed == frozenset(range(6, 15))


def test_prompts_that_are_all_the_same_are_equally_near() -> None:
    affinity = affinity_of([said("a beach")] * 3)
    assert float(affinity[-1].max() - affinity[-1].min()) == 0


def test_the_first_chunk_of_a_new_prompt_is_scored_with_that_prompt() -> None:
    """MemFlow's released code has a query of zeros there."""
    prompts = [said("anna beach"), said("ben town"), said("anna road")]
    story = make_story(plan_chunks((2, 2, 2), 3), prompts, (), Moments(), PromptBankConfig())
    scores = [story.wish(2).score(frame) or 0.0 for frame in range(12)]
    assert min(scores[:6]) > max(scores[6:])
    assert scores[3] == pytest.approx(float(affinity_of(prompts)[2, 0]), abs=1e-4)


def test_frames_of_shots_that_mention_a_character_come_first() -> None:
    affinity = PromptAffinity([said("red beach"), said("old town"), said("old town")])
    story = Story([0, 0, 1, 1, 2], affinity, tuple(map(frozenset, ({"anna"}, {"ben"}, {"anna"}))))
    config = PromptBankConfig(frames=3, variety=0.0)
    ((read, _),), brought = grant(story.wish(2), Choice((), ()), range(4), Reach(), config, unlike)
    assert read == (0, 1, 3)
    assert {frame: why for frame, (why, _) in brought.items()} == {0: "anchor", 1: "anchor", 3: "prompt"}


def test_a_long_shot_does_not_crowd_out_whom_it_brought_back() -> None:
    prompts = [said("anna beach"), said("ben town"), said("anna beach")]
    story = make_story(plan_chunks((1, 1, 9), 3), prompts, (), Moments(), PromptBankConfig(variety=0.0))
    chosen = choose_bank(range(30), story.wish(2), PromptBankConfig(frames=4, variety=0.0), unlike)
    assert chosen == (0, 1, 2, 29)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("", ()),
        ("0s", (0,)),
        ("0.25s", (1,)),
        ("1s", (4,)),
        ("shot 2", tuple(range(6, 15))),
        ("1s-2s", (4, 5, 6, 7, 8)),
        ("0s, 1s; shot 1", (0, 1, 2, 3, 4, 5)),
    ],
)
def test_moments_are_frames_of_the_film(text: str, frames: tuple[int, ...]) -> None:
    assert read_moments(text, PLAN, FPS) == frozenset(frames)


@pytest.mark.parametrize(
    ("pins", "vetoes", "message"),
    [
        ("60s", "", r"'pin' of the Storyboard: '60s' lies behind the film, which is 6\.6 s long"),
        ("", "shot 9", "'veto' of the Storyboard: .*one of the film's 3 shots"),
        ("soon", "", "'soon' needs to be a time, two times or a shot"),
        ("4s-2s", "", "two times, the earlier one first"),
        ("1s", "shot 1", "pinned and vetoed, the first one is frame 4"),
    ],
)
def test_pins_that_make_no_sense_are_refused(pins: str, vetoes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_moments(PLAN, FPS, Marks("of the Storyboard", pins, vetoes))


def test_pins_of_several_places_add_up_and_may_not_contradict_each_other() -> None:
    board, bank = Marks("of the Storyboard", "0s, 1s", "3s"), Marks("of the bank", "1s; 2s", "shot 3")
    moments = find_moments(PLAN, FPS, board, bank)
    assert moments.pinned == {0, 4, 8}
    assert moments.vetoed == {12, *range(15, 27)}
    assert moments.described(PLAN)["vetoed"] == [12, *range(15, 24)]
    with pytest.raises(ValueError, match="pinned and vetoed"):
        find_moments(PLAN, FPS, board, Marks("of the bank", vetoes="0s-2s"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "at least 1 frame"),
        ({"variety": 2.0}, "0 to 1"),
        ({"record_every": 0}, "every 1 or more"),
        ({"parts": 3.5}, "from 0 to the 3 frames"),
        ({"parts": 1.0, "scorer": Scorer.KEY_KEY, "per_layer": True}, "same frames for all layers"),
        ({"per_layer": True}, "Choose another scorer"),
    ],
)
def test_a_bank_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptBankConfig(**settings)


def test_moments_of_a_plan_with_a_start_image_lie_behind_it() -> None:
    plan: Plan = plan_chunks((2, 2), 3, seeded_frames=1)
    assert read_moments("shot 2", plan, FPS) == frozenset(range(7, 13))
    assert read_moments("shot 1", plan, FPS) == frozenset(range(7))
