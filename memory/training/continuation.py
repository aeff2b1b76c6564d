"""Does a film's history help to go on with it, or to bring frames back? For videos, in which nobody is known by name."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .clips import FilmClips, TileCodec
from .encoder_chain import Encoders
from .encoder_settings import EncoderStage, EncoderTraining
from .encoder_training import EncoderBatch, clean_batch, encoder_batch, encoder_loss, films_of
from .video_films import VideoFilms


class Continuation(NamedTuple):
    """Mean squared error of the flow of the frames that are asked for, beside the tokens of the film, of another, and of none."""

    own: float
    other: float
    nothing: float


@torch.no_grad()
def measure_continuation(
    config: EncoderTraining,
    modules: Any,
    network: Any,
    encoder: Encoders,
    codec: TileCodec | None,
    videos: VideoFilms,
    batches: int = 8,
) -> Continuation:
    """Go on with the ends of `videos`, which training leaves out, or in stage I bring marked frames of them back, `config.clips`
    films a batch.

    The noise is the same each time.
    """
    device = next(network.parameters()).device
    rows = []
    with modules.training():
        for number in range(batches):
            clips = films_of(config, codec, videos, number, unseen=True)
            own = _asked(config, clips, number).to(device)
            latents, prompts = videos.others(config.clips, config.seed, number)
            another = _asked(config, clips._replace(latents=latents, prompts=prompts), number)
            other = own._replace(history=another.history.to(device), prompts=prompts)
            nothing = own._replace(history=own.history[:, :, :0])
            batches_of = (own, other, nothing)
            rows.append([encoder_loss(modules, network, encoder, each, config, number).item() for each in batches_of])
    return Continuation(*torch.tensor(rows).mean(0).tolist())


def _asked(config: EncoderTraining, clips: FilmClips, number: int) -> EncoderBatch:
    if config.stage == EncoderStage.PRETRAIN.value:
        return encoder_batch(config, clips, number)
    return clean_batch(config, clips, window=0)
