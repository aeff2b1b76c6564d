"""A film decoded as it comes, against the host's own VAE Decode of the whole film."""

from __future__ import annotations

from itertools import accumulate, pairwise

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import nodes as host_nodes
import numerics
import pytest
import torch
from comfy.ldm.wan import vae2_2
from torch import Tensor

from longreel.memory.training.initialise import initialise_vae
from longreel.nodes.host.build import build_tiny_vae
from longreel.nodes.host.streaming_decode import StreamingDecoder

SIZE = (3, 4)  # a picture of 24x32
LONG_FILM = 61  # longer than the past that a picture depends on
LENGTHS = (1, 2, 3, 4, 5, 9, 12)
RAGGED = (2, 1, 3, 1, 1, 4)


@pytest.fixture(scope="module")
def vae(host: object) -> comfy.sd.VAE:
    return build_tiny_vae(dim=8, seed=1)


@pytest.fixture(scope="module")
def vae_of_wan22(host: object) -> comfy.sd.VAE:
    """The host's Wan 2.2 class at tiny size; the host's loader only knows its full width of 2.8 GB."""
    vae = build_tiny_vae(dim=8)
    model = vae2_2.WanVAE(dim=8, dec_dim=8, z_dim=48, temperal_downsample=[False, True, True]).eval()
    initialise_vae(model, torch.Generator().manual_seed(2))
    vae.first_stage_model, vae.latent_channels = model, 48
    vae.upscale_ratio = (vae.upscale_ratio[0], 16, 16)
    cpu = torch.device("cpu")
    vae.patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
    return vae


def film_latents(frames: int, channels: int = 16) -> Tensor:
    return torch.randn(1, channels, frames, *SIZE, generator=torch.Generator().manual_seed(frames))


def host_decode(vae: comfy.sd.VAE, latents: Tensor) -> Tensor:
    with torch.inference_mode():
        (pictures,) = host_nodes.VAEDecode().decode(vae, {"samples": latents})
    return pictures.clone()


def cut(latents: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """The latents in pieces of these sizes, repeated to their end."""
    repeated = sizes * latents.shape[2]
    edges = [0, *accumulate(repeated)]
    pieces = [latents[:, :, start:stop] for start, stop in pairwise(edges)]
    return [piece for piece in pieces if piece.shape[2]]


def streamed(vae: comfy.sd.VAE, latents: Tensor, sizes: tuple[int, ...]) -> Tensor:
    decoder = StreamingDecoder(vae)
    pieces = [decoder.push(piece) for piece in cut(latents, sizes)]
    return torch.cat([*pieces, decoder.finish()])


@pytest.mark.parametrize("sizes", [(1,), (3,), (4,), RAGGED])
@pytest.mark.parametrize("frames", LENGTHS)
def test_pictures_as_they_come_are_those_of_the_whole_film(
    vae: comfy.sd.VAE, frames: int, sizes: tuple[int, ...]
) -> None:
    latents = film_latents(frames)
    whole = host_decode(vae, latents)
    pictures = streamed(vae, latents, sizes)
    assert pictures.dtype == torch.float32
    assert pictures.shape == whole.shape == (4 * (frames - 1) + 1, 8 * SIZE[0], 8 * SIZE[1], 3)
    assert whole.std() > numerics.NOT_FLAT
    assert (pictures - whole).abs().max() < numerics.STREAMED_PICTURE_ERROR


def test_decoding_each_chunk_by_itself_is_another_film(vae: comfy.sd.VAE) -> None:
    latents = film_latents(9)
    alone = torch.cat([host_decode(vae, piece) for piece in cut(latents, (3,))])
    assert len(alone) == 27
    whole = host_decode(vae, latents)
    assert (alone[9:14] - whole[9:14]).abs().max() > 100 * numerics.STREAMED_PICTURE_ERROR


@pytest.mark.parametrize("sizes", [(1,), (3,), RAGGED])
def test_wan_22_pictures_as_they_come_are_those_of_the_whole_film(
    vae_of_wan22: comfy.sd.VAE, sizes: tuple[int, ...]
) -> None:
    latents = film_latents(7, channels=48)
    whole = host_decode(vae_of_wan22, latents)
    pictures = streamed(vae_of_wan22, latents, sizes)
    assert pictures.shape == whole.shape == (25, 16 * SIZE[0], 16 * SIZE[1], 3)
    assert whole.std() > numerics.NOT_FLAT
    assert (pictures - whole).abs().max() < numerics.STREAMED_PICTURE_ERROR


def test_a_frame_without_its_partner_is_held_back(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    latents = film_latents(6)
    assert [len(decoder.push(piece)) for piece in cut(latents, (3,))] == [9, 8]
    assert len(decoder.finish()) == 4


def test_a_push_that_completes_nothing_gives_no_picture_of_the_right_size(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    decoder.push(film_latents(1))
    assert decoder.push(film_latents(1)).shape == (0, 8 * SIZE[0], 8 * SIZE[1], 3)


def test_after_its_end_a_decoder_begins_a_new_film(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    first = torch.cat([decoder.push(film_latents(4)), decoder.finish()])
    again = torch.cat([decoder.push(film_latents(4)), decoder.finish()])
    assert torch.equal(first, again)


@pytest.mark.parametrize("stopped_at", [1, 2, 12, LONG_FILM - 7])
def test_replaying_the_end_of_the_past_gives_the_bits_of_a_film_that_was_never_stopped(
    vae: comfy.sd.VAE, stopped_at: int
) -> None:
    latents = film_latents(LONG_FILM)[:, :, : stopped_at + 7]
    before, after = latents[:, :, :stopped_at], latents[:, :, stopped_at:]
    never_stopped = StreamingDecoder(vae)
    never_stopped.push(before)
    resumed = StreamingDecoder(vae)
    start = resumed.replay_start(stopped_at)
    resumed.replay(before[:, :, start:], start)
    assert torch.equal(resumed.push(after), never_stopped.push(after))
    assert torch.equal(resumed.finish(), never_stopped.finish())


def test_replaying_needs_a_limited_past(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    assert decoder.replay_start(10) == 0
    assert LONG_FILM - decoder.replay_start(LONG_FILM) < 50
    assert 10_000 - decoder.replay_start(10_000) < 50


def test_replaying_too_short_a_past_is_another_film(vae: comfy.sd.VAE) -> None:
    latents = film_latents(LONG_FILM)
    never_stopped, resumed = StreamingDecoder(vae), StreamingDecoder(vae)
    never_stopped.push(latents[:, :, :20])
    resumed.replay(latents[:, :, 16:20], 16)
    after = latents[:, :, 20:23]
    assert not torch.equal(resumed.push(after), never_stopped.push(after))


def test_wan_22_replays_to_the_same_bits(vae_of_wan22: comfy.sd.VAE) -> None:
    latents = film_latents(LONG_FILM, channels=48)
    never_stopped, resumed = StreamingDecoder(vae_of_wan22), StreamingDecoder(vae_of_wan22)
    stopped_at = LONG_FILM - 3
    never_stopped.push(latents[:, :, :stopped_at])
    start = resumed.replay_start(stopped_at)
    assert start > 0
    resumed.replay(latents[:, :, start:stopped_at], start)
    after = latents[:, :, stopped_at:]
    assert torch.equal(resumed.push(after), never_stopped.push(after))


def test_an_interrupt_stops_a_push_and_leaves_the_decoder_as_it_was(vae: comfy.sd.VAE) -> None:
    latents = film_latents(9)
    decoder = StreamingDecoder(vae)
    begin = decoder.push(latents[:, :, :4])
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        decoder.push(latents[:, :, 4:])
    pictures = torch.cat([begin, decoder.push(latents[:, :, 4:]), decoder.finish()])
    assert torch.equal(pictures, streamed(vae, latents, (9,)))


def test_decoding_leaves_nothing_on_the_hosts_modules(vae: comfy.sd.VAE) -> None:
    before = {name: set(vars(module)) for name, module in vae.first_stage_model.named_modules()}
    streamed(vae, film_latents(4), (3,))
    assert before == {name: set(vars(module)) for name, module in vae.first_stage_model.named_modules()}


def test_another_vae_is_refused_by_name(host: object) -> None:
    image_vae = comfy.sd.VAE(sd={"taesd_decoder.1.weight": torch.zeros(64, 4, 3, 3)})
    with pytest.raises(ValueError, match=r"needs the VAE of Wan 2\.1 or Wan 2\.2, got comfy\.taesd\.taesd\.TAESD"):
        StreamingDecoder(image_vae)
    with pytest.raises(ValueError, match=r"got builtins\.str"):
        StreamingDecoder("vae")


@pytest.mark.parametrize("shape", [(1, 16, 3, 4), (2, 16, 3, 3, 4), (1, 4, 3, 3, 4), (1, 16, 0, 3, 4)])
def test_latents_of_another_shape_are_refused(vae: comfy.sd.VAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs the latents of one film, \[1, 16, T, H, W\]"):
        StreamingDecoder(vae).push(torch.zeros(shape))


def test_latents_of_another_size_than_before_are_refused(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    decoder.push(film_latents(1))
    with pytest.raises(ValueError, match=r"one size, got \[6, 8\] after \[3, 4\]"):
        decoder.push(torch.zeros(1, 16, 1, 6, 8))


def test_finishing_nothing_and_replaying_twice_are_refused(vae: comfy.sd.VAE) -> None:
    decoder = StreamingDecoder(vae)
    with pytest.raises(ValueError, match="at least one latent frame"):
        decoder.finish()
    with pytest.raises(ValueError, match="start 3"):
        decoder.replay(film_latents(1), 3)
    decoder.push(film_latents(1))
    with pytest.raises(ValueError, match="after some pushes"):
        decoder.replay(film_latents(1), 0)
