"""Laws of the memory itself, without a model: what is read is what was written, and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import FORWARD_ERROR, relative_error
from tensors_held import bytes_of, nan_memory, tensors_of
from torch import Tensor

from longreel.kernels.page_copy import time_rotation
from longreel.memory.config import BankConfig, KVSpec, MemoryConfig
from longreel.memory.frame_pages import PageShape, cut_frame
from longreel.memory.gates import GateForm
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.prompt_bank import PromptBankConfig, Scorer, Wish

ROWS, COLUMNS, HEADS, HEAD_DIM, TIME_CHANNELS, THETA = 3, 7, 2, 12, 4, 10_000.0
TOKENS = ROWS * COLUMNS
FULL = MemoryConfig(window_frames=None, sink_frames=0)


def spec(layers: int = 2) -> KVSpec:
    return KVSpec(layers, HEADS, HEAD_DIM, ROWS, COLUMNS, TIME_CHANNELS, THETA, torch.float32, torch.device("cpu"))


def make_memory(config: MemoryConfig, chunk_frames: int, film_frames: int, streams: int = 1) -> KVMemory:
    memory = KVMemory(spec(), config, streams, chunk_frames, film_frames)
    with nan_memory():
        memory.allocate()
    return memory


def keys(frame: int, stream: int = 0, layer: int = 0) -> Tensor:
    """The keys of a frame, free of time `[L, H, D]`; its values are the same plus 1."""
    generator = torch.Generator().manual_seed(1000 * frame + 10 * stream + layer)
    return torch.randn(TOKENS, HEADS, HEAD_DIM, generator=generator)


def turned(k: Tensor, time: float) -> Tensor:
    """Keys of a frame in the order of pages, at a time, by complex multiplication: the definition, written another way."""
    k = k[list(cut_frame(ROWS, COLUMNS, PageShape.SQUARE).order)]
    pairs = torch.view_as_complex(k[..., :TIME_CHANNELS].double().unflatten(-1, (-1, 2)).contiguous())
    frequency = THETA ** (-torch.arange(TIME_CHANNELS // 2, dtype=torch.float64) * 2 / TIME_CHANNELS)
    spun = torch.view_as_real(pairs * torch.exp(1j * time * frequency)).flatten(-2)
    return torch.cat([spun.to(k.dtype), k[..., TIME_CHANNELS:]], dim=-1)


def commit(memory: KVMemory, frames: range) -> None:
    memory.begin(frames)
    memory.reserve(frames)
    for stream in range(memory.streams):
        for layer in range(memory.spec.layers):
            k = torch.cat([keys(frame, stream, layer) for frame in frames])
            memory.write(layer, stream, k, k + 1)
    memory.publish()


def read(memory: KVMemory, frames: range, stream: int = 0, layer: int = 0) -> tuple[Tensor, Tensor]:
    current = torch.cat([keys(frame) for frame in frames])
    k, v = memory.read(layer, stream, current, current)
    return k[0], v[0]


@given(st.integers(1, 4), st.integers(1, 14), st.sampled_from(PositionPolicy))
def test_everything_committed_is_read_once_at_its_time(chunk: int, film: int, policy: PositionPolicy) -> None:
    config = MemoryConfig(window_frames=None, sink_frames=0, positions=policy, trained_frames=6)
    memory = make_memory(config, chunk, film)
    for start in range(0, film, chunk):
        frames = range(start, min(start + chunk, film))
        memory.begin(frames)
        k, v = read(memory, frames)
        assert k.shape[0] == (start + len(frames)) * TOKENS
        assert not k.isnan().any()
        assert not v.isnan().any()
        expected = torch.cat(
            [turned(keys(p.frame), p.time) for p in memory._places.get(0, ()) if p is not None] or [k[:0]]
        )
        if start:
            assert relative_error(k[: start * TOKENS], expected) < FORWARD_ERROR
        assert memory.read_frames == tuple(range(start))
        commit(memory, frames)
        memory.table.check()


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 6), st.integers(1, 9))
def test_sink_and_window_are_read_and_nothing_else(chunk: int, sink: int, extra: int, chunks: int) -> None:
    config = MemoryConfig(window_frames=chunk + extra, sink_frames=sink)
    memory = make_memory(config, chunk, chunk * chunks)
    for index in range(chunks):
        frames = range(index * chunk, (index + 1) * chunk)
        commit(memory, frames)
        memory.begin(range(frames.stop, frames.stop + chunk))
        older = range(frames.stop)
        assert memory.read_frames == tuple(f for f in older if f < sink or f >= frames.stop - extra)


@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sets(st.integers(0, 17), max_size=3),
    st.sets(st.integers(0, 17), max_size=6),
    st.none() | st.integers(1, 4),
    st.booleans(),
    st.integers(0, 1000),
)
def test_each_layer_reads_what_it_chose_pins_always_vetoes_never_and_room_never_runs_out(
    chunk: int,
    sink: int,
    extra: int,
    pinned: set[int],
    vetoed: set[int],
    bank: int | None,
    per_layer: bool,
    seed: int,
) -> None:
    film = 18
    listening = None if bank is None else PromptBankConfig(frames=bank, scorer=Scorer.KEY_KEY, per_layer=per_layer)
    config = MemoryConfig(window_frames=chunk + extra, sink_frames=sink, prompt_bank=listening)
    memory = KVMemory(spec(), config, 1, chunk, film, frozenset(pinned - vetoed))
    with nan_memory():
        memory.allocate()
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, film, chunk):
        frames, older = range(start, start + chunk), set(range(start))
        evidence = torch.rand(2 if per_layer else 1, film, 1, generator=generator)
        memory.begin(frames, Wish(evidence, range(film), frozenset(pinned - vetoed), frozenset(vetoed)))
        always = {frame for frame in older if frame < sink or frame >= start - extra} - vetoed
        always |= (pinned - vetoed) & older
        free = sorted(older - always - vetoed)
        assert set(memory.read_frames) == always | {f for f in memory.brought if memory.brought[f].why != "pin"}
        for layer in range(2):
            places = memory._places[layer if bank is not None and per_layer else 0]
            k, _ = read(memory, frames, layer=layer)
            present = [place for place in places if place is not None]
            expected = torch.cat([turned(keys(p.frame, 0, layer), p.time) for p in present] or [k[:0]])
            assert torch.allclose(k[: len(expected)], expected, atol=FORWARD_ERROR)
            assert len(k) == len(expected) + chunk * TOKENS
            chosen = {p.frame for p in present}
            assert len(chosen) == len(present) == len(always) + min(bank or 0, len(free)) <= memory.read_capacity
            assert always <= chosen <= always | set(free)
        commit(memory, frames)
        memory.table.check()


def test_the_bytes_of_sink_and_window_do_not_grow_with_the_film() -> None:
    config = MemoryConfig(window_frames=9, sink_frames=3)
    lengths = (81, 241, 2401, 14_400)
    assert len({KVMemory(spec(), config, 1, 3, frames).peak_bytes for frames in lengths}) == 1


def test_the_announced_bytes_are_the_bytes_that_are_taken() -> None:
    memory = make_memory(MemoryConfig(window_frames=6, sink_frames=2), 3, 40, streams=2)
    assert bytes_of(tensors_of(memory)) == memory.peak_bytes


SEARCHED = BankConfig(shortlist=20, look_back=9, eight_bit=True)
EVERY_KIND = {
    "parts": MemoryConfig(6, 2, prompt_bank=PromptBankConfig(frames=4, parts=1.5)),
    "per layer": MemoryConfig(6, 2, prompt_bank=PromptBankConfig(scorer=Scorer.VISUAL_QUERY, per_layer=True)),
    "search": MemoryConfig(6, 2, bank=SEARCHED),
    "search and a prompt": MemoryConfig(
        6, 2, bank=SEARCHED, prompt_bank=PromptBankConfig(scorer=Scorer.ATTENTION_MASS)
    ),
}


@pytest.mark.parametrize("gates", [None, *GateForm])
@pytest.mark.parametrize("words", [0, 5])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_all_that_a_memory_may_have_together_takes_the_bytes_that_are_announced(
    kind: str, words: int, gates: GateForm | None
) -> None:
    pinned = frozenset({1, 7, 20})
    memory = KVMemory(spec(), EVERY_KIND[kind], 2, 3, 30, pinned, 11, words=words, tallied=True, gates=gates)
    memory.allocate()
    assert bytes_of(tensors_of(memory)) == memory.peak_bytes + memory.host_bytes
    memory.release()
    assert bytes_of(tensors_of(memory)) == 0


def test_each_stream_reads_its_own_history() -> None:
    memory = make_memory(FULL, 2, 8, streams=2)
    commit(memory, range(2))
    memory.begin(range(2, 4))
    cond, _ = read(memory, range(2, 4), stream=0)
    uncond, _ = read(memory, range(2, 4), stream=1)
    assert relative_error(cond[:TOKENS], turned(keys(0, stream=0), 0)) < FORWARD_ERROR
    assert relative_error(uncond[:TOKENS], turned(keys(0, stream=1), 0)) < FORWARD_ERROR


def test_what_is_being_committed_is_not_read_by_the_same_chunk() -> None:
    memory = make_memory(MemoryConfig(window_frames=4, sink_frames=0), 2, 20)
    for start in range(0, 8, 2):
        commit(memory, range(start, start + 2))
    memory.begin(range(8, 10))
    before = read(memory, range(8, 10))[0].clone()
    memory.reserve(range(8, 10))
    memory.write(0, 0, torch.full((2 * TOKENS, HEADS, HEAD_DIM), 7.0), torch.full((2 * TOKENS, HEADS, HEAD_DIM), 7.0))
    assert torch.equal(read(memory, range(8, 10))[0], before)


def test_a_commit_that_failed_leaves_memory_as_it_was() -> None:
    memory = make_memory(FULL, 2, 8)
    commit(memory, range(2))
    memory.reserve(range(2, 4))
    memory.abandon()
    memory.table.check()
    assert memory.table.frames == (0, 1)
    commit(memory, range(2, 4))
    assert memory.table.frames == (0, 1, 2, 3)


def test_a_chunk_longer_than_the_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        ValueError,
        match=r"chunk of 5 frames is longer than the window of 4 frames.*Set 'window' of Sparse KV Memory to 5 or more with",
    ):
        KVMemory(spec(), MemoryConfig(window_frames=4), 1, 5, 20)


@pytest.mark.parametrize("time", [0.0, 257.0, 1000.0, 7200.0, 100_000.0])
def test_a_time_rotation_is_right_for_films_of_any_length(time: float) -> None:
    rotation = time_rotation([time], 44, THETA, torch.device("cpu"))[0].double()  # [22, 2, 2]
    angle = time * THETA ** (-torch.arange(22, dtype=torch.float64) / 22)
    expected = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    assert relative_error(rotation, expected) < FORWARD_ERROR
