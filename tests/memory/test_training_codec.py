"""The tiny VAE: a real host `WanVAE` whose weights come from linear algebra."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from numerics import LATENT_STATISTICS_ERROR, MATRIX_PROBE_DB, REAL_CLIP_DB, TINY_VAE_DB

from longreel.memory.training.clips import character_mask, decode_latents, encode_film, probe_codec, tiles_of, video_of
from longreel.memory.training.linear_codec import drop_silent_branches
from longreel.memory.training.real_clips import real_clips
from longreel.memory.training.storyworld import FilmSettings, Size, random_film, render_film
from longreel.memory.training.tiny_vae import (
    FIRST_TEST_SEED,
    TinyVaeFit,
    film_video,
    fit_tiny_decoder,
    fit_tiny_vae,
    psnr,
)
from longreel.memory.training.tiny_vae import round_trip_psnr as round_trip
from longreel.nodes.host.build import build_tiny_vae, host_modules

SHORT = FilmSettings(chunks=2, chunk_frames=2)


@pytest.fixture(scope="module")
def vae(host: object) -> Any:
    modules = host_modules()
    fit = TinyVaeFit(encoder_films=24, decoder_films=3)
    clips = [clip.fitted for clip in real_clips()]
    return fit_tiny_vae(fit, modules.new_vae, modules.latent_mean, modules.latent_std, clips)


def test_unseen_films_survive_the_tiny_vae(vae: Any) -> None:
    assert round_trip(vae, 3, SHORT) > TINY_VAE_DB


def test_halves_of_real_clips_that_were_held_out_survive_it_too(vae: Any) -> None:
    quick = copy.deepcopy(vae)
    drop_silent_branches(quick)
    clips = real_clips()
    assert [clip.name for clip in clips] == ["bigbuckbunny", "bikes", "carphone_distorted", "carphone_pristine"]
    for clip in clips:
        video = clip.held_out[None, :, :33]
        with torch.inference_mode():
            assert psnr(quick.decode(quick.encode(video)), video) > REAL_CLIP_DB, clip.name


def test_a_decoder_fitted_anew_leaves_the_encoder_as_it_is(vae: Any) -> None:
    modules, fit = host_modules(), TinyVaeFit(encoder_films=1, decoder_films=1)
    anew = copy.deepcopy(vae)
    fit_tiny_decoder(anew, fit, modules.latent_mean, modules.latent_std, [])
    before, after = vae.state_dict(), anew.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_latents_have_the_mean_and_deviation_that_wan_models_expect(vae: Any) -> None:
    modules = host_modules()
    films = torch.stack([film_video(FIRST_TEST_SEED + index, SHORT) for index in range(12)])
    with torch.inference_mode():
        latents = (vae.encode(films) - modules.latent_mean) / modules.latent_std
    assert latents.shape == (12, 16, 4, 12, 16)
    assert latents.mean((0, 2, 3, 4)).abs().max() < LATENT_STATISTICS_ERROR
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < LATENT_STATISTICS_ERROR


def test_the_fitted_vae_loads_through_the_host_in_half_precision(vae: Any) -> None:
    state = {name: tensor.bfloat16() for name, tensor in vae.state_dict().items()}
    loaded = build_tiny_vae(weights=state)
    frames = render_film(random_film(FIRST_TEST_SEED, SHORT))
    with torch.inference_mode():
        decoded = loaded.decode(loaded.encode(frames))
    assert psnr(decoded[0] * 2 - 1, frames * 2 - 1) > TINY_VAE_DB


def test_the_encoder_is_one_matrix_for_each_tile(vae: Any) -> None:
    modules = host_modules()
    films = [random_film(seed, FilmSettings(chunks=6)) for seed in range(8)]
    codec = probe_codec(vae, films, modules.latent_mean, modules.latent_std)
    film = random_film(FIRST_TEST_SEED, SHORT)
    with torch.inference_mode():
        true = (vae.encode(film_video(FIRST_TEST_SEED, SHORT)[None]) - modules.latent_mean) / modules.latent_std
    assert psnr(encode_film(film, codec)[None] / 3, true / 3) > MATRIX_PROBE_DB
    assert psnr(decode_latents(true[0], codec) * 2 - 1, render_film(film) * 2 - 1) > TINY_VAE_DB


def test_a_larger_film_goes_through_the_same_matrix_and_its_mask_holds_the_character(vae: Any) -> None:
    modules, size = host_modules(), Size(128, 192)
    films = [random_film(seed, FilmSettings(chunks=6)) for seed in range(8)]
    codec = probe_codec(vae, films, modules.latent_mean, modules.latent_std)
    film = random_film(FIRST_TEST_SEED, SHORT)
    latents = encode_film(film, codec, size)
    assert latents.shape == (16, 4, 16, 24)
    assert psnr(decode_latents(latents, codec) * 2 - 1, render_film(film, size) * 2 - 1) > TINY_VAE_DB
    others = {name: look._replace(first=(1.0, 1.0, 1.0), second=(0.0, 0.0, 0.0)) for name, look in film.looks.items()}
    changed = (encode_film(replace(film, looks=others), codec, size) - latents).abs().amax(0)  # [4, 16, 24]
    mask = character_mask(film, size).bool()
    assert mask.shape == changed.shape
    assert changed[~mask].mean() < 0.1 * changed[mask].mean()


def test_without_its_silent_branches_the_vae_gives_the_same_bits(vae: Any) -> None:
    video = film_video(FIRST_TEST_SEED, SHORT)[None]
    spoken, quick = copy.deepcopy(vae), copy.deepcopy(vae)
    branch = spoken.decoder.middle[0].residual[-1]
    with torch.inference_mode():
        branch.weight[0, 0] = 1.0
        drop_silent_branches(quick)
        drop_silent_branches(spoken)
        assert torch.equal(quick.encode(video), vae.encode(video))
        assert torch.equal(quick.decode(vae.encode(video)), vae.decode(vae.encode(video)))
    assert len(list(quick.parameters())) < len(list(spoken.parameters())) < len(list(vae.parameters()))
    assert spoken.decoder.middle[0].residual[-1] is branch


def test_tiles_hold_every_pixel_once() -> None:
    video = torch.rand(9, 96, 128, 3, generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(video)
    assert tiles.shape == (3, 12, 16, 768)
    assert torch.allclose(video_of(tiles), video, atol=1e-6)


def test_a_vae_too_narrow_for_its_components_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        TinyVaeFit(dim=4)
