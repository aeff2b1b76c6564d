"""Position policies: which time a frame is given when a chunk reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.positions import PositionPolicy, Times, assign_times

TRAINED = 21
policies = st.sampled_from(PositionPolicy)
frames = st.lists(st.integers(0, 7200), max_size=30, unique=True).map(sorted)


@st.composite
def readings(draw: st.DrawFn) -> tuple[list[int], range]:
    read = draw(frames)
    start = (read[-1] + 1 if read else 0) + draw(st.integers(0, 50))
    return read, range(start, start + draw(st.integers(1, 8)))


@given(policies, readings())
def test_the_current_chunk_keeps_its_own_spacing_and_the_order_is_kept(
    policy: PositionPolicy, reading: tuple[list[int], range]
) -> None:
    times = assign_times(policy, *reading, TRAINED)
    assert len(times.read) == len(reading[0])
    assert times.current == tuple(range(times.current[0], times.current[0] + len(reading[1])))
    assert list(times.read) == sorted(times.read)
    assert all(time < times.current[0] for time in times.read)


@given(readings())
def test_absolute_times_are_the_frames_themselves(reading: tuple[list[int], range]) -> None:
    read, current = reading
    assert assign_times(PositionPolicy.ABSOLUTE, read, current, TRAINED) == Times(tuple(read), tuple(current))


@given(readings())
def test_contiguous_times_have_no_gap(reading: tuple[list[int], range]) -> None:
    times = assign_times(PositionPolicy.CONTIGUOUS, *reading, TRAINED)
    assert [*times.read, *times.current] == list(range(len(reading[0]) + len(reading[1])))


@given(readings(), st.integers(9, 100))
def test_clamped_times_are_never_farther_apart_than_in_training(
    reading: tuple[list[int], range], trained_frames: int
) -> None:
    read, current = reading
    times = assign_times(PositionPolicy.CLAMPED, read, current, trained_frames)
    assert times.current == tuple(current)
    for frame, time in zip(read, times.read, strict=True):
        assert times.current[-1] - time == min(current[-1] - frame, trained_frames - 1)


@given(readings())
def test_clamped_times_equal_absolute_ones_while_the_film_is_within_the_trained_length(
    reading: tuple[list[int], range],
) -> None:
    read, current = reading
    trained = max(current[-1] - min([*read, current.start]) + 1, len(current) + 1)
    clamped = assign_times(PositionPolicy.CLAMPED, read, current, trained)
    assert clamped == assign_times(PositionPolicy.ABSOLUTE, read, current, trained)


def test_a_sink_far_away_sits_at_the_far_edge() -> None:
    times = assign_times(PositionPolicy.CLAMPED, [0, 1, 2, 94, 95, 96, 97, 98], range(99, 102), TRAINED)
    assert times == Times((81, 81, 81, 94, 95, 96, 97, 98), (99, 100, 101))


@pytest.mark.parametrize(
    ("read", "current"),
    [([3, 2], range(4, 7)), ([2, 2], range(4, 7)), ([4], range(4, 7)), ([-1], range(4, 7)), ([], range(4, 4))],
)
def test_frames_out_of_order_are_refused(read: list[int], current: range) -> None:
    with pytest.raises(ValueError, match=r"needed .*; got .*; "):
        assign_times(PositionPolicy.ABSOLUTE, read, current, TRAINED)


def test_a_chunk_as_long_as_the_training_clip_cannot_be_clamped() -> None:
    with pytest.raises(ValueError, match=r"needed a trained length above the chunk's 3 frames; got 3"):
        assign_times(PositionPolicy.CLAMPED, [0], range(3, 6), 3)
