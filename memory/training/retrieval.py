"""How much of a film an encoder keeps: frames from any time are asked for, and made from its tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..encoded_history import History
from .clips import TileCodec, decode_latents
from .encoder_chain import Encoders
from .encoder_settings import EncoderStage, EncoderTraining
from .encoder_training import draw_frames, encoder_batch, films_of, read_history
from .run_folder import generator_for
from .storyworld import FRAME_STRIDE
from .tiny_vae import psnr
from .video_films import VideoFilms

_SSIM_RADIUS, _SSIM_SPREAD = 5, 1.5  # pixels
_SSIM_FLOORS = (0.01**2, 0.03**2)  # for pictures of 0 to 1


class Quality(NamedTuple):
    """How near pictures come to the true ones: PSNR in dB and structural similarity, of 1 where they are equal."""

    psnr: float
    ssim: float

    def __str__(self) -> str:
        return f"{self.psnr:.1f} dB (SSIM {self.ssim:.2f})"


class Retrieval(NamedTuple):
    """How near random frames come to their true ones, both decoded by the codec; of one film, or means over films.

    `marked` films are encoded as in training, where frames that are not asked for are noise, `whole` ones clean, so that nothing
    tells the encoder which frames will be asked for. `other` gives the model another film, `nothing` no history at all.
    """

    marked: Quality
    whole: Quality
    other: Quality
    nothing: Quality


class AskedFilm(NamedTuple):
    """An unseen film whose frames were asked for, and one of them, true and as it came back in each of the four ways."""

    found: Retrieval
    true: Tensor  # [H, W, 3] in 0..1
    made: Tensor  # [4, H, W, 3], in the order of Retrieval


@torch.no_grad()
def ask_films(
    config: EncoderTraining,
    modules: Any,
    network: Any,
    encoder: Encoders,
    codec: TileCodec,
    batches: int = 4,
    videos: VideoFilms | None = None,
) -> list[AskedFilm]:
    """Ask for `config.kept_frames` random frames of unseen films, `config.clips` films a batch, two or more, under no prompt.

    They are cartoons, or the ends of `videos`, which training leaves out.

    Raises ValueError for the settings of stage II, which asks for no frames.
    """
    if config.stage != EncoderStage.PRETRAIN.value:
        raise ValueError(f"Retrieval needs the settings of stage I, got {config.stage}. Measure a pretrained encoder.")
    config = replace(config, clips=max(2, config.clips))
    device = next(network.parameters()).device
    asked = []
    with modules.training():
        for number in range(batches):
            clips = films_of(config, codec, videos, number, unseen=True)
            marked = encoder_batch(config, clips, number).to(device)
            whole = read_history(modules, network, encoder, marked._replace(history=clips.latents.to(device)))
            assert whole is not None
            other: History | None = whole._replace(tokens=whole.tokens.roll(1, dims=0))
            if videos is not None:  # whose films of a batch may be neighbours
                latents, _ = videos.others(config.clips, config.seed, number)
                other = read_history(modules, network, encoder, marked._replace(history=latents.to(device)))
            histories: list[History | None] = [read_history(modules, network, encoder, marked), whole, other, None]
            noise = torch.randn(
                marked.target.shape, generator=generator_for(config.seed, "retrieval noise", number)
            ).to(device)
            drawn = [draw_frames(modules, network, history, noise, marked.text) for history in histories]
            asked += [
                _judged(*films, codec)
                for films in zip(marked.target.cpu(), torch.stack(drawn, dim=1).cpu(), strict=True)
            ]
    return asked


def mean_retrieval(asked: Sequence[AskedFilm]) -> Retrieval:
    """The means over films."""
    table = torch.tensor([film.found for film in asked])  # [films, 4, 2]
    return Retrieval(*(Quality(*way) for way in table.mean(0).tolist()))


def _judged(target: Tensor, drawn: Tensor, codec: TileCodec) -> AskedFilm:
    """The frames `[16, t, h, w]` of a film beside what was drawn for them in four ways `[4, 16, t, h, w]`."""
    true = decode_latents(target, codec)
    made = torch.stack([decode_latents(way, codec) for way in drawn])
    found = (Quality(psnr(way * 2 - 1, true * 2 - 1), structural_similarity(way, true)) for way in made)
    shown = FRAME_STRIDE * (target.shape[1] // 2)  # the picture of a frame in the middle
    return AskedFilm(Retrieval(*found), true[shown], made[:, shown])


def structural_similarity(made: Tensor, true: Tensor) -> float:
    """Mean SSIM of pictures `[N, H, W, 3]` in 0..1, channel by channel, with a Gaussian window of 11 pixels (Wang et al. 2004)."""
    at = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=torch.float32)
    line = torch.exp(-at.square() / (2 * _SSIM_SPREAD**2))
    kernel = torch.outer(line, line)[None, None] / line.sum() ** 2
    a, b = (pictures.permute(0, 3, 1, 2).flatten(0, 1)[:, None] for pictures in (made, true))  # [N * 3, 1, H, W]
    mean_a, mean_b, aa, bb, ab = (functional.conv2d(x, kernel) for x in (a, b, a * a, b * b, a * b))
    spread_a, spread_b, shared = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    light = (2 * mean_a * mean_b + _SSIM_FLOORS[0]) / (mean_a**2 + mean_b**2 + _SSIM_FLOORS[0])
    structure = (2 * shared + _SSIM_FLOORS[1]) / (spread_a + spread_b + _SSIM_FLOORS[1])
    return (light * structure).mean().item()
