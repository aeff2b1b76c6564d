"""Films that test recall, and the scores: what is true gets everything, what is not does not."""

from __future__ import annotations

import math
import random

import pytest
import torch
from numerics import FLOW_ERROR, FLOW_ROUNDING, PICTURE_ROUNDING, SOFT_EDGE_DB, TRUE_LOOK

from longreel.memory.training.recall import recall_film, sampling_levels, swapped_name
from longreel.memory.training.recall_flow import dynamic_degree, optical_flow
from longreel.memory.training.recall_scores import (
    HIGHEST_DB,
    JUDGED,
    Looks,
    decibels,
    last_looks,
    last_truth,
    nearest,
)
from longreel.memory.training.storyworld import (
    PLACES,
    POSITIONS,
    Film,
    Shot,
    first_rgb_frame,
    random_look,
    render_film,
    render_shot,
)

SEEDS = range(6)


def last_pictures(film: Film) -> torch.Tensor:
    """The pictures of the last latent frame."""
    return render_film(film)[first_rgb_frame(film.frames - 1) :]


@pytest.mark.parametrize(("chunks", "distance"), [(12, 1), (12, 2), (12, 11), (24, 12), (48, 40), (48, 1)])
@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_the_returning_character_was_seen_once_and_exactly_this_long_ago(
    chunks: int, distance: int, chunk_frames: int
) -> None:
    for seed in SEEDS:
        film = recall_film(seed, chunks, chunk_frames, 5, distance)
        names = [shot.name for shot in film.shots]
        assert len(names) == chunks
        assert [index for index, name in enumerate(names) if name == names[-1]] == [chunks - 1 - distance, chunks - 1]
        assert len(set(names)) == len(film.looks) == 5
        assert all(shot.frames == chunk_frames for shot in film.shots)


def test_films_of_a_seed_share_looks_and_shots_and_another_seed_does_not() -> None:
    near, far, long = recall_film(7, 12, 1, 4, 1), recall_film(7, 12, 1, 4, 11), recall_film(7, 48, 1, 4, 40)

    def shots(film: Film) -> set[Shot]:
        return {shot._replace(start=0) for shot in film.shots}

    assert near.looks == far.looks == long.looks
    assert shots(near) == shots(far) <= shots(long)
    assert near.shots[-1] == far.shots[-1] == long.shots[-1]._replace(start=11)
    assert [shot.start for shot in long.shots] == list(range(48))
    assert recall_film(8, 12, 1, 4, 1).looks != near.looks
    assert recall_film(7, 12, 1, 4) == far


@pytest.mark.parametrize(("chunks", "characters", "distance"), [(5, 5, 1), (6, 5, 6), (6, 5, 0), (6, 1, 2)])
def test_a_film_that_is_too_short_is_refused(chunks: int, characters: int, distance: int) -> None:
    with pytest.raises(ValueError, match="needs 2 to"):
        recall_film(0, chunks, 1, characters, distance)


def test_the_name_swap_names_somebody_else_who_was_seen_and_changes_nothing_else() -> None:
    for seed in SEEDS:
        film = recall_film(seed, 12, 1, 5, 4)
        swapped = swapped_name(film)
        assert swapped.shots[-1].name in {shot.name for shot in film.shots[:-1]} - {film.shots[-1].name}
        assert swapped.shots[-1]._replace(name=film.shots[-1].name) == film.shots[-1]
        assert (swapped.shots[:-1], swapped.looks) == (film.shots[:-1], film.looks)


def test_the_true_chunk_is_perfect_in_everything() -> None:
    for seed in SEEDS:
        for chunk_frames in (1, 3):
            film = recall_film(seed, 6, chunk_frames, 4, 3)
            score = last_truth(film).score(last_pictures(film))
            assert score.identity_cosine > TRUE_LOOK
            assert (score.who_is_it, score.obedience) == (1.0, 1.0)
            assert (score.identity_psnr, score.background_psnr) == (HIGHEST_DB, HIGHEST_DB)


def test_another_look_is_not_recall_although_place_and_position_are_right() -> None:
    for seed in SEEDS:
        film = recall_film(seed, 6, 1, 4, 3)
        truth = last_truth(film)
        other = swapped_name(film)
        pictures = last_pictures(other)
        score = truth.score(pictures)
        assert score.identity_cosine < 0.9
        assert (score.who_is_it, score.obedience) == (0.0, 1.0)
        assert nearest(truth.looks.cosines(pictures[JUDGED])) == other.shots[-1].name
        assert score.identity_psnr < 30
        assert score.background_psnr > SOFT_EDGE_DB


def test_a_look_from_another_film_is_near_nobody_on_average() -> None:
    scores = []
    for seed in range(24):
        film, foreign = recall_film(seed, 6, 1, 4, 3), recall_film(seed + 1000, 6, 1, 4, 3)
        shot = film.shots[-1]
        stranger = Film({**film.looks, shot.name: foreign.looks[foreign.shots[-1].name]}, film.shots)
        scores.append(last_looks(film).cosines(last_pictures(stranger)[JUDGED])[shot.name])
    assert abs(sum(scores) / len(scores)) < 0.2


@pytest.mark.parametrize("changed", ["place", "position"])
def test_a_wrong_place_or_position_is_not_obeyed(changed: str) -> None:
    for seed in SEEDS:
        film = recall_film(seed, 6, 1, 4, 3)
        shot = film.shots[-1]
        names = PLACES if changed == "place" else POSITIONS
        for wrong in set(names) - {getattr(shot, changed)}:
            made = render_shot(shot._replace(**{changed: wrong}), film.looks[shot.name])
            assert not last_truth(film).scene.obeyed(made[JUDGED])


def test_averaging_is_what_the_mean_of_all_looks_seen_would_reach() -> None:
    film = recall_film(0, 6, 1, 4, 5)
    own, first, second, third = film.looks
    shots = [film.shots[0]._replace(name=name) for name in (own, first, first, second, third, own)]
    # Four looks at right angles: seen 1, 2, 1 and 1 times, the mean is (1, 2, 1, 1) / 5.
    looks = Looks((0, 0, 1, 1), torch.zeros(4), dict(zip(film.looks, torch.eye(4), strict=True)))
    expected = 1 / math.sqrt(1 + 4 + 1 + 1)
    assert looks.averaging(Film(film.looks, tuple(shots))) == pytest.approx(expected, abs=PICTURE_ROUNDING)


def test_the_mean_look_of_the_film_scores_as_averaging_says() -> None:
    film = recall_film(3, 8, 1, 5, 7)
    truth = last_truth(film)
    shot = film.shots[-1]
    drawn = torch.stack([render_shot(shot, film.looks[seen.name]) for seen in film.shots[:-1]]).mean(0)
    assert truth.score(drawn).identity_cosine == pytest.approx(truth.looks.averaging(film), abs=PICTURE_ROUNDING)


def test_psnr_of_a_tenth_off_everywhere_is_20_db() -> None:
    picture = torch.rand(8, 8, 3)
    assert decibels(picture + 0.1, picture) == pytest.approx(20.0, abs=1e-3)


def test_levels_are_those_of_a_flow_shift_of_5() -> None:
    assert sampling_levels() == pytest.approx([1.0, 15 / 16, 5 / 6, 5 / 8, 0.0])


@pytest.mark.parametrize("movement", [(0.5, 0.0), (-1.3, 0.7), (2.0, -2.0)])
def test_the_flow_of_a_moved_surface_is_its_movement(movement: tuple[float, float]) -> None:
    def surface(right: float, down: float) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(64.0) - down, torch.arange(80.0) - right, indexing="ij")
        return 0.5 + 0.2 * torch.sin(x / 3 + y / 7) + 0.2 * torch.cos(y / 4 - x / 9)

    flow = optical_flow(surface(0, 0)[None], surface(*movement)[None])[0, :, 12:-12, 12:-12]
    assert (flow - torch.tensor(movement)[:, None, None]).abs().max() < FLOW_ERROR


def test_a_still_picture_does_not_move_and_a_walk_moves_more_than_standing() -> None:
    film = recall_film(1, 6, 3, 4, 3)
    look = random_look(random.Random(0))
    still = film.shots[-1]._replace(camera="", action="stands", frames=6)
    assert dynamic_degree(render_shot(still, look)[:1].expand(4, -1, -1, -1)) < FLOW_ROUNDING
    assert dynamic_degree(render_shot(still._replace(action="walks"), look)) > dynamic_degree(render_shot(still, look))
