"""Merging states: the algebra of attention over disjoint sets of keys."""

from __future__ import annotations

import pytest
import torch
from hard_pages import EXAMPLES, assert_as_good_as_torch, name_of, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import FORWARD_ERROR, MERGE_ROUNDINGS, relative_error
from torch.nn.functional import scaled_dot_product_attention

from longreel.kernels.merge_states import OPERATION, merge_states, reference
from longreel.kernels.state import AttentionState

implementations = pytest.mark.parametrize(("name", "device", "dtype"), runs(OPERATION), ids=name_of)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 12, 64, 128]))


def state(shape: tuple[int, int, int], seed: int, empty: float = 0.3, spread: float = 30.0) -> AttentionState:
    """A state of random numbers; this share of its rows has read nothing."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(shape, generator=generator)
    lse = torch.randn(shape[:2], generator=generator) * spread
    nothing = torch.rand(shape[:2], generator=generator) < empty
    return AttentionState(out.masked_fill(nothing[..., None], 0.0), lse.masked_fill(nothing, -torch.inf))


def to(state: AttentionState, dtype: torch.dtype, device: str) -> AttentionState:
    """The same in another type."""
    return AttentionState(state.out.to(device, dtype), state.lse.to(device))


@implementations
@settings(max_examples=EXAMPLES)
@given(shape=shapes, seed=st.integers(0, 2**20))
def test_a_merge_is_the_definition_also_where_one_side_or_both_are_empty(
    shape: tuple[int, int, int], seed: int, name: str, device: str, dtype: torch.dtype
) -> None:
    a, b = (to(state(shape, seed + i), dtype, "cpu") for i in (0, 1))
    exact = reference.merge_states(*(AttentionState(*(x.double() for x in s)) for s in (a, b)))
    merged = to(merge_states(to(a, dtype, device), to(b, dtype, device), implementation=name), dtype, "cpu")
    assert_as_good_as_torch(merged.out, exact.out.to(dtype), exact.out)
    torch.testing.assert_close(merged.lse.double(), exact.lse, rtol=FORWARD_ERROR, atol=FORWARD_ERROR)


@implementations
@settings(max_examples=EXAMPLES)
@given(shape=shapes, seed=st.integers(0, 2**20))
def test_the_order_of_merges_does_not_matter(
    shape: tuple[int, int, int], seed: int, name: str, device: str, dtype: torch.dtype
) -> None:
    a, b, c = (to(state(shape, seed + i, empty=0.1), dtype, device) for i in range(3))
    left = merge_states(merge_states(a, b, name), c, name)
    right = merge_states(a, merge_states(c, b, name), name)
    if float(right.out.abs().max()):
        allowed = max(FORWARD_ERROR, MERGE_ROUNDINGS * torch.finfo(dtype).eps)
        assert relative_error(left.out, right.out) < allowed
    torch.testing.assert_close(left.lse, right.lse, rtol=FORWARD_ERROR, atol=FORWARD_ERROR)


@implementations
def test_two_halves_of_the_keys_merge_into_attention_over_all(name: str, device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 50, 64, generator=generator).to(dtype) for _ in range(3))
    halves = []
    for part in (slice(0, 20), slice(20, 50)):
        out = scaled_dot_product_attention(q, k[:, :, part], v[:, :, part])[0].transpose(0, 1)
        scores = q.double() @ k[:, :, part].double().mT / 8
        halves.append(to(AttentionState(out, scores.logsumexp(-1)[0].T.float()), dtype, device))
    merged = merge_states(*halves, implementation=name)
    torchs = scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double())[0].transpose(0, 1)
    assert_as_good_as_torch(merged.out.cpu(), torchs, exact)


def test_a_merge_that_forgets_how_much_each_side_weighs_fails_the_same_assertion() -> None:
    a, b = state((20, 2, 64), 1, empty=0.0), state((20, 2, 64), 2, empty=0.0)
    exact = reference.merge_states(a, b).out
    with pytest.raises(AssertionError):
        assert_as_good_as_torch((a.out + b.out) / 2, exact, exact)


def test_states_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        merge_states(state((3, 2, 8), 0), state((4, 2, 8), 0))
