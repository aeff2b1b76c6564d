"""Short trainings of a tiny memory encoder, for the tests of training and of what it is measured by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.training.clips import TileCodec, film_clips
from longreel.memory.training.encoder_settings import EncoderStage, EncoderTraining, tiny_encoder_spec
from longreel.memory.training.encoder_training import EncoderBatch, encoder_batch, encoder_films
from longreel.memory.training.initialise import initialise_encoder
from longreel.nodes.host.build import TinyWanSpec

SPEC = TinyWanSpec(width=128, layers=2, ffn=128)
SHORT = EncoderTraining(
    steps=4, widths=(8, 16), history_frames=6, kept_frames=2, clips=2, lora_rank=4, warm_up=1, cool_down=1, save_every=1
)
STAGES = {stage: replace(SHORT, stage=stage.value) for stage in EncoderStage}
both_stages = pytest.mark.parametrize("stage", EncoderStage)


def orthogonal_codec() -> TileCodec:
    """Orthogonal directions, not a fitted VAE: what is tested here does not depend on which."""
    basis = torch.linalg.qr(torch.randn(768, 16, generator=torch.Generator().manual_seed(0))).Q
    return TileCodec(basis, torch.zeros(16), basis.T.contiguous(), torch.zeros(768))


def new_encoder(config: EncoderTraining = SHORT) -> MemoryEncoder:
    """A new encoder of these settings."""
    encoder = MemoryEncoder(tiny_encoder_spec(config, SPEC.width))
    initialise_encoder(encoder, torch.Generator().manual_seed(0))
    return encoder


def broken_and_resumed(train: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `train`, called with a folder's name, ends with after it was stopped at step 3 and called again."""

    class StoppedError(RuntimeError):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        train("broken", tell=stop)
    return train("broken")


def batch_of(config: EncoderTraining, codec: TileCodec, step: int = 0) -> EncoderBatch:
    """What this step shows."""
    return encoder_batch(config, film_clips(encoder_films(config, step), codec), step)
