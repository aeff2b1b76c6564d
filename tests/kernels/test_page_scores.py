"""Scores and selection: the same pages to the bit wherever arithmetic is exact, and a rule for ties."""

from __future__ import annotations

import pytest
import torch
from hard_pages import EXAMPLES, INTERPRETING, name_of, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import FORWARD_ERROR
from torch import Tensor

from longreel.kernels.page_scores import OPERATION, group_means, reference, select_pages, shortlist_pages

implementations = pytest.mark.parametrize(("name", "device", "dtype"), runs(OPERATION), ids=name_of)


def whole_numbers(*shape: int, seed: int, most: int = 3) -> Tensor:
    """Small whole numbers: every order of summation gives the same sum, and many sums are equal."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@implementations
@settings(max_examples=EXAMPLES)
@given(
    heads=st.integers(1, 2),
    groups=st.integers(1, 4 if INTERPRETING else 20),
    count=st.integers(1, 150),
    dim=st.sampled_from([12, 16, 64]),
    limit=st.integers(1, 40),
    most=st.integers(0, 3),
    seed=st.integers(0, 2**20),
)
def test_the_same_pages_are_selected_to_the_bit_ties_included(
    heads: int, groups: int, count: int, dim: int, limit: int, most: int, seed: int,
    name: str, device: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    queries = whole_numbers(heads, groups, dim, seed=seed, most=most)
    summaries = whole_numbers(heads, count, dim, seed=seed + 1).to(dtype)
    expected = reference.select_pages(queries, summaries, limit)
    lists = select_pages(queries.to(device), summaries.to(device), limit, first_slot=5, implementation=name)
    assert torch.equal(lists.slots.cpu() - 5, expected)
    assert lists.slots.dtype == lists.counts.dtype == torch.int32
    assert lists.counts.unique().tolist() == [min(limit, count)]


@implementations
def test_more_pages_than_a_program_looks_at_together(name: str, device: str, dtype: torch.dtype) -> None:
    queries, summaries = whole_numbers(1, 1, 16, seed=0), whole_numbers(1, 1100, 16, seed=1).to(dtype)
    lists = select_pages(queries.to(device), summaries.to(device), 64, implementation=name)
    assert torch.equal(lists.slots.cpu(), reference.select_pages(queries, summaries, 64))


@implementations
def test_of_equal_scores_the_lower_slots_are_taken(name: str, device: str, dtype: torch.dtype) -> None:
    queries = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], device=device)
    summaries = torch.tensor([[[0.0, 1.0], [-0.0, 2.0], [1.0, 3.0], [0.0, 4.0], [-0.0, 5.0]]], device=device).to(dtype)
    lists = select_pages(queries, summaries, 3, implementation=name)
    assert lists.slots.tolist() == [[[0, 1, 2], [0, 1, 3]]]


@implementations
def test_of_real_numbers_the_best_are_taken(name: str, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 3, 64, generator=generator)
    summaries = torch.randn(1, 300, 64, generator=generator).to(dtype)
    slots = select_pages(queries.to(device), summaries.to(device), 20, implementation=name).slots.cpu().long()
    scores = queries.double() @ summaries.double().mT
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, slots, True)
    worst_kept = scores.masked_fill(~kept, torch.inf).amin(-1)
    best_left = scores.masked_fill(kept, -torch.inf).amax(-1)
    assert bool((worst_kept >= best_left - FORWARD_ERROR * scores.abs().amax()).all())
    assert bool((slots.diff() > 0).all())


def test_one_wrong_page_fails_the_same_assertion() -> None:
    queries, summaries = whole_numbers(1, 4, 4, seed=0, most=1), whole_numbers(1, 50, 4, seed=1, most=1)
    expected = reference.select_pages(queries, summaries, 8)
    from_the_end = 49 - reference.select_pages(queries, summaries.flip(1), 8).flip(-1)  # ties go to the higher slot
    assert not torch.equal(from_the_end.int(), expected)
    assert not torch.equal(reference.select_pages(-queries, summaries, 8), expected)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 3), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=EXAMPLES)
def test_a_group_is_scored_by_its_mean_query_also_when_it_is_short(
    tokens: int, group: int, heads: int, dtype: torch.dtype
) -> None:
    q = torch.randn(tokens, heads, 8, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    torch.testing.assert_close(
        group_means(q, group), reference.group_means(q, group), rtol=FORWARD_ERROR, atol=FORWARD_ERROR
    )


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 60), st.integers(1, 30), st.integers(0, 2**20))
@settings(max_examples=EXAMPLES)
def test_a_shortlist_is_the_definition(heads: int, groups: int, count: int, limit: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, summaries = (torch.randn(heads, n, 8, generator=generator) for n in (groups, count))
    assert torch.equal(shortlist_pages(queries, summaries, limit), reference.shortlist_pages(queries, summaries, limit))


def test_a_page_that_one_group_needs_badly_beats_pages_that_all_find_mediocre() -> None:
    summaries = torch.eye(8)[None] * 4  # page i is looked for along axis i
    queries = torch.full((1, 4, 8), 0.5)
    queries[0, 0, 7] = 9.0
    assert 7 in shortlist_pages(queries, summaries, 1)[0].tolist()


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="summaries"):
        select_pages(torch.zeros(2, 3, 8), torch.zeros(1, 5, 8), 2)
    with pytest.raises(ValueError, match="at least 1 page"):
        select_pages(torch.zeros(2, 3, 8), torch.zeros(2, 5, 8), 0)
