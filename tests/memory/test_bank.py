"""Laws of the bank: who chooses what, from which frames, and what it costs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import FORWARD_ERROR, relative_error
from tensors_held import bytes_of, nan_memory, tensors_of
from torch import Tensor

from longreel.memory.config import BankConfig, KVSpec, MemoryConfig
from longreel.memory.frame_pages import PageShape
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.select import select_frames

ROWS, COLUMNS, HEADS, HEAD_DIM, TIME_CHANNELS = 6, 8, 2, 16, 4
TOKENS = ROWS * COLUMNS
EVERYTHING = BankConfig(frames_worth=1000.0, shortlist=100_000)


def spec() -> KVSpec:
    return KVSpec(2, HEADS, HEAD_DIM, ROWS, COLUMNS, TIME_CHANNELS, 10_000.0, torch.float32, torch.device("cpu"))


def drawn(*key: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `[L, H, D]`, free of time."""
    generator = torch.Generator().manual_seed(hash(key))
    q, k, v = torch.randn(3, frames * TOKENS, HEADS, HEAD_DIM, generator=generator).unbind(0)
    return q, k, v


def film(config: MemoryConfig, chunks: int, chunk_frames: int = 3, streams: int = 1) -> KVMemory:
    """A memory of that many committed chunks, at the beginning of the next."""
    memory = KVMemory(spec(), config, streams, chunk_frames, (chunks + 1) * chunk_frames)
    memory.allocate()
    for chunk in range(chunks):
        frames = range(chunk * chunk_frames, (chunk + 1) * chunk_frames)
        memory.begin(frames)
        memory.reserve(frames)
        for stream, layer in itertools.product(range(streams), range(2)):
            _, k, v = drawn(chunk, layer, stream, frames=chunk_frames)
            memory.write(layer, stream, k, v)
        memory.publish()
    memory.begin(range(chunks * chunk_frames, (chunks + 1) * chunk_frames))
    return memory


def attended(memory: KVMemory, q: Tensor, k: Tensor, v: Tensor, layer: int = 0) -> Tensor:
    """What the chunk's queries read, `[L, H x D]`; queries and keys of the chunk are taken as turned already."""
    k_read, v_read = memory.read(layer, 0, k, v)
    if memory.selects:
        return memory.read_selected(layer, 0, q, q)[0]
    q, k_read, v_read = (x.transpose(0, 1) for x in (q, k_read[0], v_read[0]))
    return torch.nn.functional.scaled_dot_product_attention(q, k_read, v_read).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("policy", PositionPolicy)
@pytest.mark.parametrize("shape", PageShape)
@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_a_bank_that_reads_everything_is_full_attention(
    policy: PositionPolicy, shape: PageShape, chunk_frames: int
) -> None:
    bank = replace(EVERYTHING, pages=shape)
    settings = {"positions": policy, "trained_frames": 6}
    sparse = MemoryConfig(window_frames=chunk_frames, sink_frames=1, bank=bank, **settings)
    full = MemoryConfig(window_frames=None, sink_frames=0, **settings)
    q, k, v = drawn(99, frames=chunk_frames)
    by_pages, by_all = (attended(film(config, 5, chunk_frames), q, k, v) for config in (sparse, full))
    assert relative_error(by_pages, by_all) < FORWARD_ERROR


def test_a_group_reads_the_pages_whose_means_agree_most_with_its_mean_query() -> None:
    config = MemoryConfig(window_frames=3, sink_frames=0, bank=BankConfig(frames_worth=0.5, shortlist=10_000))
    memory = film(config, 6)
    q, k, v = drawn(99, frames=3)
    out = attended(memory, q, k, v)
    order = torch.tensor(memory.frame.order)
    tokens = (torch.arange(3)[:, None] * TOKENS + order).flatten()
    history = [drawn(chunk, 0, 0, frames=3)[1:] for chunk in range(6)]
    k_pages, v_pages = (torch.cat([x[part][tokens].view(-1, 8, HEADS, HEAD_DIM) for x in history]) for part in (0, 1))
    for head in range(HEADS):
        for rows in tokens.split(memory.frame.group_tokens):
            scores = k_pages[:, :, head].mean(1) @ q[rows, head].mean(0)
            best = scores.topk(3).indices.tolist()
            k_own, v_own = k[:, head], v[:, head]
            k_best = torch.cat([_turned(k_pages[page, :, head], page // memory.frame.count) for page in best])
            v_best = torch.cat([v_pages[page, :, head] for page in best])
            weights = (q[rows, head] @ torch.cat([k_own, k_best]).T / HEAD_DIM**0.5).softmax(-1)
            expected = weights @ torch.cat([v_own, v_best])
            got = out.view(-1, HEADS, HEAD_DIM)[rows, head]
            assert relative_error(got, expected) < FORWARD_ERROR


def _turned(k: Tensor, time: float) -> Tensor:
    pairs = torch.view_as_complex(k[..., :TIME_CHANNELS].double().unflatten(-1, (-1, 2)).contiguous())
    frequency = 10_000.0 ** (-torch.arange(TIME_CHANNELS // 2, dtype=torch.float64) * 2 / TIME_CHANNELS)
    spun = torch.view_as_real(pairs * torch.exp(1j * time * frequency)).flatten(-2)
    return torch.cat([spun.to(k.dtype), k[..., TIME_CHANNELS:]], dim=-1)


@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 4), st.integers(0, 6), st.none() | st.integers(1, 30))
def test_the_bank_is_what_sink_and_window_leave_wherever_the_chunk_stands(
    chunk: int, size: int, sink: int, extra: int, look_back: int | None
) -> None:
    bank = BankConfig(look_back=look_back)
    config = MemoryConfig(window_frames=size + extra, sink_frames=sink, bank=bank)
    start = chunk * size
    read, offered = select_frames(range(start + size), start, size, config)
    assert not set(read) & set(offered)
    reach = 0 if look_back is None else start - look_back
    assert offered == tuple(f for f in range(start) if sink <= f < start - extra and f >= reach)


def test_an_index_in_the_chunk_instead_of_the_film_would_never_let_anything_out_of_the_window() -> None:
    """OmniMem's released cache does that: its window exclusion never fires."""
    config = MemoryConfig(window_frames=9, sink_frames=0, bank=BankConfig())
    remembered = range(60)
    assert select_frames(remembered, 60, 3, config).bank == tuple(range(54))
    assert select_frames(remembered, 0, 3, config).bank == ()


def test_the_window_is_chosen_again_only_when_its_exclusion_is_turned_off() -> None:
    config = MemoryConfig(window_frames=9, sink_frames=3, bank=BankConfig(exclude_window=False))
    assert select_frames(range(60), 60, 3, config).bank == tuple(range(60))


def test_two_levels_with_room_for_every_frame_choose_as_one_level_does() -> None:
    flat, roomy, narrow = (
        MemoryConfig(3, 0, bank=BankConfig(0.5, shortlist=12, index_frames=frames)) for frames in (None, 15, 4)
    )
    q, k, v = drawn(99, frames=3)
    by_flat, by_roomy, by_narrow = (attended(film(config, 6), q, k, v) for config in (flat, roomy, narrow))
    assert torch.equal(by_flat, by_roomy)
    assert not torch.equal(by_flat, by_narrow)


@given(
    st.integers(1, 40),
    st.none() | st.integers(1, 9),
    st.floats(0.1, 8.0),
    st.integers(0, 7),
    st.sampled_from(PageShape),
    st.booleans(),
)
@settings(max_examples=30)
def test_nothing_that_was_never_written_is_read(
    shortlist: int, index: int | None, worth: float, chunks: int, shape: PageShape, eight_bit: bool
) -> None:
    bank = BankConfig(worth, shape, shortlist=shortlist, index_frames=index, eight_bit=eight_bit)
    with nan_memory():
        memory = film(MemoryConfig(3, 1, bank=bank), chunks)
    for _ in range(3):
        assert not attended(memory, *drawn(99, frames=3)).isnan().any()
    assert memory.bank is not None
    assert memory.bank.pages_read <= memory.bank.listed <= memory.bank.capacity


def test_a_shortlist_is_chosen_at_the_first_two_steps_and_for_the_commit() -> None:
    memory = film(MemoryConfig(3, 0, bank=BankConfig(0.5, shortlist=12)), 6)
    assert memory.bank is not None
    asked = []
    find = memory.bank._shortlist
    memory.bank._shortlist = lambda *args: asked.append(args[:2]) or find(*args)  # type: ignore[method-assign]
    q, k, v = drawn(99, frames=3)
    for _ in range(4):
        attended(memory, q, k, v)
    assert asked == [(0, 0)] * 2
    memory.reserve(range(18, 21))
    attended(memory, q, k, v)
    attended(memory, q, k, v, layer=1)
    assert asked == [(0, 0)] * 3 + [(1, 0)]


def test_what_a_commit_reads_does_not_depend_on_how_the_chunk_was_made() -> None:
    """A resumed film skips the steps of a finished chunk, and still has to write the same bits."""
    config = MemoryConfig(3, 0, bank=BankConfig(0.5, shortlist=12))
    q, k, v = drawn(99, frames=3)
    outs = []
    for steps in (0, 1, 4):
        memory = film(config, 6)
        for step in range(steps):
            attended(memory, *drawn(7, step, frames=3))
        memory.reserve(range(18, 21))
        outs.append(attended(memory, q, k, v))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_one_list_for_a_whole_chunk_is_another_choice() -> None:
    q, k, v = drawn(99, frames=3)
    config = MemoryConfig(3, 0, bank=BankConfig(0.5))
    alike = replace(config, bank=BankConfig(0.5, groups=False))
    assert not torch.equal(attended(film(config, 6), q, k, v), attended(film(alike, 6), q, k, v))


def test_looking_back_less_far_keeps_fewer_frames() -> None:
    near = film(MemoryConfig(3, 1, bank=BankConfig(look_back=6)), 9)
    assert near.table.frames == (0, *range(21, 27))
    near.table.check()
    assert near.store.capacity_frames < 30


@pytest.mark.parametrize("tallied", [False, True])
def test_the_announced_bytes_with_a_bank_are_the_bytes_that_are_taken(tallied: bool) -> None:
    memory = KVMemory(spec(), MemoryConfig(6, 2, bank=BankConfig(shortlist=20)), 2, 3, 60, tallied=tallied)
    memory.allocate()
    assert bytes_of(tensors_of(memory)) == memory.peak_bytes + memory.host_bytes


def test_the_bytes_on_the_card_do_not_grow_with_the_film() -> None:
    """Wan 1.3B at 832x480."""
    wan = KVSpec(30, 12, 128, 30, 52, 44, 10_000.0, torch.bfloat16, torch.device("meta"))
    config = MemoryConfig(9, 3, bank=BankConfig())
    memories = [KVMemory(wan, config, 1, 3, frames, tallied=True) for frames in (240, 2400, 14_400)]
    assert len({memory.peak_bytes for memory in memories}) == 1
    assert memories[0].host_bytes < memories[1].host_bytes < memories[2].host_bytes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames_worth": 0.0}, "more than 0 frames' worth, got 0.0"),
        ({"shortlist": 0}, "at least 1 page, got 0"),
        ({"index_frames": 0}, "at least 1 frame, got 0"),
        ({"look_back": 0}, "at least 1 frame, got 0"),
    ],
)
def test_a_count_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BankConfig(**settings)  # type: ignore[arg-type]


def test_a_memory_that_reads_everything_needs_no_bank() -> None:
    with pytest.raises(ValueError, match="needs no bank"):
        MemoryConfig(window_frames=None, bank=BankConfig())
