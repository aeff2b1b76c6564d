"""What a tally says was read is what was read, and counting it changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numerics import SHARE_ROUNDING
from numpy.testing import assert_allclose
from tensors_held import bytes_of, tensors_of

from longreel.kernels.page_scores import group_means, select_pages
from longreel.kernels.pages import PageLists
from longreel.kernels.state import ReadState
from longreel.memory.config import BankConfig, KVSpec, MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.prompt_bank import Wish
from longreel.memory.read_tally import ReadTally
from longreel.memory.trace_groups import group_of_each, head_groups, layer_groups, step_groups

SPEC = KVSpec(3, 2, 16, 6, 8, 4, 10_000.0, torch.float32, torch.device("cpu"))
TOKENS = 48
FEW = MemoryConfig(3, 1, bank=BankConfig(frames_worth=0.5, shortlist=8, index_frames=3))
ROUNDING = 1e-12  # sums of whole numbers, divided once


def drawn(*key: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = torch.randn(3, 3 * TOKENS, 2, 16, generator=torch.Generator().manual_seed(hash(key))).unbind(0)
    return q, k, v


def film(config: MemoryConfig, chunks: int, *, tallied: bool = True, streams: int = 1) -> KVMemory:
    """A memory of that many committed chunks, at the beginning of the next."""
    memory = KVMemory(SPEC, config, streams, 3, 3 * (chunks + 1), tallied=tallied)
    memory.allocate()
    for chunk in range(chunks):
        memory.begin(range(3 * chunk, 3 * chunk + 3))
        memory.reserve(range(3 * chunk, 3 * chunk + 3))
        for layer in range(SPEC.layers):
            for stream in range(streams):
                _, k, v = drawn(chunk, layer, stream)
                memory.write(layer, stream, k, v)
        memory.publish()
    memory.begin(range(3 * chunks, 3 * chunks + 3))
    return memory


def attend(memory: KVMemory, *steps: int, streams: int = 1) -> list[torch.Tensor]:
    """All layers at these steps."""
    outs = []
    for step in steps:
        for layer in range(SPEC.layers):
            for stream in range(streams):
                q, k, v = drawn(99, step, layer, stream)
                memory.read(layer, stream, k, v)
                outs.append(memory.read_selected(layer, stream, q, q))
    return outs


@pytest.mark.parametrize("streams", [1, 2])
def test_reading_everything_is_one_whole_frame_of_each(streams: int) -> None:
    memory = film(MemoryConfig(3, 1, bank=BankConfig(frames_worth=1000.0, shortlist=100_000)), 4, streams=streams)
    attend(memory, 0, 1, 2, streams=streams)
    reads = memory.bank_reads()
    assert reads is not None
    assert reads.frames == tuple(range(1, 12))
    assert_allclose(reads.amounts, np.ones((3, 2, 11)), rtol=ROUNDING)
    assert_allclose(reads.whole, np.ones(11), rtol=ROUNDING)


def test_a_chunk_that_is_offered_fewer_frames_than_the_one_before_is_counted() -> None:
    """A pin or a veto takes frames out of the bank from one chunk to the next."""
    memory = film(MemoryConfig(3, 1, bank=BankConfig(frames_worth=1000.0, shortlist=100_000)), 4)
    attend(memory, 0)
    memory.begin(range(12, 15), Wish(vetoed=frozenset(range(5, 12))))
    attend(memory, 0)
    reads = memory.bank_reads()
    assert reads is not None
    assert reads.frames == (1, 2, 3, 4)
    assert_allclose(reads.amounts, np.ones((3, 2, 4)), rtol=ROUNDING)


def test_amounts_are_those_of_the_lists_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted anew, page by page, from what the selection returned and the pages that lay in the shortlist."""
    memory = film(FEW, 6)
    assert memory.bank is not None
    assert memory.bank.tally is not None
    shortlists: dict[int, np.ndarray] = {}
    expected = np.zeros((3, SPEC.layers, SPEC.heads, len(memory.bank.frames)))
    seen: dict[tuple[int, ...], set[int]] = {}
    lists_made, group = 0, 0
    bring, choose = memory.bank.tally.bring, memory.bank.choose

    def spying_bring(layer: int, stream: int, places: torch.Tensor, lengths: torch.Tensor) -> None:
        shortlists[layer] = np.stack([places.numpy(), lengths.numpy()])
        bring(layer, stream, places, lengths)

    def spying_choose(layer: int, stream: int, q: object, working: object, first: int) -> list[PageLists]:
        nonlocal lists_made
        (lists,) = chosen = choose(layer, stream, q, working, first)  # type: ignore[arg-type]
        lists_made += lists.slots.shape[1] if layer == 0 else 0
        for head, groups in enumerate((lists.slots - first).tolist()):
            for page in (page for group in groups for page in group):
                place, length = shortlists[layer][:, head, page]
                expected[group, layer, head, place] += length / TOKENS
                seen.setdefault((group, layer, head, id(shortlists[layer])), set()).add(page)
        return chosen

    monkeypatch.setattr(memory.bank.tally, "bring", spying_bring)
    monkeypatch.setattr(memory.bank, "choose", spying_choose)
    for step in range(5):  # the last group has one step, the others two
        group = step // 2
        memory.bank.enter_step(step, 5)
        attend(memory, step)
    reads = memory.bank_reads()
    assert reads is not None
    a_step = lists_made // 5
    assert reads.lists == tuple(SPEC.layers * a_step * steps for steps in (2, 2, 1))
    by_step = expected.mean(axis=(1, 2)) / np.array([[2.0], [2.0], [1.0]]) / a_step
    assert_allclose(reads.steps, by_step, atol=ROUNDING)
    assert_allclose(np.average(reads.steps, axis=0, weights=reads.lists), reads.whole, atol=ROUNDING)
    assert reads.listed_pages == (memory.bank.pages_read,) * 3
    for at, different in enumerate(reads.different_pages):
        assert different == pytest.approx(np.mean([len(pages) for key, pages in seen.items() if key[0] == at]))
    expected = expected.sum(axis=0)
    assert_allclose(reads.amounts, expected / lists_made, atol=ROUNDING)
    assert_allclose(reads.whole, reads.amounts.mean(axis=(0, 1)), atol=ROUNDING)
    assert 0 < np.count_nonzero(reads.whole) < len(reads.frames) * 2
    assert_allclose(reads.whole.sum(), memory.frames_worth - len(memory.read_frames), atol=0.1)  # short pages differ


def test_streams_that_begin_at_different_steps_are_counted_apart() -> None:
    """As where guidance is left out at first: the second stream has its first shortlist when the first has its last."""
    memory = film(FEW, 6, streams=2)
    assert memory.bank is not None
    for step in range(6):
        memory.bank.enter_step(step, 6)
        attend(memory, step, streams=1 if step < 3 else 2)
    reads = memory.bank_reads()
    assert reads is not None
    assert np.array(reads.lists) * 4 == pytest.approx(np.array([4, 6, 8]) * reads.lists[0])
    assert_allclose(np.average(reads.steps, axis=0, weights=reads.lists), reads.whole, atol=ROUNDING)
    assert_allclose(reads.steps.sum(axis=1), reads.whole.sum(), atol=0.1)  # short pages differ


def test_a_sampler_that_goes_back_or_beyond_its_last_step_stays_in_the_group_it_reached() -> None:
    memory = film(FEW, 6)
    assert memory.bank is not None
    for step in (0, 3, 1, 9):
        memory.bank.enter_step(step, 4)
        attend(memory, step)
    reads = memory.bank_reads()
    assert reads is not None
    assert [lists // reads.lists[0] for lists in reads.lists] == [1, 0, 0, 3]
    assert reads.steps[1:3].tolist() == np.zeros((2, len(reads.frames))).tolist()


def test_what_is_told_by_steps_takes_no_more_of_the_card_than_a_row_for_each_change() -> None:
    """Wan 1.3B: 1.8 MB a stream, whatever the number of steps."""
    wan = replace(SPEC, layers=30, heads=12)
    assert ReadTally(wan, 1, 366, 256, 2).bytes == 5 * 30 * 12 * 256 * 4 + 4 * 30 * 12 * 4


def test_a_commit_is_not_counted_and_the_next_chunk_begins_anew() -> None:
    memory = film(FEW, 6)
    attend(memory, 0, 1)
    before = memory.bank_reads()
    memory.reserve(range(18, 21))
    attend(memory, 7)
    after = memory.bank_reads()
    assert before is not None
    assert after is not None
    assert np.array_equal(before.amounts, after.amounts)
    memory.begin(range(18, 21))
    assert memory.bank_reads() is None


def test_counting_changes_no_bit_and_is_off_unless_it_is_asked_for() -> None:
    counted, plain = film(FEW, 6), film(FEW, 6, tallied=False)
    assert all(torch.equal(a, b) for a, b in zip(attend(counted, 0, 1, 2), attend(plain, 0, 1, 2), strict=True))
    assert plain.bank_reads() is None
    assert plain.peak_bytes < counted.peak_bytes


def test_what_was_counted_is_dropped_with_the_memory() -> None:
    memory = film(FEW, 6)
    attend(memory, 0)
    memory.release()
    assert bytes_of(tensors_of(memory)) == 0
    assert memory.bank_reads() is None


def test_layers_and_heads_are_told_in_few_groups_that_cover_all_of_them() -> None:
    assert layer_groups(30) == [(first, min(first + 3, 29)) for first in range(0, 30, 4)]
    assert head_groups(12) == [(head, head) for head in range(12)]
    for count in range(1, 90):
        for groups, most in ((layer_groups(count), 8), (head_groups(count), 12), (step_groups(count), 4)):
            assert len(groups) <= most
            assert group_of_each(groups) == sorted(group_of_each(groups))
            assert len(group_of_each(groups)) == count


def test_a_group_of_layers_is_the_mean_of_its_layers() -> None:
    """10 layers are told in 5 groups of 2: the first reads frame 1 alone, the second frame 2 alone."""
    spec = replace(SPEC, layers=10, heads=1)
    tally = ReadTally(spec, 1, 3, 4, 1)
    tally.allocate()
    tally.begin((5, 6))
    lengths = torch.full((1, 4), TOKENS // 2, dtype=torch.int32)
    for layer in range(10):
        tally.bring(layer, 0, torch.tensor([[0, 0, 1, 1]], dtype=torch.int32), lengths)
        pages = [3, 4] if layer % 2 == 0 else [5, 6]
        tally.count(layer, 0, PageLists(torch.tensor([[pages]], dtype=torch.int32), torch.tensor([[2]])))
    reads = tally.sum_up()
    assert reads is not None
    assert reads.frames == (5, 6)
    assert reads.amounts.tolist() == [[[0.5, 0.5]]] * 5
    assert reads.whole.tolist() == [0.5, 0.5]


def test_the_mass_of_a_group_is_the_mean_share_of_its_queries() -> None:
    """Two steps told apart, 10 layers in 5 groups of 2 and two heads: shares are whatever a kernel says."""
    spec = replace(SPEC, layers=10)
    tally = ReadTally(spec, 1, 3, 4, 1)
    tally.allocate()
    tally.begin((5,))
    shares = torch.rand(2, 10, 7, 2, generator=torch.Generator().manual_seed(0))  # [steps, layers, queries, heads]
    lists = PageLists(torch.full((2, 1, 1), 3, dtype=torch.int32), torch.ones(2, 1, dtype=torch.int32))
    for layer in range(10):
        tally.bring(layer, 0, torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1, dtype=torch.int32))
    for step in range(2):
        tally.enter(step, 2)
        for layer in range(10):
            tally.count(layer, 0, lists)
            tally.weigh(layer, 0, ReadState(torch.empty(7, 2, 16), torch.zeros(7, 2), shares[step, layer].log()))
    reads = tally.sum_up()
    assert reads is not None
    assert reads.mass is not None
    assert_allclose(reads.mass, shares.unflatten(1, (5, 2)).mean(dim=(0, 2, 3)), atol=SHARE_ROUNDING)
    assert_allclose(reads.mass_steps, shares.mean(dim=(1, 2, 3)), atol=SHARE_ROUNDING)


def test_a_kernel_that_does_not_know_the_mass_leaves_it_out() -> None:
    memory = film(FEW, 6)
    assert memory.bank is not None
    assert memory.bank.tally is not None
    attend(memory, 0)
    known = memory.bank_reads()
    memory.begin(range(18, 21))
    memory.bank.tally.weigh(0, 0, ReadState(torch.zeros(3, 2, 16), torch.zeros(3, 2)))
    q, k, v = drawn(99, 0, 0, 0)
    memory.read(0, 0, k, v)
    memory.read_selected(0, 0, q, q, pages_alone=True)  # a branch of its own: its mass is always 1
    alone = memory.bank_reads()
    assert known is not None
    assert alone is not None
    assert known.mass is not None
    assert ((known.mass > 0) & (known.mass < 1)).all()
    assert (alone.mass, alone.mass_steps) == (None, None)


def test_lists_are_full_as_counting_them_needs() -> None:
    queries = group_means(drawn(3)[0], 16)
    lists = select_pages(queries, torch.randn(2, 9, 16), 4, first_slot=2)
    assert lists.counts.unique().tolist() == [lists.slots.shape[-1]]
