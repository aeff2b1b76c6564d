"""What a film reads through an encoder, however it was cut into chunks."""

from __future__ import annotations

from itertools import accumulate, groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import SAME_SUM, relative_error
from tensors_held import bytes_of, tensors_of
from torch import Tensor, nn

from longreel.memory.committed_history import WINDOW, Commits, PartKey
from longreel.memory.encoded_history import EncodedHistory, FilmEncoder, Level, Stretch
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.encoder_spec import RATES, EncoderSpec, Modulation, Rate
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.transitions import Reach

HEIGHT, WIDTH = 8, 12
FRAME_TOKENS = HEIGHT * WIDTH // 4
chunks = st.lists(st.integers(1, 7), min_size=1, max_size=6)
rates = st.sampled_from(RATES)


def film_encoder(rate: Rate, longest: int | None = None, **changes: Any) -> FilmEncoder:
    spec = EncoderSpec(width=8, channels=4, stages=(4, 8), heads=2, rate=rate, **changes)
    encoder = MemoryEncoder(spec).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    initialise_encoder(encoder, generator)
    assert isinstance(encoder.high, HighResolutionBranch)
    encoder.high.project.weight.normal_(generator=generator)
    return FilmEncoder(spec, longest, lambda latents: encoder(latents, embedding()))


def embedding() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(4, 8, (1, 2, 2), stride=(1, 2, 2)).requires_grad_(False)


def beside_each_other(window: int, *encoders: FilmEncoder) -> EncodedHistory:
    embed = embedding()
    return EncodedHistory(encoders, window, lambda latents: embed(latents).flatten(2).transpose(1, 2))


def history(rate: Rate = RATES[1], window: int = 3, longest: int | None = None, **changes: Any) -> EncodedHistory:
    return beside_each_other(window, film_encoder(rate, longest, **changes))


def film(frames: int) -> Tensor:
    return torch.randn(1, 4, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def shown(made: EncodedHistory, sizes: list[int]) -> EncodedHistory:
    for piece in film(sum(sizes)).split(sizes, dim=2):
        made.append(piece)
    made.begin()
    return made


@given(sizes=chunks, rate=rates)
def test_any_chunking_of_a_film_gives_the_same_tokens_at_the_same_places(sizes: list[int], rate: Rate) -> None:
    cut, whole = shown(history(rate), sizes).current, shown(history(rate), [sum(sizes)]).current
    assert cut is not None
    assert whole is not None
    assert torch.equal(cut.positions, whole.positions)
    assert relative_error(cut.tokens, whole.tokens) < SAME_SUM


def told(stretch: Stretch) -> Tensor:
    assert stretch.prompt is not None
    return stretch.prompt


@given(sizes=chunks, rate=rates, window=st.integers(0, 4))
def test_a_token_reads_the_prompt_of_its_first_frame_and_a_whole_frame_its_own(
    sizes: list[int], rate: Rate, window: int
) -> None:
    made = history(rate, window, own_prompts=True)
    prompts = [torch.full((1 + shot, 4), float(shot)) for shot in range(len(sizes))]
    shots = [shot for shot, size in enumerate(sizes) for _ in range(size)]
    for shot, piece in enumerate(film(sum(sizes)).split(sizes, dim=2)):
        made.append(piece, prompts[shot])
    made.begin()
    if made.current is None:
        return
    # A token lies in the middle of its frames, behind the film's end at 0.
    times = made.current.positions[:, 0] + len(shots)
    encoded = len(times) - len(made.read_frames) * FRAME_TOKENS
    firsts = torch.cat([times[:encoded] - (rate.frames - 1) / 2, times[encoded:]]).int().tolist()
    wanted = [(shot, len(list(tokens))) for shot, tokens in groupby(shots[first] for first in firsts)]
    (found,) = made.current.prompts
    assert [(int(told(stretch)[0, 0]), stretch.tokens) for stretch in found] == wanted


@pytest.mark.parametrize("window", [0, 3])
def test_tokens_count_as_what_they_stand_for_and_whole_frames_once(window: int) -> None:
    made = history(Rate(2, 2, 2), window, proportional=True)
    made.append(film(8))
    made.begin()
    assert made.current is not None
    assert made.current.counts is not None
    encoded = 4 * FRAME_TOKENS // 4
    assert made.current.counts.tolist() == [8.0] * encoded + [1.0] * (window * FRAME_TOKENS)


def test_a_film_without_prompts_is_refused_where_tokens_read_their_own() -> None:
    made = history(own_prompts=True)
    made.append(film(4))
    with pytest.raises(ValueError, match="got none for frame 0"):
        made.begin()


@given(sizes=chunks, rate=rates, window=st.integers(0, 4), longest=st.none() | st.integers(1, 20))
def test_no_film_reads_more_than_was_reckoned_and_all_of_it_lies_in_the_past(
    sizes: list[int], rate: Rate, window: int, longest: int | None
) -> None:
    made, frames = history(rate, window, longest), sum(sizes)
    for piece, end in zip(film(frames).split(sizes, dim=2), accumulate(sizes), strict=True):
        made.append(piece)
        made.begin()
        assert made.read_frames == tuple(range(max(0, end - window), end))
        assert made.remembered == min(end, max(longest or end, window))
        if made.current is not None:
            assert made.current.tokens.shape[1] == len(made.current.positions)
            assert len(made.current.positions) <= made.most_tokens(frames, HEIGHT, WIDTH)
            assert made.current.positions[:, 0].max() < 0
            assert made.current.positions[:, 0].min() >= -min(end, max(longest or end, window))


def test_a_film_without_a_frame_reads_nothing() -> None:
    made = history()
    made.begin()
    assert made.current is None
    assert made.frames_worth == 0.0


def test_frames_that_fill_no_token_wait_and_are_read_whole_meanwhile() -> None:
    made = shown(history(Rate(2, 2, 8), 2), [7])
    assert made.current is not None
    assert len(made.current.positions) == 2 * FRAME_TOKENS
    made.append(film(1))
    made.begin()
    assert len(made.current.positions) == 2 * FRAME_TOKENS + FRAME_TOKENS // 4


def test_a_token_of_frames_before_and_behind_a_clean_cut_is_left_out() -> None:
    made = history(Rate(2, 2, 2), 3)
    made.append(film(7))
    made.begin(Reach(window_from=5, bank_from=5))
    assert made.read_frames == (5, 6)
    assert made.remembered == 2
    assert made.current is not None
    # Frames 4 and 5 share a token, frame 6 still waits.
    assert len(made.current.positions) == 2 * FRAME_TOKENS


@pytest.mark.parametrize("window", [0, 3])
def test_how_much_is_read_is_told_in_frames(window: int) -> None:
    made = shown(history(Rate(2, 2, 2), window), [8])
    assert made.frames_worth == window + 4 / 4


@given(
    sizes=chunks,
    rates=st.tuples(rates, rates),
    window=st.integers(0, 3),
    longest=st.tuples(*[st.none() | st.integers(1, 20)] * 2),
)
def test_two_encoders_tell_what_each_tells_alone(
    sizes: list[int], rates: tuple[Rate, Rate], window: int, longest: tuple[int | None, int | None]
) -> None:
    """One after the other, each as far back as it reaches, with the window behind both."""
    alone = [shown(history(rate, 0, reach), sizes) for rate, reach in zip(rates, longest, strict=True)]
    both = shown(beside_each_other(window, *map(film_encoder, rates, longest)), sizes)
    whole = shown(history(Rate(2, 2, 8), window, 1), sizes)
    found = [each.current for each in (*alone, whole) if each.current is not None]
    assert both.remembered == max(each.remembered for each in (*alone, whole))
    if both.current is None:
        assert not found
        return
    assert torch.equal(both.current.tokens, torch.cat([each.tokens for each in found], dim=1))
    assert torch.equal(both.current.positions, torch.cat([each.positions for each in found]))
    assert len(both.current.positions) <= both.most_tokens(sum(sizes), HEIGHT, WIDTH)


def test_every_encoder_keeps_its_own_way_of_being_read_and_the_first_ones_is_the_windows() -> None:
    fine = film_encoder(Rate(2, 2, 2), modulation=Modulation.CLEAN, own_prompts=True)
    coarse = film_encoder(Rate(4, 4, 2), modulation=Modulation.TARGET, proportional=True)
    made = beside_each_other(1, fine, coarse)
    prompt = torch.zeros(2, 4)
    made.append(film(2), prompt)
    made.begin()
    assert made.current is not None
    few, fewer = FRAME_TOKENS // 4, FRAME_TOKENS // 24
    assert made.current.levels == (
        Level(few, Modulation.CLEAN),
        Level(fewer, Modulation.TARGET),
        Level(FRAME_TOKENS, Modulation.CLEAN),
    )
    assert made.current.prompts == ((Stretch(few, prompt), Stretch(fewer, None), Stretch(FRAME_TOKENS, prompt)),)
    assert made.current.counts is not None
    assert made.current.counts.tolist() == [1.0] * few + [32.0] * fewer + [1.0] * FRAME_TOKENS


def committing(window: int, *encoders: FilmEncoder) -> tuple[EncodedHistory, Commits]:
    made, commits = beside_each_other(window, *encoders), Commits()
    made.commits = commits
    return made, commits


def commit(commits: Commits) -> list[tuple[list[PartKey], list[PartKey]]]:
    """Commits all that waits, and tells what it was and what each read."""
    told = []
    for segment in tuple(commits.waiting):
        assert set(segment.older) <= commits.kept
        commits.keep(segment, {0: [(segment.tokens, segment.tokens)]})
        told.append((sorted(segment.keys), sorted(segment.older)))
    return told


def parts(number: int, *frames: int) -> list[PartKey]:
    return [PartKey(number, frame) for frame in frames]


def test_a_segment_reads_what_its_frames_could_read_and_nothing_reads_the_window() -> None:
    """Chunks of 3 frames under prompts of their own; tokens of 2 frames, and of single ones of the newest 3."""
    made, commits = committing(
        1, film_encoder(Rate(2, 2, 2), own_prompts=True), film_encoder(Rate(2, 2, 1), 3, own_prompts=True)
    )
    told = []
    for piece in film(9).split(3, dim=2):
        made.begin()
        told.append(commit(commits))
        made.append(piece, torch.zeros(2, 4))
    made.begin(Reach(9, 9))
    first, fine = parts(0, 0), parts(1, 0, 1, 2)
    second, third = parts(0, 2), parts(0, 4)
    newer = parts(1, 3, 4, 5)
    assert told == [
        [],
        [(first + fine, []), (parts(WINDOW, 2), first + fine)],
        [(second, first), (third + newer, first + second), (parts(WINDOW, 5), first + second + third + newer)],
    ]
    assert commits.current == ()
    assert made.current is None
    assert not commits.kept
    assert not commits.waiting


@given(chunks, st.integers(0, 3), st.one_of(st.none(), st.integers(1, 5)))
def test_what_is_read_was_committed_at_its_place_in_the_film_and_the_rest_is_forgotten(
    sizes: list[int], window: int, longest: int | None
) -> None:
    """Whether every chunk is made, or all but the last were made by an earlier run."""
    prompt, kept = torch.zeros(2, 4), []
    for made_before in (0, len(sizes)):
        made, commits = committing(window, film_encoder(Rate(2, 2, 2), longest, own_prompts=True))
        for index, piece in enumerate(film(sum(sizes)).split(sizes, dim=2)):
            made.begin()
            if index >= made_before:
                commit(commits)
            made.append(piece, prompt)
        made.begin()
        commit(commits)
        read = commits.read(commits.current)
        if made.current is None:
            assert not read
            continue
        assert torch.equal(torch.cat([keys for keys, _ in read[0]], dim=1), made.current.tokens)
        kept.append(commits.kept)
        commits.forget(commits.current)
        assert commits.kept == set(commits.current)
    assert not kept or kept[0] == kept[1]


def test_a_film_that_goes_on_keeps_no_more_at_once_than_the_uninterrupted_one() -> None:
    """20 chunks whose tokens reach 6 frames back: all that an earlier run made is committed one after the other, and let go."""
    most = []
    for made_before in (0, 19):
        made, commits = committing(0, film_encoder(Rate(2, 2, 1), 6, own_prompts=True))
        peak = 0
        for index, piece in enumerate(film(60).split(3, dim=2)):
            made.begin()
            if index >= made_before:
                for segment in tuple(commits.waiting):
                    commits.keep(segment, {0: [(segment.tokens, segment.tokens)]})
                    peak = max(peak, len(commits.kept))
            made.append(piece, torch.zeros(2, 4))
        most.append(peak)
    assert most == [6, 6]


@pytest.mark.parametrize(("longest", "reach"), [(6, Reach()), (None, Reach(30, 30))])
def test_what_can_never_be_read_again_is_let_go(longest: int | None, reach: Reach) -> None:
    """Tokens that are too old, and those before a clean cut; a chunk is let go as a whole."""
    made, held = history(Rate(2, 2, 1), 3, longest), []
    for index, piece in enumerate(film(60).split(3, dim=2)):
        made.append(piece)
        made.begin(reach if index >= 10 else Reach())
        held.append(bytes_of(tensors_of(made)))
    assert held[-1] == held[12] if longest else held[-1] == held[9]


def test_what_was_read_last_is_let_go_before_the_next_is_joined() -> None:
    seen: list[object] = []
    embed = embedding()

    def watch(latents: Tensor) -> Tensor:
        seen.append(made.current)
        return embed(latents).flatten(2).transpose(1, 2)

    made = EncodedHistory([film_encoder(RATES[1])], 3, watch)
    for piece in film(9).split(3, dim=2):
        made.append(piece)
        made.begin()
    assert seen == [None] * 3
    assert made.current is not None
