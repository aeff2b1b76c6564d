"""Scores of frames by what the model itself sees: by keys, by queries, by attention."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import FORWARD_ERROR
from torch import Tensor

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import KVSpec
from longreel.memory.film_moments import NO_MOMENTS
from longreel.memory.prompt_affinity import PromptAffinity
from longreel.memory.prompt_bank import PromptBankConfig, Scorer, Wish, choose_bank
from longreel.memory.select import Choice
from longreel.memory.story import Story, make_story
from longreel.memory.text_record import TextRecord, by_attention, by_keys, by_queries
from longreel.memory.training.released_memflow import ReleasedBank
from longreel.memory.transitions import Reach
from longreel.memory.wishes import grant

LAYERS, HEADS, SIZE, FRAMES = 2, 2, 16, 12
SPEC = KVSpec(LAYERS, HEADS, SIZE, 2, 3, 4, 10_000.0, torch.float32, torch.device("cpu"))
PLAN = plan_chunks((2, 2), 3)
PROMPTS = [torch.eye(8)[:3], torch.eye(8)[3:6]]


def one_hot(place: int) -> Tensor:
    """`[layers, H, D]`, alike in all layers and heads."""
    return torch.eye(SIZE)[place].expand(LAYERS, HEADS, -1)


def unlike(frames: Sequence[int], others: Sequence[int]) -> Tensor:
    return torch.zeros(len(frames), len(others))


def story_that_hears(config: PromptBankConfig, wanted: Sequence[int]) -> Story:
    """Prompt p has the key of frame `wanted[p]`."""
    return make_story(PLAN, PROMPTS, (), NO_MOMENTS, config, lambda prompt: one_hot(wanted[prompt]))


def recorded(scorer: Scorer) -> TextRecord:
    """A record of as many frames as the film has, whose queries are unlike each other."""
    record = TextRecord(SPEC, scorer, FRAMES, 3)
    record.allocate()
    for layer in range(LAYERS):
        for frame in range(FRAMES):
            q = torch.eye(SIZE)[frame].expand(6, HEADS, -1)
            record.write(layer, range(frame, frame + 1), q, torch.eye(SIZE)[:3, None].expand(-1, HEADS, -1))
    for frame in range(FRAMES):
        record.publish(range(frame, frame + 1), int(frame >= 6))
    return record


@pytest.mark.parametrize("scorer", [Scorer.KEY_KEY, Scorer.VISUAL_QUERY])
@pytest.mark.parametrize("per_layer", [False, True])
@given(st.integers(0, 5), st.integers(0, 5))
def test_the_first_chunk_of_a_new_prompt_is_scored_with_that_prompt(
    scorer: Scorer, per_layer: bool, before: int, now: int
) -> None:
    """MemFlow's released code scores it with zeros, which would bring back the newest frame."""
    config = PromptBankConfig(frames=1, variety=0.0, scorer=scorer, per_layer=per_layer)
    story = story_that_hears(config, (before, 5 - now if before == now else now))
    means = torch.eye(SIZE)[:6].expand(LAYERS, HEADS, -1, -1)
    wish = story.wish_by(recorded(scorer), range(6), 1, lambda: means, config)
    assert wish.layers == (LAYERS if per_layer else 1)
    expected = 5 - now if before == now else now
    assert all(choose_bank(range(6), wish, config, unlike, layer) == (expected,) for layer in range(wish.layers))


def test_keys_score_as_the_paper_says_and_only_their_order_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(LAYERS, HEADS, SIZE, generator=generator)
    means = torch.randn(LAYERS, HEADS, FRAMES, SIZE, generator=generator)
    scores = by_keys(text, means)[..., 0]
    raw = torch.stack([(text[layer, :, None] * means[layer]).sum(dim=(0, 2)) for layer in range(LAYERS)])
    assert torch.equal(scores.argsort(dim=1), raw.argsort(dim=1))
    assert scores.aminmax() == (0.0, 1.0)


def test_what_all_frames_and_all_prompts_share_does_not_score() -> None:
    shared = 5 * one_hot(15)
    heard = torch.stack([one_hot(0) + shared, one_hot(3) + shared])
    queries = torch.stack([one_hot(frame) + shared for frame in range(FRAMES)], dim=1)
    scores = by_queries(heard, queries)[..., 0]
    assert scores.argmax(dim=1).tolist() == [3] * LAYERS
    assert float(scores.aminmax().max) <= 1 + FORWARD_ERROR


def test_attention_shares_are_of_real_words_and_add_up() -> None:
    record = recorded(Scorer.ATTENTION_MASS)
    shares = torch.stack([record.shares(frame) for frame in range(FRAMES)])
    assert torch.allclose(shares.sum(dim=-1), torch.ones(FRAMES, LAYERS), atol=FORWARD_ERROR)
    assert int(shares[1, 0].argmax()) == 1


def test_a_frame_shows_of_a_prompt_what_it_looked_at_in_its_own() -> None:
    record = recorded(Scorer.ATTENTION_MASS)
    affinity = PromptAffinity([PROMPTS[0], PROMPTS[0]])
    found = by_attention(record, range(3), affinity, 1)
    assert found.shape == (LAYERS, 3, 3)
    assert found[0].argmax(dim=1).tolist() == [0, 1, 2]


def test_a_record_takes_the_bytes_it_announces() -> None:
    for scorer in Scorer:
        record = TextRecord(SPEC, scorer, FRAMES, 3)
        record.allocate()
        held = [tensor for tensor in vars(record).values() if isinstance(tensor, Tensor)]
        assert sum(tensor.numel() * tensor.itemsize for tensor in held) == record.bytes


rows = st.lists(st.lists(st.floats(0, 1), min_size=40, max_size=40), min_size=1, max_size=4)


@given(rows, st.sets(st.integers(0, 39)), st.sets(st.integers(0, 39), max_size=5), st.integers(1, 6), st.integers(1, 9))
def test_layers_that_choose_for_themselves_read_equally_many_frames(
    layers: list[list[float]], frames: set[int], vetoed: set[int], limit: int, every: int
) -> None:
    wish = Wish(torch.tensor(layers)[..., None], range(40), vetoed=frozenset(vetoed))
    config = PromptBankConfig(frames=limit, record_every=every, newest=True)
    older = sorted(frames)
    choices, brought = grant(wish, Choice((), ()), older, Reach(), config, unlike)
    free = [frame for frame in older if frame % every == 0 and frame not in vetoed]
    assert len(choices) == len(layers)
    for choice in choices:
        assert len(choice.read) == len(set(choice.read)) == min(limit, len(free))
        assert set(choice.read) <= set(free) & set(brought)
        assert not free or free[-1] in choice.read


def test_the_released_bank_becomes_three_copies_of_a_frame_that_scores_highest_when_new() -> None:
    bank = ReleasedBank()
    for chunk in range(15):
        bank.finish(chunk, 3 * chunk)
        bank.begin(lambda frames: [float(frame) for frame in frames], switched=False)
    assert bank.frames == [36, 36, 36]


def test_the_released_bank_keeps_what_it_had_first_where_its_query_is_zeros() -> None:
    bank = ReleasedBank()
    for chunk in range(14):
        bank.finish(chunk, 3 * chunk)
        bank.begin(lambda frames: [float(frame) for frame in frames], switched=True)
    assert len(bank.frames) == 3
    assert bank.frames[-1] == 36
    assert set(bank.frames) <= {0, 9, 36}
