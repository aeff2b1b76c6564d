"""Decodes a film's latents as they come, into the same pictures as the host's VAE Decode makes of the whole film."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_management
import comfy.sd
import torch
from torch import Tensor, nn

FeatureCache: TypeAlias = "list[Tensor | str | None]"
"""What each causal convolution of the host's decoder remembers: its last inputs, 'Rep' after one frame, None before."""

_HOST_LONG_FRAMES = 5  # from this length on the host's estimate counts the decoder's cache, which we always hold
_COLOURS = 3
_SQUARE = 2  # Wan 2.2 decodes squares of 2x2 pixels


def _decode_wan21(model: Any, latents: Tensor, cache: FeatureCache, first: bool) -> Sequence[Tensor]:
    pieces: Sequence[Tensor] = model.decoder(model.conv2(latents), feat_cache=cache, feat_idx=[0])
    return pieces


def _decode_wan22(model: Any, latents: Tensor, cache: FeatureCache, first: bool) -> Sequence[Tensor]:
    squares = model.decoder(model.conv2(latents), feat_cache=cache, feat_idx=[0], first_chunk=first)
    return [comfy.ldm.wan.vae2_2.unpatchify(squares, patch_size=_SQUARE)]


class _Grid(NamedTuple):
    """How the host cuts a film for one of its decoders: the first frame alone, then groups of `group_frames`.

    Wan 2.1 remembers enough for the next group only after a pair, so a shorter group may only be the last one.
    `decode` gives the pictures `[1, 3, N, H, W]` of a group, in pieces, and changes the cache.
    """

    group_frames: int
    head_channels: int
    decode: Callable[[Any, Tensor, FeatureCache, bool], Sequence[Tensor]]


_GRIDS = {
    comfy.ldm.wan.vae.WanVAE: _Grid(2, _COLOURS, _decode_wan21),
    comfy.ldm.wan.vae2_2.WanVAE: _Grid(1, _COLOURS * _SQUARE**2, _decode_wan22),
}


class StreamingDecoder:
    """Turns latents into pictures piece by piece: `push` in film order, then `finish`.

    All pictures together are those of `vae.decode` on the whole film, 4 (T - 1) + 1 of them. What the decoder remembers
    lives here, off the device between pushes. A push that fails or is interrupted changes nothing.
    Raises ValueError for a VAE that is not a Wan VAE with three colours.
    """

    def __init__(self, vae: comfy.sd.VAE) -> None:
        model: Any = getattr(vae, "first_stage_model", None)
        grid = _GRIDS.get(type(model))
        if grid is None:
            kind = type(vae if model is None else model)
            raise ValueError(
                "Decoding a film while it is made needs the VAE of Wan 2.1 or Wan 2.2, got "
                f"{kind.__module__}.{kind.__qualname__}. Load wan_2.1_vae or wan2.2_vae, or leave the VAE unconnected "
                "and decode the latents at the end."
            )
        channels = model.decoder.head[-1].out_channels
        if channels != grid.head_channels:
            raise ValueError(
                f"A film needs a Wan VAE that gives red, green and blue ({grid.head_channels} output channels), got "
                f"{channels} output channels. Load wan_2.1_vae or wan2.2_vae."
            )
        self._vae, self._model, self._grid = vae, model, grid
        self._cache: FeatureCache | None = None
        self._held: Tensor | None = None

    def push(self, latents: Tensor) -> Tensor:
        """The pictures `[N, H, W, 3]`, 0 to 1, that latents `[1, C, T, H, W]` complete; N may be 0.

        Latents are those of the LATENT socket, as VAE Decode takes them; the last frame may be held back until the next
        push. The host loads the VAE and may unload the diffusion model for it: load that one again before sampling goes
        on. Raises ValueError for latents of another shape than the VAE or the pushes before need.
        """
        self._check(latents)
        waiting = latents if self._held is None else torch.cat([self._held.to(latents), latents], dim=2)
        alone = 1 if self._cache is None else 0
        size = self._grid.group_frames
        whole = alone + (waiting.shape[2] - alone) // size * size
        pictures, cache = self._decode(waiting[:, :, :whole])
        self._cache, self._held = cache, waiting[:, :, whole:].clone()
        return pictures

    def finish(self) -> Tensor:
        """The pictures `[N, H, W, 3]` of the frame that was held back, N being 0 or 4; a new film may begin.

        Raises ValueError where nothing was pushed.
        """
        if self._held is None:
            raise ValueError("A film needs at least one latent frame before it is finished, got none. Push latents.")
        pictures, _ = self._decode(self._held)
        self._cache = self._held = None
        return pictures

    def replay_start(self, frames: int) -> int:
        """The first of the film's `frames` latent frames that `replay` needs to stand where they end.

        A picture depends on a limited stretch of the past, about 40 latent frames, so a long film resumes as quickly
        as a short one.
        """
        start = max(0, frames - _reach_frames(self._model.decoder) - self._grid.group_frames)
        return start - start % self._grid.group_frames

    def replay(self, latents: Tensor, start: int) -> None:
        """Stand behind latents `[1, C, T, H, W]` of a stopped run, the first of them being frame `start` of the film.

        What is pushed next gives the bits of a run that was never stopped. Raises ValueError in the middle of a film,
        or at a start that `replay_start` does not give.
        """
        if self._held is not None or start % self._grid.group_frames:
            raise ValueError(
                f"Replaying needs a decoder at its beginning and a start from replay_start, got start {start} after "
                f"{'some' if self._held is not None else 'no'} pushes. Make a new StreamingDecoder."
            )
        self.push(latents)

    def _check(self, latents: Tensor) -> None:
        channels = self._vae.latent_channels
        if latents.ndim != 5 or latents.shape[:2] != (1, channels) or latents.shape[2] < 1:
            raise ValueError(
                f"The VAE needs the latents of one film, [1, {channels}, T, H, W] with T of 1 or more, got "
                f"{list(latents.shape)}. Give it latents of the model it belongs to."
            )
        if self._held is not None and latents.shape[3:] != self._held.shape[3:]:
            raise ValueError(
                f"A film needs latents of one size, got {list(latents.shape[3:])} after {list(self._held.shape[3:])}."
            )

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> tuple[Tensor, FeatureCache]:
        """Pictures `[N, H, W, 3]` of whole groups and the cache behind them; the cache of before is left as it was."""
        vae, management = self._vae, comfy.model_management
        frames, height, width = latents.shape[2:]
        cache = self._cache or [None] * comfy.ldm.wan.vae.count_cache_layers(self._model.decoder)
        if frames == 0:
            scale = vae.spacial_compression_decode()
            empty = torch.empty(0, height * scale, width * scale, _COLOURS)
            return empty.to(device=vae.output_device, dtype=vae.vae_output_dtype()), cache
        estimate = (*latents.shape[:2], max(frames, _HOST_LONG_FRAMES), height, width)
        with management.cuda_device_context(vae.device):
            required = vae.memory_used_decode(estimate, vae.vae_dtype)
            management.load_models_gpu([vae.patcher], memory_required=required, force_full_load=vae.disable_offload)
            cache = _moved(cache, vae.device)
            pieces: list[Tensor] = []
            start = 0
            while start < frames:
                management.throw_exception_if_processing_interrupted()
                first = self._cache is None and start == 0
                stop = start + (1 if first else self._grid.group_frames)
                group = latents[:, :, start:stop].to(device=vae.device, dtype=vae.vae_dtype)
                for piece in self._grid.decode(self._model, group, cache, first):
                    pieces.append(piece.to(device=vae.output_device, dtype=vae.vae_output_dtype()))
                start = stop
            cache = _moved(cache, management.vae_offload_device())
        pictures: Tensor = vae.process_output(torch.cat(pieces, dim=2))  # [1, 3, N, H, W]
        return pictures[0].movedim(0, -1), cache


def _moved(cache: FeatureCache, device: torch.device) -> FeatureCache:
    # Copies: entries are views of whole layers, which they would keep in memory.
    return [entry.to(device, copy=True) if isinstance(entry, Tensor) else entry for entry in cache]


def _reach_frames(decoder: nn.Module) -> int:
    """An upper bound of the latent frames before its own that a picture depends on."""
    reach, pictures_per_frame = 0.0, 1
    for module in decoder.modules():
        if getattr(module, "mode", None) == "upsample3d":
            reach += 2 / pictures_per_frame  # its own time convolution, which comes before the doubling
            pictures_per_frame *= 2
        if isinstance(module, comfy.ldm.wan.vae.CausalConv3d):
            reach += (module.kernel_size[0] - 1) / pictures_per_frame
    return ceil(reach)
