"""Train a memory encoder beside a model that ComfyUI loads, such as Wan 2.1 14B or HunyuanVideo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encoder_files import save_encoders
from .encoder_starts import Start, finetuning_from, started, starts_of
from .launched import launched
from .render import INTERRUPTED_EXIT
from .train_films import captioned_videos, source_settings
from .workflow import WorkflowError

if TYPE_CHECKING:
    from ...memory.training.encoder_chain import Encoders
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.video_films import VideoFilms
    from ...memory.training.videos import CaptionedVideo
    from ..host.trained_model import ModelFile

HISTORY_SECONDS = 20
DEFAULTS = {"steps": 10_000, "clips": 1, "size": "480x832", "rate": "4x4x2", "lora_rank": 128, "learning_rate": 1e-4}
"""What the command's own options are beside a large model, unless they are given."""
FRAMES = {"kept_frames": 8, "segment_frames": 8}
WIDTHS, HEADS = (64, 128, 256, 512), 8
"""Of the encoder, as in the paper."""
ERRORS_FILE = "errors.json"


@dataclass(frozen=True, slots=True)
class LargeFiles:
    """A model and what belongs to it, as ComfyUI users have them."""

    model: Path
    vae: Path
    text_encoders: tuple[Path, ...]


def add_large(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--vae`, `--text-encoder` and what goes with them."""
    group = parser.add_argument_group(
        "beside a large model",
        f"with --videos. There pictures are {DEFAULTS['size']}, {HISTORY_SECONDS} s are remembered, a step sees {DEFAULTS['clips']} film, "
        f"the rate is {DEFAULTS['rate']}, training ends at step {DEFAULTS['steps']:,} and --device is auto, unless you say otherwise; tokens count once",
    )
    group.add_argument(
        "--model", type=Path, metavar="FILE", help="Wan or HunyuanVideo text-to-video of models/diffusion_models"
    )
    group.add_argument("--vae", type=Path, metavar="FILE", help="its VAE, of models/vae")
    group.add_argument(
        "--text-encoder",
        type=Path,
        action="append",
        metavar="FILE",
        help="its text encoder, of models/text_encoders; twice for HunyuanVideo, which has two",
    )
    group.add_argument(
        "--dtype", choices=("bf16", "fp32"), help="what the model computes in (default: bf16 on a GPU, fp32 on a CPU)"
    )
    group.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="where latents and prompts are kept, so that both stages find them (default: the folder of --out)",
    )
    group.add_argument(
        "--no-checkpointing",
        action="store_true",
        help="keep everything that the layers compute: a third less to compute, many times the VRAM",
    )
    group.add_argument("--lora-rank", type=int, help=f"of the LoRA (default: {DEFAULTS['lora_rank']})")
    group.add_argument("--learning-rate", type=float, help=f"at its highest (default: {DEFAULTS['learning_rate']})")


def large_files(args: argparse.Namespace) -> LargeFiles | None:
    """The files of the large model, None for the tiny one. Raises WorkflowError for a part of them, and for what does not go with them."""
    files = {"--model": args.model, "--vae": args.vae, "--text-encoder": args.text_encoder}
    missing = [name for name, file in files.items() if file is None]
    if len(missing) == len(files):
        others = {
            "--dtype": args.dtype,
            "--cache": args.cache,
            "--no-checkpointing": args.no_checkpointing or None,
            "--lora-rank": args.lora_rank,
            "--learning-rate": args.learning_rate,
        }
        if given := [name for name, value in others.items() if value is not None]:
            raise WorkflowError(f"{given[0]} needs --model, --vae and --text-encoder, got none of them. Leave it out.")
        return None
    if missing:
        raise WorkflowError(
            f"A large model needs --model, --vae and --text-encoder, got none for {' and '.join(missing)}. Name all of them."
        )
    named = [("--model", args.model), ("--vae", args.vae), *(("--text-encoder", file) for file in args.text_encoder)]
    for name, file in named:
        if not file.is_file():
            raise WorkflowError(f"{name} needs a file of that model, got {file}, which is not there. Check its name.")
    if args.videos is None:
        raise WorkflowError("A large model learns from --videos FOLDER, got none: cartoons are for the tiny one.")
    if args.weights is not None or args.family != "wan":
        raise WorkflowError(
            "--weights and --family are for tiny models, got --model, too, which says what it is. Leave one of them out."
        )
    source_settings(args)  # refuses what is for cartoons
    return LargeFiles(args.model, args.vae, tuple(args.text_encoder))


def run_large(args: argparse.Namespace, files: LargeFiles) -> int:
    """Train or continue one stage, and write the encoder and its LoRA.

    Raises WorkflowError for bad arguments and files before anything slow, ProjectError for a folder that cannot be used.
    """
    captioned, device = captioned_videos(args.videos, any_words=True), args.device or "auto"
    from .train_encoder import CONTINUATION_FILE, lora_of, ready, train_until_stopped, write_json

    ready(args.out, device)
    import peft

    from ...memory.training.continuation import measure_continuation
    from ...memory.training.encoder_training import train_encoder
    from ...memory.training.run_folder import RunFolder
    from ..host.trained_model import TYPES, free_memory, large_modules, load_network, recognise

    try:
        model = recognise(files.model)
    except ValueError as error:
        raise WorkflowError(str(error)) from error
    processes = launched(device)
    dtype = args.dtype or ("fp32" if processes.device.type == "cpu" else "bf16")
    config, starts = _settings(args, model, dtype)
    config = replace(config, processes=processes.count)
    modules = large_modules(model, TYPES[dtype], not args.no_checkpointing)
    lora = lora_of(args, config, model.network, modules.family.lora_targets)
    RunFolder(args.out, config, processes.leads).check(unknown="films")  # before anything slow
    with processes.one_first():
        videos = _films(captioned, config, model, files, args.cache or args.out)
        config = replace(config, films=videos.name)
        RunFolder(args.out, config, processes.leads).check()  # before the model is loaded
    free_memory()
    network = load_network(model, TYPES[dtype])
    encoder = _encoder(config, model, modules.family.embedding(network), starts)
    inputs = (config, modules, peft, network, encoder, None, args.out)
    train = partial(train_encoder, *inputs, lora=lora, videos=videos, processes=processes)
    if not train_until_stopped(train, f"Training beside {model.name} to step {config.steps}", processes):
        return INTERRUPTED_EXIT
    if not processes.leads:
        return 0
    save_encoders(args.out, config, network, encoder)
    print("Measuring what was learned, on the parts of the videos that were left out.", flush=True)
    found = measure_continuation(config, modules, network, encoder, None, videos)
    pretrained = args.stage == "pretrain"
    write_json(args.out / (ERRORS_FILE if pretrained else CONTINUATION_FILE), found._asdict())
    print(
        f"{'Marked frames have' if pretrained else 'What comes next has'} an error of {found.own:.3f} beside the film's own tokens, "
        f"{found.other:.3f} beside another film's and {found.nothing:.3f} beside none."
    )
    return 0


def _settings(args: argparse.Namespace, model: ModelFile, dtype: str) -> tuple[EncoderTraining, list[Start]]:
    """The training, and the encoders that it starts from, if any. Raises WorkflowError for what cannot be."""
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.storyworld import FRAME_STRIDE, Size
    from ..host.trained_model import file_digest

    usual = {**DEFAULTS, "history_frames": HISTORY_SECONDS * model.fps // FRAME_STRIDE}
    given = {name: getattr(args, name, None) for name in (*usual, "seed")}
    common: dict[str, Any] = {**usual, **{name: value for name, value in given.items() if value is not None}, **FRAMES}
    rate = common.pop("rate")
    common |= {"family": model.kind.name, "model": f"{model.name} {file_digest(model.path)}", "dtype": dtype}
    try:
        size, step = Size.parse(common["size"]), 2 * model.pixels
        if size.height % step or size.width % step:
            raise WorkflowError(f"--size needs multiples of {step} for {model.name}, got {size}. Take the next ones.")
        if args.stage == "pretrain":
            return (
                EncoderTraining(
                    rate=rate,
                    branches=args.branches,
                    low=args.low,
                    modulation=args.modulation,
                    own_prompts=not args.one_prompt,
                    proportional=False,  # its mask keeps flash attention away
                    widths=WIDTHS,
                    cross_layers=model.layers if args.cross_attention else 0,
                    **common,
                ),
                [],
            )
        starts, known = starts_of(args)
        for start in starts:
            spec = start.spec
            if (spec.width, spec.channels) != (model.width, model.channels):
                raise WorkflowError(
                    f"{start.option} needs an encoder for {model.name}, of width {model.width} with {model.channels} channels, got one of "
                    f"width {spec.width} with {spec.channels}. Take one that `longreel train encoder pretrain --model` wrote for it."
                )
        return finetuning_from(starts, **common, start=known), starts
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _films(
    captioned: list[CaptionedVideo], config: EncoderTraining, model: ModelFile, files: LargeFiles, cache: Path
) -> VideoFilms:
    """The videos as the model sees them, encoded now or before; VAE and text encoder are let go of.

    Raises WorkflowError for a VAE or text encoder of another model, and for videos that cannot be read or are too short.
    """
    import torch

    from ...memory.training.prompts import KeptPrompts
    from ...memory.training.storyworld import Size
    from ...memory.training.video_films import VideoFilms, encode_videos, refuse_short
    from ...memory.training.videos import frames_at_most
    from ..host.trained_model import ModelText, ModelVae, file_digest

    said = {caption.text for video in captioned for caption in video.captions}
    try:
        vae, text = ModelVae(files.vae, model), ModelText(files.text_encoders, model.kind)
        for video in captioned:  # before the hours that it takes to encode them all
            if (frames := frames_at_most(video.path, model.fps)) is not None:
                refuse_short(video.path.name, frames, model.fps, config.longest_film, alone=len(captioned) == 1)
        prompts = KeptPrompts(cache, text.digest)
        with torch.inference_mode():
            prompts.keep({"", *said}, text.embed, lambda count: print(f"embedding {count} prompts"))
        made = encode_videos(
            captioned,
            Size.parse(config.size),
            vae.encode,
            f"{file_digest(files.vae)} 16-bit",
            cache,
            lambda name: print(f"encoding {name}", flush=True),
            model.fps,
        )
        return VideoFilms(made, config.film_frames, prompts, config.longest_film)
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _encoder(config: EncoderTraining, model: ModelFile, embedding: Any, starts: Sequence[Start]) -> Encoders:
    """A new encoder for this model, or those that `starts` are."""
    import torch

    from ...memory.encoder import MemoryEncoder
    from ...memory.training.encoder_settings import tiny_encoder_spec
    from ...memory.training.initialise import initialise_encoder

    if starts:
        return started(starts)
    tiny = tiny_encoder_spec(config, model.width)
    encoder = MemoryEncoder(replace(tiny, channels=model.channels, heads=HEADS, base=model.name))
    initialise_encoder(encoder, torch.Generator().manual_seed(config.seed), embedding)
    return encoder
