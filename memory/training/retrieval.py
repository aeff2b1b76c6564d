"""How much of a film an encoder keeps: frames from any time are asked for, and made from its tokens alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..encoded_history import History
from ..encoder import MemoryEncoder
from .clips import TileCodec, decode_latents, film_clips
from .encoder_training import (
    EncoderBatch,
    EncoderStage,
    EncoderTraining,
    draw_frames,
    encoder_batch,
    encoder_films,
    read_history,
)
from .run_folder import generator_for
from .tiny_vae import FIRST_TEST_SEED, psnr

TEST_SEEDS = 1_000_000
"""How many films there are that no training sees, from FIRST_TEST_SEED on."""


class Retrieval(NamedTuple):
    """PSNR in dB of random frames against their true ones, both decoded by the codec; mean over films.

    `marked` films are encoded as in training, where frames that are not asked for are noise, `whole` ones clean, so that nothing
    tells the encoder which frames will be asked for. `other` gives the model another film, `nothing` no history at all.
    """

    marked: float
    whole: float
    other: float
    nothing: float


@torch.no_grad()
def measure_retrieval(
    config: EncoderTraining, modules: Any, network: Any, encoder: MemoryEncoder, codec: TileCodec, batches: int = 4
) -> Retrieval:
    """Ask for `config.kept_frames` random frames of unseen films, `config.clips` films a batch, under no prompt.

    Raises ValueError for the settings of stage II, which asks for no frames.
    """
    if config.stage != EncoderStage.PRETRAIN.value:
        raise ValueError(f"Retrieval needs the settings of stage I, got {config.stage}. Measure a pretrained encoder.")
    rows = []
    with modules.training():
        for number in range(batches):
            clips = film_clips(encoder_films(config, number, FIRST_TEST_SEED, TEST_SEEDS), codec)
            marked = encoder_batch(config, clips, number)
            whole = read_history(network, encoder, marked._replace(history=clips.latents))
            histories: list[History | None] = [
                read_history(network, encoder, marked),
                whole,
                whole._replace(tokens=whole.tokens.roll(1, dims=0)),
                None,
            ]
            rows.append([_decibels(config, modules, network, history, marked, codec, number) for history in histories])
    return Retrieval(*(sum(column) / batches for column in zip(*rows, strict=True)))


def _decibels(
    config: EncoderTraining,
    modules: Any,
    network: Any,
    history: History | None,
    batch: EncoderBatch,
    codec: TileCodec,
    number: int,
) -> float:
    """PSNR of the frames that the model makes beside this history, all films of the batch together."""
    noise = torch.randn(batch.target.shape, generator=generator_for(config.seed, "retrieval noise", number))
    x = draw_frames(modules, network, history, noise, batch.text)
    made, true = (torch.stack([decode_latents(film, codec) for film in films]) * 2 - 1 for films in (x, batch.target))
    return psnr(made, true)
