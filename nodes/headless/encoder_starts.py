"""The encoders that stage II starts from: that of `--encoder`, and the one that is trained beside it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .workflow import WorkflowError

if TYPE_CHECKING:
    from torch import Tensor

    from ...memory.encoder_spec import EncoderSpec
    from ...memory.training.encoder_chain import Encoders
    from ...memory.training.encoder_settings import EncoderTraining


class Start(NamedTuple):
    """An encoder that stage I made, the option that named it, and how many of the newest latent frames it tells; None is all."""

    option: str
    spec: EncoderSpec
    weights: dict[str, Tensor]
    longest_frames: int | None = None


def add_beside(finetune: argparse.ArgumentParser) -> None:
    """`--beside` and `--beside-frames`."""
    finetune.add_argument(
        "--beside",
        type=Path,
        metavar="FILE",
        help="another encoder that stage I wrote, trained together with --encoder: films are told by both",
    )
    finetune.add_argument(
        "--beside-frames",
        type=int,
        metavar="FRAMES",
        help="it tells so many of the newest latent frames alone (default: all of the film, as --encoder does)",
    )


def starts_of(args: argparse.Namespace) -> tuple[list[Start], str]:
    """The encoders that stage II starts from, in the order in which a film reads them, and digits that stand for them and the LoRA.

    Raises WorkflowError for files that are not there and for a reach that tells nothing, ValueError for a file that is no encoder.
    """
    from ...memory.encoder_file import read_encoder

    if args.beside is None and args.beside_frames is not None:
        raise WorkflowError("--beside-frames needs --beside, whose frames these are, got none. Name an encoder.")
    files = {"--encoder": args.encoder, "--beside": args.beside, "--lora": args.lora}
    for name, file in files.items():
        if file is not None and not file.is_file():
            raise WorkflowError(
                f"{name} needs a file that `longreel train encoder pretrain` wrote, got {file}. Train one first."
            )
    known = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files.values() if file is not None]
    starts = [Start("--encoder", *read_encoder(args.encoder))]
    if args.beside is not None:
        starts.append(Start("--beside", *read_encoder(args.beside), args.beside_frames))
        _check_reach(starts[1].spec, args.beside_frames)
    return starts, " ".join(known)


def _check_reach(spec: EncoderSpec, frames: int | None) -> None:
    if frames is not None and frames < spec.rate.frames:
        raise WorkflowError(
            f"--beside-frames needs to be {spec.rate.frames} or more for an encoder of rate {spec.rate}, got {frames}: it would tell "
            "nothing."
        )


def finetuning_from(starts: Sequence[Start], **settings: Any) -> EncoderTraining:
    """The settings of stage II for these encoders. Raises ValueError for films that one of them cannot tell."""
    from ...memory.training.encoder_chain import beside_in_words
    from ...memory.training.encoder_settings import finetuning_of

    config, *_ = [finetuning_of(start.spec, **settings) for start in starts]
    beside = [beside_in_words(start.spec, start.longest_frames) for start in starts[1:]]
    return replace(config, beside=", ".join(beside))


def started(starts: Sequence[Start]) -> Encoders:
    """Those encoders in float32, to be trained."""
    from ...memory.encoder import MemoryEncoder
    from ...memory.training.encoder_chain import EncoderChain

    encoders = []
    for start in starts:
        encoder = MemoryEncoder(start.spec)
        encoder.load_state_dict({name: tensor.float() for name, tensor in start.weights.items()})
        encoders.append(encoder)
    return encoders[0] if len(encoders) == 1 else EncoderChain(encoders, [start.longest_frames for start in starts])
