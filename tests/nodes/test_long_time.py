"""Long films: time stays exact far from the start, and memory stays as large as it was."""

from __future__ import annotations

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import Film, prompt, render
from held_bytes import held_bytes
from numerics import FORWARD_ERROR, ROLLOUT_ERROR, TIME_SHIFT_SHARE, relative_error
from torch import Tensor

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.session import Phase, RunSession
from longreel.nodes.host.attach import adapter_for
from longreel.nodes.host.attention import chunk_rope
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.wan import time_channels

SPEC = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
HEAD_SIZE = 128
SHARPNESS = 8.0
THETA = 10_000.0
SIZE = (4, 8)
ONE_STEP = (1.0, 0.0)
WINDOW = MemoryConfig(window_frames=6, sink_frames=0)
LATE_STARTS = (253, 1000, 7197)


def computing_in(model: ModelPatcher, dtype: torch.dtype) -> ModelPatcher:
    clone = model.clone()
    clone.set_model_compute_dtype(dtype)
    return clone


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    """A model that looks sharply at few keys, so that their times matter."""
    state = host_modules().new_wan(SPEC).state_dict()
    for key, weight in state.items():
        if key.endswith("self_attn.norm_q.weight"):
            weight.mul_(SHARPNESS)
    return build_tiny_wan(weights=state)


def defined_turn(frames: range) -> Tensor:
    """Cosine and sine `[T, time pairs, 2]` of rotary embedding at these frames, in float64 from its definition."""
    channels = time_channels(HEAD_SIZE)
    frequency = THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angle = torch.tensor(frames, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def turn_of(table: Tensor, frames: int) -> Tensor:
    """The same part `[T, time pairs, 2]` of a rotary table `[1, L, 1, D / 2, 2, 2]`, at the first token of each frame."""
    pairs = time_channels(HEAD_SIZE) // 2
    return table.unflatten(1, (frames, -1))[0, :, 0, 0, :pairs, :, 0]


def host_table(model: ModelPatcher, frames: int, first: int) -> Tensor:
    """What the host builds for bf16 tokens of this many frames."""
    network = model.get_model_object("diffusion_model")
    return network.rope_encode(frames, *SIZE, t_start=first, device=torch.device("cpu"), dtype=torch.bfloat16)


@pytest.mark.parametrize("first", [0, 255, 258, 1000, 7200])
def test_frames_of_a_bf16_model_are_turned_to_their_own_time(model: ModelPatcher, first: int) -> None:
    frames = range(first, first + 3)
    memory = KVMemory(adapter_for(model).kv_spec(model, *SIZE), WINDOW, 1, 3, frames.stop)
    memory.allocate()
    session = RunSession(memory)
    session.begin(frames)
    session.phase = Phase.COMMIT
    table = host_table(model, len(frames), first=0)
    rope = chunk_rope(session, table)
    assert relative_error(turn_of(rope.absolute, len(frames)), defined_turn(frames)) < FORWARD_ERROR
    assert rope.timeless is not None
    pairs = time_channels(HEAD_SIZE) // 2
    assert torch.equal(rope.absolute[..., pairs:, :, :], table[..., pairs:, :, :])  # space is the host's own
    assert torch.equal(rope.timeless[..., pairs:, :, :], table[..., pairs:, :, :])
    assert torch.equal(turn_of(rope.timeless, len(frames)), turn_of(table, len(frames))[:1].expand(3, -1, -1))


@pytest.mark.parametrize("first", [300, 1000])
def test_the_hosts_own_time_in_bf16_is_wrong_far_from_the_start(model: ModelPatcher, first: int) -> None:
    """The control: why time is ours. Frames fall together, or lie whole frames off."""
    turns = turn_of(host_table(model, 3, first), 3)
    assert relative_error(turns, defined_turn(range(first, first + 3))) > 0.5
    assert torch.equal(turns[0], turns[1])


def late_film(model: ModelPatcher, first: int, config: MemoryConfig = WINDOW, chunks: int = 4) -> Film:
    """A film whose first frame has this number; its noise and prompts do not depend on that."""
    plan = plan_chunks((chunks,), 3, seeded_frames=first)
    return render(model, plan, config=config, sigmas=ONE_STEP, size=SIZE, prompts=(prompt(0),))


@pytest.mark.parametrize("first", LATE_STARTS)
def test_a_film_does_not_depend_on_when_it_starts(model: ModelPatcher, first: int) -> None:
    """Rotary attention sees differences of time alone, and these are the same wherever a film starts."""
    assert relative_error(late_film(model, first).latents, late_film(model, 0).latents) < ROLLOUT_ERROR


@pytest.fixture(scope="module")
def bf16_rounding(model: ModelPatcher) -> float:
    """What bf16 itself does to this film."""
    return relative_error(late_film(computing_in(model, torch.bfloat16), 0).latents, late_film(model, 0).latents)


@pytest.mark.parametrize("first", LATE_STARTS)
def test_a_film_in_bf16_does_not_depend_on_when_it_starts(
    model: ModelPatcher, bf16_rounding: float, first: int
) -> None:
    bf16 = computing_in(model, torch.bfloat16)
    early, late = late_film(bf16, 0).latents, late_film(bf16, first).latents
    assert relative_error(late, early) < TIME_SHIFT_SHARE * bf16_rounding


def test_a_film_in_bf16_depends_on_times_more_than_rounding_does(model: ModelPatcher, bf16_rounding: float) -> None:
    """The control for the test above: times that are wrong by as much as the host's give another film."""
    bf16 = computing_in(model, torch.bfloat16)
    squeezed = bf16.clone()
    squeezed.set_model_rope_options(1.0, 0.0, 1.0, 0.0, 0.0, 0.0)  # all frames fall together
    error = relative_error(late_film(squeezed, 0).latents, late_film(bf16, 0).latents)
    assert error > 3 * TIME_SHIFT_SHARE * bf16_rounding


@pytest.mark.parametrize("policy", [PositionPolicy.CONTIGUOUS, PositionPolicy.CLAMPED])
def test_position_policies_agree_while_the_film_is_short_and_differ_after(
    model: ModelPatcher, policy: PositionPolicy
) -> None:
    settings = {"window_frames": 6, "sink_frames": 3, "trained_frames": 9}
    films = [late_film(model, 0, MemoryConfig(**settings, positions=p), 5) for p in (policy, PositionPolicy.ABSOLUTE)]
    chosen, absolute = (film.latents for film in films)
    short = 9  # sink, window and chunk side by side, as long as the trained length
    assert relative_error(chosen[:, :, :short], absolute[:, :, :short]) < ROLLOUT_ERROR
    assert relative_error(chosen[:, :, short:], absolute[:, :, short:]) > ROLLOUT_ERROR
    assert bool(chosen.isfinite().all())


def test_memory_after_a_minute_is_as_large_as_after_twenty_seconds(host: object) -> None:
    """The same up to ten minutes stands in the long tier."""
    held = held_bytes(60)
    assert len(held) > 2
    assert len(set(held)) == 1
    assert held[0].announced <= held[0].memory < 1.05 * held[0].announced
