"""What a memory encoder is measured by, and videos in place of cartoons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from encoder_runs import SHORT, SPEC, STAGES, both_stages, new_encoder, orthogonal_codec
from numerics import NOT_ROUNDING, SAME_SUM

from longreel.memory.training.clips import TileCodec
from longreel.memory.training.continuation import measure_continuation
from longreel.memory.training.encoder_recall import measure_encoder_recall, returning_films
from longreel.memory.training.encoder_settings import EncoderStage, trained_spec
from longreel.memory.training.encoder_training import encoder_batch, train_encoder
from longreel.memory.training.retrieval import ask_films, mean_retrieval, structural_similarity
from longreel.memory.training.retrieval_table import row_name, row_of
from longreel.memory.training.storyworld import HEIGHT, WIDTH
from longreel.memory.training.video_films import VideoFilms, VideoLatents
from longreel.memory.training.words import split_words
from longreel.nodes.host.build import host_modules


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    return orthogonal_codec()


def test_larger_pictures_are_trained_and_asked_for(host: object, codec: TileCodec, tmp_path: Path) -> None:
    modules, config = host_modules(), replace(SHORT, steps=1, size="128x192", rate="4x4x2")
    network, encoder = modules.new_wan(SPEC), new_encoder(config)
    train_encoder(config, modules, peft, network, encoder, codec, tmp_path)
    asked = ask_films(config, modules, network, encoder, codec, batches=1)
    assert asked[0].true.shape == (128, 192, 3)
    row = row_of(row_name(config), config, encoder, asked)
    assert row["tokens_per_second"] == 2 * 3 * 2
    assert trained_spec(encoder.spec, config).trained["films"] == "Storyworld cartoons, 128x192"


def videos_of(frames: int) -> VideoFilms:
    """Two videos of noise."""
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(16, length, 12, 16, generator=generator) for length in (20, 24)]
    return VideoFilms([VideoLatents(f"{len(x[0])}.mp4", "", x, ["a wall"] * len(x[0])) for x in made], frames)


@both_stages
def test_both_stages_take_videos_in_place_of_cartoons(
    host: object, codec: TileCodec, tmp_path: Path, stage: EncoderStage
) -> None:
    modules, config = host_modules(), STAGES[stage]
    videos = videos_of(config.film_frames)
    batch = encoder_batch(config, videos.clips(2, 0, 0), 0)
    assert not batch.mask.any()  # so everything counts alike

    def train(folder: str, videos: VideoFilms | None) -> dict[str, torch.Tensor]:
        network, encoder = modules.new_wan(SPEC), new_encoder()
        train_encoder(
            replace(config, steps=1), modules, peft, network, encoder, codec, tmp_path / folder, videos=videos
        )
        return encoder.state_dict()

    cartoons, first, again = train("cartoons", None), train("videos", videos), train("again", videos)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["high.project.weight"], cartoons["high.project.weight"])


def test_what_stage_one_brings_back_of_videos_is_measured_on_the_parts_that_were_left_out(
    host: object, codec: TileCodec
) -> None:
    modules, videos = host_modules(), videos_of(SHORT.film_frames)
    network, encoder = modules.new_wan(SPEC), new_encoder()
    asked = ask_films(SHORT, modules, network, encoder, codec, 1, videos)
    assert asked[0].true.shape == (HEIGHT, WIDTH, 3)
    cartoons = ask_films(SHORT, modules, network, encoder, codec, 1)
    assert mean_retrieval(asked) != mean_retrieval(cartoons)


def test_going_on_with_videos_is_measured_beside_their_own_tokens_those_of_another_and_none(
    host: object, codec: TileCodec
) -> None:
    config, modules = STAGES[EncoderStage.FINETUNE], host_modules()
    videos, network, encoder = videos_of(config.film_frames), modules.new_wan(SPEC), new_encoder()
    found = measure_continuation(config, modules, network, encoder, codec, videos, batches=1)
    assert measure_continuation(config, modules, network, encoder, codec, videos, batches=1) == found
    assert len(set(found)) == 3
    assert all(error > 0 for error in found)


def test_a_single_video_without_more_than_one_stretch_to_measure_has_another_film_beside_it(
    host: object, codec: TileCodec
) -> None:
    config, modules = STAGES[EncoderStage.FINETUNE], host_modules()
    latents = torch.randn(16, 2 * config.film_frames, 12, 16, generator=torch.Generator().manual_seed(4))
    video = VideoFilms([VideoLatents("wall.mp4", "", latents, ["a wall"] * 2 * config.film_frames)], config.film_frames)
    network, encoder = modules.new_wan(SPEC), new_encoder()
    found = measure_continuation(config, modules, network, encoder, codec, video, batches=1)
    assert found.own != found.other
    shorter = VideoFilms(
        [VideoLatents("wall.mp4", "", latents, ["a wall"] * 2 * config.film_frames)], SHORT.film_frames
    )
    asked = mean_retrieval(ask_films(SHORT, modules, network, encoder, codec, 1, shorter))
    assert asked.whole != asked.other


def test_retrieval_is_measured_on_films_that_no_training_sees_and_gives_the_same_numbers_again(
    host: object, codec: TileCodec
) -> None:
    modules = host_modules()
    network, encoder = modules.new_wan(SPEC), new_encoder()
    asked = ask_films(SHORT, modules, network, encoder, codec, batches=1)
    found = mean_retrieval(asked)
    assert mean_retrieval(ask_films(SHORT, modules, network, encoder, codec, batches=1)) == found
    assert len(set(found)) == 4
    assert all(0 < quality.psnr < 40 and -1 < quality.ssim < 1 for quality in found)
    psnrs = [film.found.marked.psnr for film in asked]
    assert found.marked.psnr == pytest.approx(sum(psnrs) / SHORT.clips)
    assert asked[0].true.shape == (HEIGHT, WIDTH, 3)
    assert asked[0].made.shape == (4, HEIGHT, WIDTH, 3)
    with pytest.raises(ValueError, match="settings of stage I"):
        ask_films(STAGES[EncoderStage.FINETUNE], modules, network, encoder, codec)


def test_structural_similarity_is_what_its_formula_gives_where_it_is_known() -> None:
    pictures = torch.rand(2, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    assert structural_similarity(pictures, pictures) == pytest.approx(1, abs=SAME_SUM)
    flat, darker = torch.full((1, 24, 32, 3), 0.8), torch.full((1, 24, 32, 3), 0.4)
    floor = 0.01**2
    light = (2 * 0.8 * 0.4 + floor) / (0.8**2 + 0.4**2 + floor)
    assert structural_similarity(flat, darker) == pytest.approx(light, rel=NOT_ROUNDING)
    assert structural_similarity(pictures, 1 - pictures) < -0.5
    assert structural_similarity(pictures, pictures * 0.8) > 0.8


def test_recall_is_measured_on_films_whose_returning_character_was_seen_once(host: object, codec: TileCodec) -> None:
    config = replace(STAGES[EncoderStage.FINETUNE], segment_frames=1)
    films = returning_films(config, 3)
    for film in films:
        assert [shot.name for shot in film.shots].count(film.shots[-1].name) == 2
        assert film.shots[0].name == film.shots[-1].name
        assert len(split_words(film.shots[-1].prompt)) == len(split_words(films[0].shots[-1].prompt))
    modules = host_modules()
    network, encoder = modules.new_wan(SPEC), new_encoder()
    found = measure_encoder_recall(config, modules, network, encoder, codec, films=3)
    assert measure_encoder_recall(config, modules, network, encoder, codec, films=3) == found
    assert all(-1 <= value <= 1 for value in found)
