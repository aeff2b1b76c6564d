"""The tiny Wan VAE: the host's `WanVAE`, narrow, with weights that `linear_codec` finds on Storyworld films."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .linear_codec import Footage, fit_linear_decoder, fit_linear_encoder
from .storyworld import FilmSettings, random_film, render_film

FIRST_TEST_SEED = 10_000_000
"""Films from this seed on are never used to fit or to train anything."""
FILM = FilmSettings(chunks=4, chunk_frames=2)


@dataclass(frozen=True, slots=True)
class TinyVaeFit:
    """How wide the tiny VAE is, on how many films its encoder and its decoder are fitted, and what a clip's pixel counts."""

    dim: int = 8
    encoder_films: int = 60
    decoder_films: int = 12
    clip_weight: float = 0.05

    def __post_init__(self) -> None:
        if self.clip_weight < 0:
            raise ValueError(f"Real clips need a weight of 0 or more, got {self.clip_weight}. Use 0.05.")
        if self.dim < 8 or not 1 <= self.decoder_films <= self.encoder_films:
            raise ValueError(
                f"The tiny VAE needs a dim of at least 8 and 1 to encoder_films decoder films, got dim {self.dim}, "
                f"{self.encoder_films} and {self.decoder_films}. Use 8, 60 and 12."
            )


def film_video(seed: int, settings: FilmSettings = FILM) -> Tensor:
    """The film of a seed as the VAE takes it: `[3, T, 96, 128]` in -1..1."""
    return render_film(random_film(seed, settings)).permute(3, 0, 1, 2) * 2 - 1


def psnr(made: Tensor, true: Tensor) -> float:
    """Peak signal to noise ratio of two videos in -1..1, in dB."""
    return -10 * math.log10(((made.clamp(-1, 1) - true) / 2).square().mean().item())


@torch.no_grad()
def round_trip_psnr(vae: Any, films: int, settings: FilmSettings = FILM) -> float:
    """PSNR in dB of unseen films through encoder and decoder."""
    made, true = [], []
    for index in range(films):
        video = film_video(FIRST_TEST_SEED + index, settings)[None]
        made.append(vae.decode(vae.encode(video)))
        true.append(video)
    return psnr(torch.cat(made), torch.cat(true))


@torch.no_grad()
def _round_to_bf16(*parts: nn.Module) -> None:
    for part in parts:
        for parameter in part.parameters():
            parameter.copy_(parameter.bfloat16().float())


def fit_tiny_vae(
    fit: TinyVaeFit, new_vae: Callable[[int], Any], mean: Tensor, std: Tensor, clips: Sequence[Tensor]
) -> Any:
    """A host `WanVAE` whose latents have the given `mean` and `std` (`[1, 16, 1, 1, 1]`), rounded to bf16 as it ships.

    No gradient step is taken, in a minute or two on one core. `clips` are real ones, for the decoder alone.
    """
    vae = new_vae(fit.dim)
    films = torch.stack([film_video(index) for index in range(fit.encoder_films)])
    fit_linear_encoder(vae, films, mean, std)
    _round_to_bf16(vae.encoder, vae.conv1)
    fit_tiny_decoder(vae, fit, mean, std, clips)
    return vae


def fit_tiny_decoder(vae: Any, fit: TinyVaeFit, mean: Tensor, std: Tensor, clips: Sequence[Tensor]) -> None:
    """Fit the decoder of a tiny VAE anew to films and `clips` (`[3, 4n+1, 96, 128]` in -1..1), rounded to bf16.

    The encoder stays as it is to the bit, and so do the latents of every model that was trained on them.
    """
    films = torch.stack([film_video(index) for index in range(fit.decoder_films)])
    footage = [Footage(films, 1.0), *(Footage(clip[None], fit.clip_weight) for clip in clips)]
    fit_linear_decoder(vae, footage, mean, std)
    _round_to_bf16(vae.decoder, vae.conv2)
