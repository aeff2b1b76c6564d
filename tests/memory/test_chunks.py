"""The chunk plan: seconds become chunks once, every frame is made once, no chunk mixes shots."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.chunks import (
    PICTURES_PER_FRAME,
    Chunk,
    Plan,
    chunk_seed,
    first_picture,
    plan_chunks,
    plan_frames,
    snap_shots,
    snapped_times,
)

counts = st.lists(st.integers(1, 9), min_size=1, max_size=20)
sizes = st.integers(1, 8)
seeded = st.integers(0, 5)
lengths = st.lists(st.integers(2000, 30_000).map(lambda n: n / 1000), min_size=1, max_size=30)  # 2 s to 30 s


@given(counts, sizes, seeded)
def test_a_plan_covers_each_frame_once_and_a_chunk_never_mixes_shots(
    per_shot: list[int], frames_per_chunk: int, seeded_frames: int
) -> None:
    plan = plan_chunks(per_shot, frames_per_chunk, seeded_frames)
    assert [frame for chunk in plan.chunks for frame in chunk.frames] == list(range(seeded_frames, plan.total_frames))
    assert [chunk.index for chunk in plan.chunks] == list(range(sum(per_shot)))
    assert [len(chunks) for chunks in plan.shots()] == per_shot
    assert [{chunk.shot for chunk in chunks} for chunks in plan.shots()] == [{shot} for shot in range(len(per_shot))]
    assert plan.longest_chunk == frames_per_chunk


@given(st.integers(1, 200), sizes, seeded)
def test_frames_of_any_number_are_planned_with_a_shorter_last_chunk(length: int, size: int, seeded_frames: int) -> None:
    plan = plan_frames(seeded_frames + length, size, seeded_frames)
    assert [f for c in plan.chunks for f in c.frames] == list(range(seeded_frames, seeded_frames + length))
    assert plan.total_frames == seeded_frames + length
    assert all(len(chunk.frames) == size for chunk in plan.chunks[:-1])
    assert len(plan.chunks[-1].frames) == (length - 1) % size + 1
    assert plan.longest_chunk == min(size, length)


@given(lengths, lengths, sizes)
def test_a_longer_film_starts_with_the_chunks_of_the_shorter_one(
    shots: list[float], more: list[float], frames_per_chunk: int
) -> None:
    shorter = plan_chunks(snap_shots(shots, 16, frames_per_chunk), frames_per_chunk)
    longer = plan_chunks(snap_shots([*shots, *more], 16, frames_per_chunk), frames_per_chunk)
    stretched = plan_chunks(snap_shots([*shots[:-1], shots[-1] + 7], 16, frames_per_chunk), frames_per_chunk)
    assert longer.chunks[: len(shorter.chunks)] == shorter.chunks
    assert stretched.chunks[: len(shorter.chunks)] == shorter.chunks


@given(lengths, st.sampled_from([8, 16, 23.976, 24, 30]), st.integers(1, 4))
def test_every_boundary_is_the_nearest_chunk_start(shots: list[float], fps: float, frames_per_chunk: int) -> None:
    chunk_seconds = frames_per_chunk * PICTURES_PER_FRAME / Fraction(str(fps))
    boundary, chunks = Fraction(0), 0
    for seconds, count in zip(shots, snap_shots(shots, fps, frames_per_chunk), strict=True):
        boundary += Fraction(str(seconds))
        chunks += count
        assert abs(chunks * chunk_seconds - boundary) <= chunk_seconds / 2


def test_six_hundred_shots_do_not_drift() -> None:
    per_shot = snap_shots([0.7] * 600, 20, 1)  # every other boundary is a tie, where a sum of floats would waver
    assert per_shot == (4, 3) * 300


def test_a_minute_of_six_shots_is_eighty_chunks_of_three_frames() -> None:
    per_shot = snap_shots([10.0] * 6, 16, 3)
    plan = plan_chunks(per_shot, 3)
    assert per_shot == (13, 14, 13, 13, 14, 13)
    assert (plan.total_frames, plan.pixel_frames) == (240, 957)
    assert snapped_times(plan, 16) == (
        (0.0, 9.5625),
        (9.5625, 20.0625),
        (20.0625, 29.8125),
        (29.8125, 39.5625),
        (39.5625, 50.0625),
        (50.0625, 59.8125),
    )


@given(counts, sizes, seeded)
def test_snapped_times_are_the_times_of_the_decoded_pictures(
    per_shot: list[int], size: int, seeded_frames: int
) -> None:
    plan = plan_chunks(per_shot, size, seeded_frames)
    times = snapped_times(plan, 1)
    assert times[0][0] == 0
    assert times[-1][1] == plan.pixel_frames == first_picture(plan.total_frames)
    assert [start for start, _ in times[1:]] == [end for _, end in times[:-1]]
    assert [end - start for start, end in times[1:]] == [PICTURES_PER_FRAME * size * count for count in per_shot[1:]]


def test_the_first_frame_is_one_picture_and_every_other_one_four() -> None:
    assert [first_picture(frame) for frame in range(4)] == [0, 1, 5, 9]


def test_a_shot_that_would_get_no_chunk_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"shot 2 is too short: needed about 0.75 s.*got 0.2 s; make the shot"
    ) as caught:
        snap_shots([5, 0.2, 5], 16, 3)
    assert "3 frames of 4 pictures at 16 pictures a second" in str(caught.value)


@given(lengths, st.sampled_from([8, 16, 23.976, 24]), st.integers(1, 4))
def test_a_shot_as_long_as_a_chunk_always_gets_one(others: list[float], fps: float, frames_per_chunk: int) -> None:
    shortest = frames_per_chunk * PICTURES_PER_FRAME / Fraction(str(fps))
    assert snap_shots([*others, shortest, *others], fps, frames_per_chunk)[len(others)] >= 1  # type: ignore[list-item]


@pytest.mark.parametrize(("fps", "frames_per_chunk"), [(0, 3), (-16, 3), (float("nan"), 3), (float("inf"), 3), (16, 0)])
def test_a_rate_or_a_chunk_that_makes_no_sense_is_refused(fps: float, frames_per_chunk: int) -> None:
    with pytest.raises(ValueError, match=r"needed .*; got .*; choose"):
        snap_shots([5], fps, frames_per_chunk)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: plan_chunks([], 3),
        lambda: plan_chunks([1, 0, 1], 3),
        lambda: plan_chunks([1], 0),
        lambda: plan_chunks([1], 3, -1),
        lambda: plan_frames(5, 3, 5),
        lambda: plan_frames(5, 0),
        lambda: Plan((Chunk(0, range(1, 4), 0),), 3),
        lambda: Plan((Chunk(0, range(2), 0), Chunk(1, range(2, 5), 0)), 3),
        lambda: Plan((Chunk(0, range(3), 0), Chunk(1, range(4, 7), 0)), 3),
        lambda: Plan((Chunk(0, range(4), 0),), 3),
        lambda: Plan((Chunk(0, range(0), 0),), 3),
    ],
)
def test_a_plan_with_gaps_or_of_nothing_cannot_be_made(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"needed .*; got .*; "):
        wrong()


def test_the_summary_of_a_plan_is_plain_data() -> None:
    summary = plan_chunks([1, 2], 3, seeded_frames=1).summary()
    assert json.loads(json.dumps(summary)) == {
        "frames_per_chunk": 3,
        "seeded_frames": 1,
        "total_frames": 10,
        "pixel_frames": 37,
        "shots": [{"chunks": [0, 1], "frames": [1, 4]}, {"chunks": [1, 3], "frames": [4, 10]}],
    }


def test_chunk_seeds_are_the_same_in_every_version() -> None:
    assert chunk_seed(0, 0) == 2751741299027766061
    assert chunk_seed(42, 7) == 2747821097624559385
    assert chunk_seed(42, 7, "preview") == 6885050090002718933


@given(st.integers(0, 2**64 - 1), st.integers(0, 5000))
def test_a_chunk_seed_suits_every_generator(seed: int, chunk: int) -> None:
    assert 0 <= chunk_seed(seed, chunk) < 2**63


def test_no_two_chunks_or_streams_or_films_share_a_seed() -> None:
    seeds = {chunk_seed(s, c, stream) for s in range(20) for c in range(200) for stream in ("noise", "sampler")}
    assert len(seeds) == 20 * 200 * 2
