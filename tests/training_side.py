"""What training would draw, for comparison with the product: the last chunk of a clip under the training attention."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from longreel.memory.training.causal import predict_flow
from longreel.memory.training.clips import ClipBatch, text_batch
from longreel.memory.training.gated_reader import GatedReader
from longreel.memory.training.recall import sampling_levels
from longreel.memory.training.storyworld import Film
from longreel.nodes.host.build import TinyWanSpec, host_modules


def training_network(spec: TinyWanSpec, weights: dict[str, Tensor]) -> torch.nn.Module:
    """The plain host model that training uses, with these weights."""
    network = host_modules().new_wan(spec)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network


def training_batch(film: Film, latents: Tensor, chunk_frames: int) -> ClipBatch:
    """A film with these latents as training hands it to the model."""
    text, text_mask = text_batch([[shot.prompt for shot in film.shots]])
    return ClipBatch(latents.clone(), torch.zeros(1), text, text_mask, torch.zeros(1), chunk_frames)


@torch.no_grad()
def draw_last_chunk(network: torch.nn.Module, batch: ClipBatch, seed: int, reader: GatedReader | None = None) -> Tensor:
    """The last chunk of each clip under the training attention, which reads the clean chunks before it, in Euler steps."""
    latents, size = batch.latents.clone(), batch.chunk_frames
    generator = torch.Generator().manual_seed(seed)
    latents[:, :, -size:] = torch.randn(latents[:, :, -size:].shape, generator=generator)
    sigmas = torch.zeros(latents.shape[0], latents.shape[2])
    with host_modules().training(), nullcontext() if reader is None else reader.listening(network):
        for level, lower in pairwise(sampling_levels()):
            sigmas[:, -size:] = level
            flow = predict_flow(network, latents, sigmas, batch, reader=reader)[:, :, -size:]
            latents[:, :, -size:] += (lower - level) * flow
    return latents[:, :, -size:]


class TrainingNoise:
    """The noise of `draw_last_chunk`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, chunk: Any, step: int, shape: Any) -> Tensor:
        """Drawn from the seed alone."""
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(self._seed))

    def seed(self, chunk: Any, label: str) -> int:
        """Euler draws nothing."""
        return self._seed
