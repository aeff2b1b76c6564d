"""Smaller videos for the low-resolution branch in training, through the VAE, as a film in the making has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..encoder_spec import EncoderSpec
from ..small_video import small_pictures
from .clips import TILE


class SmallVideoCodec:
    """Latents to those of the smaller video: decoded, shrunk, encoded.

    The VAE is causal: a piece is decoded as a video of its own, whose first latent frame is one picture. So what is told depends on where
    pieces begin, and films are told as they go on by `chunk_frames`.
    """

    def __init__(self, vae: Any, mean: Tensor, std: Tensor, chunk_frames: int) -> None:
        """A host `WanVAE`, and the mean and spread of its latents `[1, 16, 1, 1, 1]`."""
        self._vae, self._mean, self._std, self.chunk_frames = vae, mean, std, chunk_frames

    @torch.no_grad()
    def encode(self, latents: Tensor, spec: EncoderSpec) -> Tensor:
        """Normalised latents of a piece `[B, 16, T, h, w]` to those of its smaller video."""
        mean, std = self._mean.to(latents), self._std.to(latents)
        self._vae.to(latents.device)
        made = self._vae.decode(latents * std + mean)  # [B, 3, F, H, W] in -1..1
        pictures = ((made + 1) / 2).clamp(0, 1).movedim(1, -1)
        size = spec.low_size(*latents.shape[2:])
        small = torch.stack([small_pictures(film, size, TILE) for film in pictures]).movedim(-1, 1)
        encoded: Tensor = (self._vae.encode(small * 2 - 1) - mean) / std
        return encoded
