"""Attention over pages: every implementation against the definition, over memories in which most is not a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hard_pages import BASE, EXAMPLES, HARD, Memory, assert_as_good_as_torch, hard_cases, name_of, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import HALF_LSE_ERROR, LSE_ERROR
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longreel.kernels.page_attention import OPERATION, page_attention, reference
from longreel.kernels.pages import PageLists, Pages
from longreel.kernels.state import AttentionState

implementations = pytest.mark.parametrize(("name", "device", "dtype"), runs(OPERATION), ids=name_of)


def attend(memory: Memory, name: str, device: str, dtype: torch.dtype) -> tuple[AttentionState, ...]:
    """The state that an implementation gives, what PyTorch gives in the same type, and what is right."""
    q, pages, lists = memory.build(dtype, device)
    sizes = {"dense_tokens": memory.dense_tokens, "group_tokens": memory.group_tokens}
    state = page_attention(q, pages, lists, **sizes, implementation=name)
    q, pages, lists = memory.build(dtype)
    exact = reference.page_attention(q.double(), pages, lists, *sizes.values())
    return AttentionState(state.out.cpu(), state.lse.cpu()), plain(q, pages, lists, memory), exact


def plain(q: Tensor, pages: Pages, lists: PageLists, memory: Memory) -> AttentionState:
    """PyTorch's own attention for each head and group, over keys that were brought together for it."""
    out = torch.zeros_like(q)
    for head in range(q.shape[1]):
        for group in range(lists.slots.shape[1]):
            rows = slice(group * memory.group_tokens, (group + 1) * memory.group_tokens)
            k, v = (
                reference.read_tokens(x[head], pages, lists, memory.dense_tokens, head, group)
                for x in (pages.k, pages.v)
            )
            if len(k):
                out[rows, head] = scaled_dot_product_attention(q[None, rows, head], k[None], v[None])[0]
    return AttentionState(out, torch.empty(0))


def assert_right(memory: Memory, name: str, device: str, dtype: torch.dtype) -> None:
    """The implementation agrees with the definition."""
    state, torchs, exact = attend(memory, name, device, dtype)
    assert_as_good_as_torch(state.out, torchs.out, exact.out)
    allowed = LSE_ERROR if dtype is torch.float32 else HALF_LSE_ERROR
    torch.testing.assert_close(state.lse.double(), exact.lse, rtol=allowed, atol=allowed)


@implementations
@hard_cases
def test_attention_over_pages_is_the_definition(memory: Memory, name: str, device: str, dtype: torch.dtype) -> None:
    assert_right(memory, name, device, dtype)


memories = st.builds(
    Memory,
    heads=st.integers(1, 3),
    tokens=st.integers(1, 40),
    group_tokens=st.integers(1, 20),
    head_dim=st.sampled_from([16, 64]),
    page_tokens=st.integers(1, 20),
    dense_tokens=st.integers(0, 50),
    bank_pages=st.integers(4, 7),
    listed=st.integers(0, 4),
    ragged=st.booleans(),
    token_major=st.booleans(),
    seed=st.integers(0, 2**20),
)


@implementations
@settings(max_examples=EXAMPLES)
@given(memory=memories)
def test_any_memory_is_read_as_defined(memory: Memory, name: str, device: str, dtype: torch.dtype) -> None:
    assert_right(memory, name, device, dtype)


@implementations
@pytest.mark.parametrize("dense_pages", [0, 2, 5])
def test_reading_all_pages_equals_dense_attention(dense_pages: int, name: str, device: str, dtype: torch.dtype) -> None:
    memory = replace(BASE, dense_tokens=16 * dense_pages, bank_pages=5 - dense_pages, listed=5 - dense_pages)
    state, _, _ = attend(replace(memory, full=True, ragged=False), name, device, dtype)
    q, pages, _ = replace(memory, full=True, ragged=False).build(dtype)
    q, k, v = q.transpose(0, 1), pages.k.flatten(1, 2), pages.v.flatten(1, 2)
    torchs = scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1)
    exact = scaled_dot_product_attention(q.double()[None], k.double()[None], v.double()[None])[0].transpose(0, 1)
    assert_as_good_as_torch(state.out, torchs, exact)


@implementations
def test_slots_beyond_31_bits_of_elements_are_found(name: str, device: str, dtype: torch.dtype) -> None:
    """The pool is larger than any machine has to touch: only the pages at its end are written."""
    tokens, dim = 64, 128
    count = 2**31 // (tokens * dim) + 2
    k, v = (torch.empty(1, count, tokens, dim, dtype=dtype, device=device) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for x in (k, v):
        x[:, -2:] = torch.randn(1, 2, tokens, dim, generator=generator)
    q = torch.randn(16, 1, dim, generator=generator).to(device, dtype)
    lengths = torch.full((1, 1), tokens, dtype=torch.int32, device=device).expand(1, count)
    lists = PageLists(torch.tensor([[[count - 1, count - 2]]]).int().to(device), torch.tensor([[2]]).int().to(device))
    pages = Pages(k, v, lengths.contiguous())
    state = page_attention(q, pages, lists, dense_tokens=0, group_tokens=16, implementation=name)
    near = Pages(k[:, -2:], v[:, -2:], pages.lengths[:, -2:])
    expected = page_attention(
        q,
        near,
        PageLists(lists.slots - (count - 2), lists.counts),
        dense_tokens=0,
        group_tokens=16,
        implementation=name,
    )
    assert torch.equal(state.out, expected.out)


def drop_a_page(q: Tensor, pages: Pages, lists: PageLists, memory: Memory) -> AttentionState:
    """Sabotage: the last page of every list is forgotten."""
    fewer = PageLists(lists.slots, (lists.counts - 1).clamp(min=0))
    return page_attention(q, pages, fewer, dense_tokens=memory.dense_tokens, group_tokens=memory.group_tokens)


def read_a_page_to_its_end(q: Tensor, pages: Pages, lists: PageLists, memory: Memory) -> AttentionState:
    """Sabotage: the length of a page is ignored."""
    full = pages._replace(lengths=torch.full_like(pages.lengths, pages.k.shape[2]))
    return page_attention(q, full, lists, dense_tokens=memory.dense_tokens, group_tokens=memory.group_tokens)


@pytest.mark.parametrize("sabotage", [drop_a_page, read_a_page_to_its_end])
def test_a_wrong_kernel_fails_the_same_assertion(sabotage) -> None:
    memory = HARD["ragged pages, shuffled, some lists empty"]
    q, pages, lists = memory.build(torch.float32)
    wrong = sabotage(q, pages, lists, memory)
    _, torchs, exact = attend(memory, "torch", "cpu", torch.float32)
    with pytest.raises(AssertionError):
        assert_as_good_as_torch(wrong.out, torchs.out, exact.out)


def test_a_list_that_would_count_a_page_twice_is_refused() -> None:
    memory = replace(BASE, full=True)
    q, pages, lists = memory.build(torch.float32)
    sizes = {"dense_tokens": memory.dense_tokens, "group_tokens": memory.group_tokens}
    slots = lists.slots.clone()
    slots[1, 2, 0] = slots[1, 2, 1]
    with pytest.raises(ValueError, match=f"got page {int(slots[1, 2, 1])} twice"):
        page_attention(q, pages, PageLists(slots, lists.counts), **sizes)
    slots[1, 2, 0] = 2
    with pytest.raises(ValueError, match="Lists need pages 3 to 8, got page 2"):
        page_attention(q, pages, PageLists(slots, lists.counts), **sizes)
    with pytest.raises(ValueError, match="need lists"):
        page_attention(q, pages, lists, dense_tokens=40, group_tokens=8)
    with pytest.raises(ValueError, match="There are 144 tokens"):
        page_attention(q, pages, lists, dense_tokens=16 * 9 + 1, group_tokens=16)


@implementations
@hard_cases
def test_what_went_to_the_lists_is_told_exactly_or_not_at_all(
    memory: Memory, name: str, device: str, dtype: torch.dtype
) -> None:
    q, pages, lists = memory.build(dtype, device)
    sizes = {"dense_tokens": memory.dense_tokens, "group_tokens": memory.group_tokens}
    listed = page_attention(q, pages, lists, **sizes, implementation=name).listed
    assert (listed is not None) == (name in ("torch", "split") and memory.dense_tokens > 0)
    if listed is not None:
        q, pages, lists = memory.build(dtype)
        exact = reference.page_attention(q.double(), pages, lists, 0, memory.group_tokens).lse
        allowed = LSE_ERROR if dtype is torch.float32 else HALF_LSE_ERROR
        torch.testing.assert_close(listed.cpu().double(), exact, rtol=allowed, atol=allowed)
