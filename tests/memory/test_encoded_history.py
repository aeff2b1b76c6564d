"""What a film reads through an encoder, however it was cut into chunks."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import SAME_SUM, relative_error
from torch import Tensor, nn

from longreel.memory.encoded_history import EncodedHistory, HistoryConfig, most_tokens
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.encoder_spec import RATES, EncoderSpec, Rate
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.transitions import Reach

HEIGHT, WIDTH = 8, 12
FRAME_TOKENS = HEIGHT * WIDTH // 4
chunks = st.lists(st.integers(1, 7), min_size=1, max_size=6)
rates = st.sampled_from(RATES)


def history(rate: Rate = RATES[1], config: HistoryConfig | None = None) -> EncodedHistory:
    spec = EncoderSpec(width=8, channels=4, stages=(4, 8), heads=2, rate=rate)
    encoder = MemoryEncoder(spec).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    initialise_encoder(encoder, generator)
    assert isinstance(encoder.high, HighResolutionBranch)
    encoder.high.project.weight.normal_(generator=generator)
    torch.manual_seed(0)
    embed = nn.Conv3d(4, 8, (1, 2, 2), stride=(1, 2, 2)).requires_grad_(False)
    return EncodedHistory(
        spec,
        config or HistoryConfig(),
        lambda latents: encoder(latents, embed),
        lambda latents: embed(latents).flatten(2).transpose(1, 2),
    )


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


@given(sizes=chunks, rate=rates, window=st.integers(0, 4))
def test_a_token_reads_the_prompt_of_its_first_frame_and_a_whole_frame_its_own(
    sizes: list[int], rate: Rate, window: int
) -> None:
    made = history(rate, HistoryConfig(window_frames=window))
    made.spec = replace(made.spec, own_prompts=True)
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
    assert [(int(stretch.prompt[0, 0]), stretch.tokens) for stretch in found] == wanted


@pytest.mark.parametrize("window", [0, 3])
def test_tokens_count_as_what_they_stand_for_and_whole_frames_once(window: int) -> None:
    made = history(Rate(2, 2, 2), HistoryConfig(window_frames=window))
    made.spec = replace(made.spec, proportional=True)
    made.append(film(8))
    made.begin()
    assert made.current is not None
    assert made.current.counts is not None
    encoded = 4 * FRAME_TOKENS // 4
    assert made.current.counts.tolist() == [8.0] * encoded + [1.0] * (window * FRAME_TOKENS)


def test_a_film_without_prompts_is_refused_where_tokens_read_their_own() -> None:
    made = history()
    made.spec = replace(made.spec, own_prompts=True)
    made.append(film(4))
    with pytest.raises(ValueError, match="got none for frame 0"):
        made.begin()


@given(sizes=chunks, rate=rates, window=st.integers(0, 4), longest=st.none() | st.integers(1, 20))
def test_no_film_reads_more_than_was_reckoned_and_all_of_it_lies_in_the_past(
    sizes: list[int], rate: Rate, window: int, longest: int | None
) -> None:
    config = HistoryConfig(window, longest)
    made, frames = history(rate, config), sum(sizes)
    for piece, end in zip(film(frames).split(sizes, dim=2), accumulate(sizes), strict=True):
        made.append(piece)
        made.begin()
        assert made.read_frames == tuple(range(max(0, end - window), end))
        assert made.remembered == min(end, max(longest or end, window))
        if made.current is not None:
            assert made.current.tokens.shape[1] == len(made.current.positions)
            assert len(made.current.positions) <= most_tokens(made.spec, config, frames, HEIGHT, WIDTH)
            assert made.current.positions[:, 0].max() < 0
            assert made.current.positions[:, 0].min() >= -min(end, max(longest or end, window))


def test_a_film_without_a_frame_reads_nothing() -> None:
    made = history()
    made.begin()
    assert made.current is None
    assert made.frames_worth == 0.0


def test_frames_that_fill_no_token_wait_and_are_read_whole_meanwhile() -> None:
    made = shown(history(Rate(2, 2, 8), HistoryConfig(window_frames=2)), [7])
    assert made.current is not None
    assert len(made.current.positions) == 2 * FRAME_TOKENS
    made.append(film(1))
    made.begin()
    assert len(made.current.positions) == 2 * FRAME_TOKENS + FRAME_TOKENS // 4


def test_a_token_of_frames_before_and_behind_a_clean_cut_is_left_out() -> None:
    made = history(Rate(2, 2, 2), HistoryConfig(window_frames=3))
    made.append(film(7))
    made.begin(Reach(window_from=5, bank_from=5))
    assert made.read_frames == (5, 6)
    assert made.current is not None
    # Frames 4 and 5 share a token, frame 6 still waits.
    assert len(made.current.positions) == 2 * FRAME_TOKENS


@pytest.mark.parametrize("window", [0, 3])
def test_how_much_is_read_is_told_in_frames(window: int) -> None:
    made = shown(history(Rate(2, 2, 2), HistoryConfig(window_frames=window)), [8])
    assert made.frames_worth == window + 4 / 4
