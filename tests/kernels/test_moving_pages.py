"""Writing pages and copying them out again: nothing is lost but what 8 bits cannot hold."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hard_pages import EXAMPLES, NAN, name_of, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import CODE_ERROR, FORWARD_ERROR
from torch import Tensor

from longreel.kernels import page_copy, page_write
from longreel.kernels.page_copy import copy_pages, gather_frame, time_rotation
from longreel.kernels.page_copy.reference import copy_pages as copy_by_definition
from longreel.kernels.page_write import write_pages
from longreel.kernels.page_write.reference import write_pages as write_by_definition
from longreel.kernels.pages import Pages, Rounding, rows_of

writers = pytest.mark.parametrize(("name", "device", "dtype"), runs(page_write.OPERATION), ids=name_of)
copiers = pytest.mark.parametrize(("name", "device", "dtype"), runs(page_copy.OPERATION), ids=name_of)
stored = pytest.mark.parametrize("rounded", [False, True], ids=["as it is", "8 bits"])


def empty_pages(heads: int, slots: int, tokens: int, dim: int, dtype: torch.dtype, rounded: bool, device: str) -> Pages:
    """Pages of lengths 1 to P in turn, in which nothing was written yet."""
    lengths = (torch.arange(slots, dtype=torch.int32) * 5 % tokens + 1).expand(heads, slots).to(device)
    shape = (heads, slots, tokens, dim)
    if not rounded:
        return Pages(*(torch.full(shape, NAN, dtype=dtype, device=device) for _ in range(2)), lengths)
    scales = (torch.full(shape[:3], NAN, device=device) for _ in range(2))
    mean = torch.randn(heads, dim, generator=torch.Generator().manual_seed(9)).to(device) * 3
    codes = (torch.full(shape, 99, dtype=torch.int8, device=device) for _ in range(2))
    return Pages(*codes, lengths, Rounding(*scales, mean))


def live(pages: Pages, slots: Tensor) -> Tensor:
    """Which tokens `[H, N, P]` of these slots count."""
    place = torch.arange(pages.k.shape[2], device=pages.k.device)
    among = torch.zeros(pages.lengths.shape, dtype=torch.bool, device=place.device)
    among[:, slots.long()] = True
    return (place < pages.lengths[..., None]) & among[..., None]


sizes = st.tuples(st.integers(1, 3), st.integers(2, 6), st.sampled_from([3, 8, 30, 40]), st.sampled_from([4, 12, 64]))


@writers
@stored
@settings(max_examples=EXAMPLES)
@given(size=sizes, seed=st.integers(0, 2**20))
def test_what_is_written_lies_where_it_belongs(
    size: tuple[int, int, int, int], seed: int, rounded: bool, name: str, device: str, dtype: torch.dtype
) -> None:
    heads, count, tokens, dim = size
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2 * tokens, heads, dim, generator=generator).to(device, dtype) for _ in range(2))
    v[0] = 0.0  # a token of zeros has the scale 0
    slots = torch.randperm(count, generator=generator)[: count - 1].int().to(device)
    source = torch.randint(0, 2 * tokens, (count - 1, tokens), generator=generator).int().to(device)
    results = []
    for write in (write_by_definition, partial(write_pages, implementation=name)):
        pages = empty_pages(heads, count, tokens, dim, dtype, rounded, device)
        means = [torch.full((heads, count, dim), NAN, device=device) for _ in range(2)]
        write(k, v, source, slots, pages, *means)
        results.append((pages, means))
    (expected, expected_means), (pages, means) = results
    kept = live(pages, slots)
    for ours, theirs in ((pages.k, expected.k), (pages.v, expected.v)):
        assert torch.equal(ours[kept], theirs[kept])
    untouched = [slot for slot in range(count) if slot not in slots.tolist()]
    for ours, theirs in zip(means, expected_means, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=FORWARD_ERROR, atol=FORWARD_ERROR, equal_nan=True)
        assert bool(ours[:, untouched].isnan().all())
    for ours, theirs in zip(pages[:2], expected[:2], strict=True):
        assert torch.equal(ours[:, untouched].nan_to_num(7), theirs[:, untouched].nan_to_num(7))
    if pages.rounding is not None and expected.rounding is not None:
        for ours, theirs in zip(pages.rounding[:2], expected.rounding[:2], strict=True):
            assert torch.equal(ours[kept], theirs[kept])


@copiers
@stored
@settings(max_examples=EXAMPLES)
@given(size=sizes, seed=st.integers(0, 2**20), time_share=st.integers(0, 3))
def test_pages_come_out_turned_to_their_time(
    size: tuple[int, int, int, int],
    seed: int,
    time_share: int,
    rounded: bool,
    name: str,
    device: str,
    dtype: torch.dtype,
) -> None:
    heads, count, tokens, dim = size
    generator = torch.Generator().manual_seed(seed)
    pages = filled(empty_pages(heads, count, tokens, dim, dtype, rounded, device), generator)
    copied = 3
    slots = torch.randint(0, count, (heads, copied), generator=generator).int().to(device)
    turns = torch.randint(0, 4, (heads, copied), generator=generator).int().to(device)
    rotation = time_rotation([0.0, 1.0, 7.5, 7200.0], dim * time_share // 3 // 2 * 2, 10_000.0, torch.device(device))
    rows = torch.tensor([2, 2 + tokens, 7 + 2 * tokens], dtype=torch.int32, device=device)
    outputs = []
    for copy in (copy_by_definition, partial(copy_pages, implementation=name)):
        k_out, v_out = (torch.full((heads, 4 * tokens + 7, dim), NAN, dtype=dtype, device=device) for _ in range(2))
        copy(pages, slots, turns, rotation, rows, k_out, v_out)
        outputs.append((k_out, v_out))
    (k_expected, v_expected), (k, v) = outputs
    assert torch.equal(v.isnan(), v_expected.isnan())
    assert torch.equal(k.isnan(), k_expected.isnan())
    if not rounded:
        assert torch.equal(v.nan_to_num(7), v_expected.nan_to_num(7))
        still = rotation.shape[1] * 2
        assert torch.equal(k[..., still:].nan_to_num(7), k_expected[..., still:].nan_to_num(7))
    eps = max(FORWARD_ERROR, torch.finfo(dtype).eps)
    torch.testing.assert_close(k, k_expected, rtol=eps, atol=FORWARD_ERROR, equal_nan=True)
    torch.testing.assert_close(v, v_expected, rtol=eps, atol=FORWARD_ERROR, equal_nan=True)


def filled(pages: Pages, generator: torch.Generator) -> Pages:
    """Pages with something in every token that counts."""
    kept = live(pages, torch.arange(pages.k.shape[1]))
    for x in pages[:2]:
        values = torch.randn(x.shape, generator=generator).to(x.device)
        x[kept] = (values * 40 if x.dtype is torch.int8 else values).to(x.dtype)[kept]
    if pages.rounding is not None:
        for scale in pages.rounding[:2]:
            scale[kept] = torch.rand(scale.shape, generator=generator).to(scale.device)[kept]
    return pages


@copiers
def test_the_8_bit_round_trip_moves_a_number_by_half_a_code_at_most(name: str, device: str, dtype: torch.dtype) -> None:
    heads, count, tokens, dim = 2, 3, 16, 64
    pages = empty_pages(heads, count, tokens, dim, dtype, True, device)
    pages = pages._replace(lengths=torch.full_like(pages.lengths, tokens))
    assert pages.rounding is not None
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(count * tokens, heads, dim, generator=generator).to(device, dtype) for _ in range(2))
    k = k + pages.rounding.k_mean.to(dtype)
    slots = torch.arange(count, dtype=torch.int32, device=device)
    source = torch.arange(count * tokens, dtype=torch.int32, device=device).view(count, tokens)
    write_pages(k, v, source, slots, pages, torch.empty(heads, count, dim, device=device), implementation=name)
    k_out, v_out = (torch.full((heads, count * tokens, dim), NAN, dtype=torch.float32, device=device) for _ in range(2))
    still = time_rotation([0.0], 2, 10_000.0, torch.device(device))
    places = slots[None].expand(heads, -1)
    torch_copy = "interpreted" if name == "interpreted" else "torch"
    copy_pages(pages, places, torch.zeros_like(places), still, slots * tokens, k_out, v_out, implementation=torch_copy)
    for out, x, scale in ((k_out, k, pages.rounding.k_scale), (v_out, v, pages.rounding.v_scale)):
        moved = (out - x.float().transpose(0, 1)).abs() / scale.flatten(1)[..., None]
        assert float(moved.max()) <= CODE_ERROR
        assert float(moved.max()) > 0.4


@pytest.mark.parametrize("wrong", ["the mean is added after the turn", "a page keeps the time of another"])
def test_a_wrong_copy_fails_the_same_assertion(wrong: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pages = filled(empty_pages(1, 2, 8, 12, torch.float32, True, "cpu"), generator)
    assert pages.rounding is not None
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    rotation = time_rotation([3.0, 50.0], 12, 10_000.0, torch.device("cpu"))
    rows = torch.tensor([0, 8], dtype=torch.int32)
    right, other = (torch.full((1, 16, 12), NAN) for _ in range(2))
    copy_by_definition(pages, slots, slots, rotation, rows, right, right.clone())
    if wrong.startswith("the mean"):
        without = pages._replace(rounding=pages.rounding._replace(k_mean=torch.zeros(1, 12)))
        copy_pages(without, slots, slots, rotation, rows, other, other.clone())
        other += pages.rounding.k_mean
    else:
        copy_pages(pages, slots, slots.flip(1), rotation, rows, other, other.clone())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other, right, rtol=FORWARD_ERROR, atol=FORWARD_ERROR, equal_nan=True)


def test_a_mean_turned_in_time_is_the_mean_of_turned_keys() -> None:
    """So one summary serves keys at any time."""
    rotation = time_rotation([1000.0], 12, 10_000.0, torch.device("cpu"))[0]
    k = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(0))
    turned, mean = torch.empty_like(k), torch.empty_like(k[:1])
    gather_frame(k, k, rotation, turned, torch.empty_like(k))
    gather_frame(k.mean(0, keepdim=True), k[:1], rotation, mean, torch.empty_like(k[:1]))
    torch.testing.assert_close(mean[0], turned.mean(0), rtol=FORWARD_ERROR, atol=FORWARD_ERROR)


def test_arguments_that_do_not_fit_are_refused() -> None:
    pages = empty_pages(2, 3, 8, 12, torch.float32, False, "cpu")
    k, means = torch.zeros(10, 2, 12), torch.zeros(2, 3, 12)
    slots, source = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match="need keys and values"):
        write_pages(k[..., :4], k, source, slots, pages, means)
    with pytest.raises(ValueError, match="1 pages need tokens"):
        write_pages(k, k, source[:, :4], slots, pages, means)
    with pytest.raises(ValueError, match="Means need"):
        write_pages(k, k, source, slots, pages, means[:, :2])
    with pytest.raises(ValueError, match="lie alike"):
        write_pages(k, k, source, slots, pages._replace(k=torch.zeros(2, 8, 3, 12).transpose(1, 2)), means)
    with pytest.raises(ValueError, match="need their rounding"):
        write_pages(k, k, source, slots, pages._replace(k=pages.k.to(torch.int8)), means)
    rows = rows_of(pages.k)
    rotation = time_rotation([0.0], 4, 10_000.0, torch.device("cpu"))
    with pytest.raises(ValueError, match="need slots and turns"):
        copy_pages(pages, slots[None], slots[None], rotation, slots, rows, rows)
