"""Storyworld: deterministic labelled films whose looks never stand in the prompt."""

from __future__ import annotations

import random

import pytest
import torch
from numerics import PICTURE_ROUNDING

from longreel.memory.training.storyworld import (
    HEIGHT,
    NAMES,
    PLACES,
    POSITIONS,
    WIDTH,
    Film,
    FilmSettings,
    Look,
    Shot,
    Size,
    character_box,
    first_rgb_frame,
    prompts_by_frame,
    random_film,
    random_look,
    render_film,
    render_shot,
)

RED_ON_BLUE = Look((0.9, 0.1, 0.1), (0.1, 0.1, 0.9), "stripes", "square")
GREEN = Look((0.1, 0.9, 0.1), (0.9, 0.9, 0.1), "core", "round")
VISIBLE = 0.05
"""A difference of 13 in 255, about where the eye begins to see one."""


def shot(action: str = "stands", camera: str = "", position: str = "middle") -> Shot:
    return Shot(0, 9, "anna", "forest", position, action, camera)


def test_the_same_seed_gives_the_same_film_to_the_bit() -> None:
    settings = FilmSettings(chunks=4, chunk_frames=2)
    assert random_film(7, settings) == random_film(7, settings)
    assert torch.equal(render_film(random_film(7, settings)), render_film(random_film(7, settings)))
    assert random_film(7, settings) != random_film(8, settings)


def test_a_film_of_t_latent_frames_has_4t_minus_3_pictures() -> None:
    film = random_film(1, FilmSettings(chunks=3, chunk_frames=3))
    assert film.frames == 9
    assert render_film(film).shape == (33, 96, 128, 3)
    assert len(prompts_by_frame(film)) == 9


def test_pictures_stay_between_black_and_white() -> None:
    video = render_film(random_film(3, FilmSettings(chunks=8)))
    assert video.min() >= 0.0
    assert video.max() <= 1.0


def test_the_prompt_says_who_does_what_where_and_not_how_it_looks() -> None:
    films = [random_film(seed, FilmSettings()) for seed in range(20)]
    for film in films:
        for each in film.shots:
            words = each.prompt.replace(",", "").split()
            assert words[0] in NAMES
            assert words[2] in POSITIONS
            assert words[5] in PLACES
            assert not {"red", "blue", "stripes", "square", "round", "diamond", "halves"} & set(words)


def test_the_same_name_looks_different_in_another_film() -> None:
    looks = {name: film.looks[name] for film in [random_film(1, FilmSettings())] for name in film.looks}
    others = [random_film(seed, FilmSettings()) for seed in range(2, 30)]
    assert all(film.looks[name] != look for film in others for name, look in looks.items() if name in film.looks)


@pytest.mark.parametrize("action", ["stands", "walks", "jumps", "waves"])
@pytest.mark.parametrize("position", ["left", "middle", "right"])
def test_everything_that_depends_on_the_look_lies_in_the_characters_box(action: str, position: str) -> None:
    scene = shot(action, position=position)
    difference = (render_shot(scene, RED_ON_BLUE) - render_shot(scene, GREEN)).abs().amax(-1)
    for frame in range(0, len(difference), 5):
        top, left, bottom, right = character_box(scene, frame)
        assert difference[frame, top:bottom, left:right].max() > 0.5
        outside = difference[frame].clone()
        outside[top:bottom, left:right] = 0
        assert outside.max() < VISIBLE


def test_a_character_moves_unless_it_stands_and_the_camera_pans() -> None:
    walking = [character_box(shot("walks"), frame) for frame in range(0, 33, 4)]
    standing = [character_box(shot("stands"), frame) for frame in range(0, 33, 4)]
    assert max(box[1] for box in walking) - min(box[1] for box in walking) >= 8
    assert max(box[1] for box in standing) == min(box[1] for box in standing)
    still, panned = render_shot(shot(), GREEN), render_shot(shot(camera="pan left"), GREEN)
    corner = (slice(None), slice(0, 96), slice(0, 16))
    assert torch.equal(still[0][corner[1:]], still[-1][corner[1:]])
    assert (panned[0][corner[1:]] - panned[-1][corner[1:]]).abs().max() > VISIBLE


def test_a_shot_begins_at_the_first_picture_of_its_latent_frame() -> None:
    film = random_film(11, FilmSettings(chunks=5, chunk_frames=2))
    video = render_film(film)
    for each in film.shots:
        alone = render_shot(each, film.looks[each.name])
        start = first_rgb_frame(each.start)
        assert torch.equal(video[start : start + len(alone)], alone)


def test_any_range_of_a_shot_equals_that_range_of_the_whole() -> None:
    late = Shot(5, 4, "anna", "town", "left", "walks", "pan right")
    start = first_rgb_frame(5)
    whole = render_shot(late, RED_ON_BLUE)
    part = render_shot(late, RED_ON_BLUE, range(start + 6, start + 9))
    assert (whole[6:9] - part).abs().max() < PICTURE_ROUNDING


def test_shots_fill_the_film_in_whole_chunks() -> None:
    settings = FilmSettings(chunks=11, chunk_frames=3, longest_shot=4)
    for seed in range(20):
        film = random_film(seed, settings)
        assert film.frames == 33
        assert all(each.frames % 3 == 0 and each.frames <= 12 for each in film.shots)
        assert [each.start for each in film.shots[1:]] == [each.start + each.frames for each in film.shots[:-1]]


def test_both_colours_of_a_look_can_be_told_apart() -> None:
    rng = random.Random(0)
    for _ in range(100):
        look = random_look(rng)
        assert sum(abs(a - b) for a, b in zip(look.first, look.second, strict=True)) >= 0.9


def test_a_film_without_chunks_or_without_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 chunk"):
        FilmSettings(chunks=0)
    with pytest.raises(ValueError, match="1 to 24 characters with a name each, got 5 to 4"):
        FilmSettings(fewest_characters=5, most_characters=4)


def test_a_film_knows_its_length() -> None:
    assert Film({"anna": GREEN}, (shot(),)).frames == 9


@pytest.mark.parametrize("camera", ["", "pan right"])
def test_a_larger_picture_shows_the_same_world(camera: str) -> None:
    scene = shot("walks", camera)
    larger = render_shot(scene, GREEN, size=Size(2 * HEIGHT, 2 * WIDTH))
    assert larger.shape == (33, 2 * HEIGHT, 2 * WIDTH, 3)
    assert (larger[:, ::2, ::2] - render_shot(scene, GREEN)).abs().max() < VISIBLE


@pytest.mark.parametrize("position", ["left", "middle", "right"])
def test_a_wider_picture_shows_more_at_both_sides(position: str) -> None:
    scene, size = shot("waves", position=position), Size(HEIGHT, WIDTH + 32)
    other = RED_ON_BLUE._replace(first=GREEN.first, second=GREEN.second)
    difference = [
        render_shot(scene, RED_ON_BLUE, size=each) - render_shot(scene, other, size=each) for each in (size, Size())
    ]
    assert (difference[0][:, :, 16:-16] - difference[1]).abs().max() < PICTURE_ROUNDING


@pytest.mark.parametrize("text", ["", "128", "128x", "128x192x3", "-96x128", "0x128", "100x128", "128x200"])
def test_a_size_that_is_none_is_one_clear_error(text: str) -> None:
    with pytest.raises(ValueError, match="picture need"):
        Size.parse(text)


def test_a_size_survives_as_text() -> None:
    assert Size.parse(str(Size(128, 192))) == Size(128, 192)


def test_a_faster_film_shows_the_same_moments_earlier() -> None:
    scene = shot("walks", "pan right")
    usual, faster = render_shot(scene, GREEN), render_shot(scene._replace(pace=4.0), GREEN)
    assert (faster[:9] - usual[::4]).abs().max() < PICTURE_ROUNDING
    fast = [random_film(3, FilmSettings(chunks=6, pace=pace)) for pace in (1.0, 4.0)]
    assert [each._replace(pace=1.0) for each in fast[1].shots] == list(fast[0].shots)
    with pytest.raises(ValueError, match="moves 0 to 16 times"):
        FilmSettings(pace=17)
