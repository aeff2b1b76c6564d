"""Train a memory encoder beside the tiny model: stage I, stage II, and what they are measured by."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boot import DEVICES, boot_host
from .encoder_files import ENCODER_FILE, LORA_FILE, save_encoders, with_small_videos
from .encoder_starts import Start, add_beside, finetuning_from, started, starts_of
from .launched import launched
from .render import INTERRUPTED_EXIT, check_folder, set_logging
from .train_films import (
    HISTORY_FRAMES,
    OWN_SIZE,
    add_history,
    add_source,
    captioned_videos,
    source_settings,
    video_films,
)
from .train_large import add_large, large_files, run_large
from .workflow import WorkflowError

if TYPE_CHECKING:
    from ...memory.training.encoder_chain import Encoders
    from ...memory.training.encoder_family import Family
    from ...memory.training.encoder_settings import EncoderTraining
    from ...memory.training.processes import Processes

STEPS = {"pretrain": 1500, "finetune": 1500}
RETRIEVAL_FILE, RECALL_FILE, CONTINUATION_FILE = "retrieval.json", "recall.json", "continuation.json"
CLIPS = 6
TINY = {"clips": CLIPS, "size": OWN_SIZE, "history_frames": HISTORY_FRAMES, "rate": "2x2x2"}
"""What is usual beside the tiny model."""
BRANCHES = ("both", "high", "low", "patchifier")
FAMILIES = {"wan": "Wan", "hunyuan": "HunyuanVideo"}
TELL_EVERY = 25


def add_encoder(models: Any) -> Any:
    """`longreel train encoder pretrain` and `finetune`; gives the place for more."""
    encoder = models.add_parser(
        "encoder",
        help="a memory encoder, for the tiny model on cartoons made as it goes, or for a Wan or HunyuanVideo of yours",
    )
    stages = encoder.add_subparsers(metavar="STAGE", required=True)
    pretrain = stages.add_parser("pretrain", help="stage I: any frame of a film must come back from its tokens")
    finetune = stages.add_parser("finetune", help="stage II: the film goes on beside its tokens")
    pretrain.add_argument("--rate", default="2x2x2", help="4x4x2, 2x2x2, 2x2x1, 2x2x4, 2x2x8 or 4x4x4 (default: 2x2x2)")
    levels = ("clean", "target")
    pretrain.add_argument(
        "--branches",
        choices=BRANCHES,
        default="both",
        help="leave one out, to compare, or take a single large convolution instead (FramePack's way)",
    )
    pretrain.add_argument(
        "--low",
        choices=("latents", "video"),
        default="latents",
        help="what the low-resolution branch looks at: smaller latents, or a smaller video through the VAE, which takes more time "
        "(default: latents)",
    )
    pretrain.add_argument("--modulation", choices=levels, default="clean", help="noise level that tokens are told")
    pretrain.add_argument(
        "--one-prompt",
        action="store_true",
        help="tokens read the prompt of the frames being made, not of their own shots",
    )
    pretrain.add_argument(
        "--counts-once",
        action="store_true",
        help="a token counts once in attention, not as often as what it stands for",
    )
    pretrain.add_argument(
        "--cross-attention",
        action="store_true",
        help="every layer of the model reads the encoder's last hidden states, too",
    )
    finetune.add_argument("--encoder", type=Path, required=True, metavar="FILE", help="what stage I wrote")
    finetune.add_argument(
        "--lora", type=Path, metavar="FILE", help="the LoRA of stage I, to go on with (default: a new one)"
    )
    add_beside(finetune)
    for stage, parser in (("pretrain", pretrain), ("finetune", finetune)):
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="checkpoints, log, curve, files")
        parser.add_argument(
            "--steps", type=int, default=STEPS[stage], help=f"up to this step (default: {STEPS[stage]})"
        )
        parser.add_argument("--clips", type=int, default=CLIPS, help=f"films a step (default: {CLIPS})")
        parser.add_argument("--seed", type=int, default=0, help="other films and another encoder (default: 0)")
        parser.add_argument(
            "--family", choices=FAMILIES, default="wan", help="which tiny model it is trained beside (default: wan)"
        )
        parser.add_argument(
            "--weights",
            type=Path,
            metavar="FOLDER",
            help="that model's weights, as `longreel train tiny --family` wrote them (default: those that ship)",
        )
        add_source(parser)
        add_history(parser)
        add_device(parser)
        add_large(parser)
        parser.set_defaults(train=run_encoder, stage=stage, **dict.fromkeys((*TINY, "steps")), device=None)
    return stages


def add_device(parser: Any) -> None:
    """`--device`."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where to train (default: cpu); several GPUs: start the command with `accelerate launch`",
    )


def run_encoder(args: argparse.Namespace) -> int:
    """Train or continue one stage, and write the encoder and its LoRA.

    Raises WorkflowError for bad arguments before anything is loaded, ProjectError for a folder that cannot be used.
    """
    if (large := large_files(args)) is not None:
        return run_large(args, large)
    for name, usual in {**TINY, "steps": STEPS[args.stage], "device": "cpu"}.items():
        if getattr(args, name, None) is None:
            setattr(args, name, usual)
    config, starts = _settings(args)
    captioned = captioned_videos(args.videos)
    prepare(args.out, args.device, config.family, args.weights)
    import peft

    from ...memory.training.continuation import measure_continuation
    from ...memory.training.encoder_recall import CHARACTERS, measure_encoder_recall
    from ...memory.training.encoder_training import train_encoder
    from ...memory.training.retrieval import ask_films, mean_retrieval
    from ...memory.training.run_folder import RunFolder
    from ..host.build_hunyuan import modules_of
    from .train import tiny_codec

    modules, processes = modules_of(config.family), launched(args.device)
    config = replace(config, processes=processes.count)
    network, encoder = new_pair(config, starts, args.weights)
    lora = lora_of(args, config, network, modules.family.lora_targets)  # refuses another model's before the slow part
    with processes.one_first():
        videos = video_films(captioned, config, modules, args.out)
        config = config if videos is None else replace(config, films=videos.name)
        RunFolder(args.out, config, processes.leads).check()  # before the slow part
        codec = tiny_codec(modules, args.out)
        encoder = with_small_videos(encoder, modules, args.out, config.segment_frames)
    inputs = (config, modules, peft, network, encoder, codec, args.out)
    train = partial(train_encoder, *inputs, lora=lora, videos=videos, processes=processes)
    if not train_until_stopped(train, f"Training to step {config.steps}", processes):
        return INTERRUPTED_EXIT
    if not processes.leads:
        return 0
    for path in save_encoders(args.out, config, network, encoder):
        print(f"encoder  {path}")
    print(f"LoRA     {args.out / LORA_FILE}")
    print("Measuring what was learned, on films that no training saw. This may take some minutes.", flush=True)
    if args.stage == "pretrain":
        found = mean_retrieval(ask_films(config, modules, network, encoder, codec, videos=videos))
        write_json(args.out / RETRIEVAL_FILE, {name: quality._asdict() for name, quality in found._asdict().items()})
        print(
            f"Frames from anywhere in unseen films come back at {found.marked} where they were marked, at {found.whole} "
            f"where nobody said which would be asked for, at {found.other} from another film and at {found.nothing} from "
            "nothing."
        )
        print(
            f"Stage II:  longreel train encoder finetune --family {config.family} --encoder {args.out / ENCODER_FILE} --lora {args.out / LORA_FILE} "
            "--out ANOTHER_FOLDER"
        )
        return 0
    if videos is not None:
        going_on = measure_continuation(config, modules, network, encoder, codec, videos)
        write_json(args.out / CONTINUATION_FILE, going_on._asdict())
        print(
            f"What comes next in the parts of the videos that were left out has an error of {going_on.own:.3f} beside the film's own "
            f"tokens, {going_on.other:.3f} beside another film's and {going_on.nothing:.3f} beside none."
        )
        return 0
    recalled = measure_encoder_recall(config, modules, network, encoder, codec)
    write_json(args.out / RECALL_FILE, recalled._asdict())
    print(
        f"Who comes back looks like before to {recalled.identity:.2f} (cosine) and is told from {CHARACTERS} in "
        f"{recalled.who:.0%} of unseen films; {recalled.swapped:.0%} when another name is asked for. With another film's "
        f"tokens {recalled.other:.2f}, from the newest frames alone {recalled.window:.2f}, everybody's average "
        f"{recalled.averaging:.2f}."
    )
    return 0


def prepare(out: Path, device: str, family: Family = "wan", weights: Path | None = None) -> None:
    """Whether there is all that training needs, and the host. Raises WorkflowError where something is missing."""
    ready(out, device)
    from ..host.build import shipped_weights

    if weights is None and shipped_weights(family) is None:
        raise WorkflowError(
            f"Training an encoder needs the weights of the tiny {FAMILIES[family]}, got none in memory/weights. Train it with "
            f"`longreel train tiny --family {family}` and name its folder with --weights."
        )


def ready(out: Path, device: str) -> None:
    """The folder and the host. Raises WorkflowError where something is missing."""
    if importlib.util.find_spec("peft") is None:
        raise WorkflowError('Training an encoder needs the package peft, got none. Run `pip install -e ".[train]"`.')
    check_folder(out)
    set_logging(verbose=False)
    boot_host(device)


def new_pair(
    config: EncoderTraining, starts: Sequence[Start] = (), weights: Path | None = None
) -> tuple[Any, Encoders]:
    """The tiny model that ships, or that in the folder `weights`, without adapters, and a new encoder, or those that `starts` are.

    Raises WorkflowError for an encoder or weights of another model.
    """
    import torch

    from ...memory.encoder import MemoryEncoder
    from ...memory.training.encoder_settings import tiny_encoder_spec
    from ...memory.training.initialise import initialise_encoder
    from ..host.build import WEIGHTS_FOLDER, TinyWanSpec, host_modules, read_shards
    from ..host.build_hunyuan import TinyHunyuanSpec, modules_of, new_hunyuan
    from .train import LAYERS

    spec = TinyWanSpec(layers=LAYERS) if config.family == "wan" else TinyHunyuanSpec(guidance=False)
    network: Any = host_modules().new_wan(spec) if isinstance(spec, TinyWanSpec) else new_hunyuan(spec)
    try:
        network.load_state_dict(read_shards(weights or WEIGHTS_FOLDER, config.family))
    except RuntimeError as error:
        raise WorkflowError(
            f"--weights needs the weights of a tiny {FAMILIES[config.family]} as `longreel train tiny` makes it, got others in "
            f"{weights}: {str(error).splitlines()[1].strip()}"
        ) from error
    for start in starts:
        if start.spec.width != spec.width:
            raise WorkflowError(
                f"{start.option} needs an encoder for the tiny model, of width {spec.width}, got one of width {start.spec.width}. "
                "Take one that `longreel train encoder pretrain` wrote."
            )
    if starts:
        return network, started(starts)
    encoder = MemoryEncoder(tiny_encoder_spec(config, spec.width))
    embedding = modules_of(config.family).family.embedding(network)
    initialise_encoder(encoder, torch.Generator().manual_seed(config.seed), embedding)
    return network, encoder


def write_json(path: Path, found: Any) -> None:
    from ...memory.whole_file import whole_file

    with whole_file(path) as part:
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _settings(args: argparse.Namespace) -> tuple[EncoderTraining, list[Start]]:
    """The training, and the encoders that it starts from, if any."""
    from ...memory.training.encoder_recall import CHARACTERS
    from ...memory.training.encoder_settings import BASES, EncoderTraining
    from .train import LAYERS, weights_hash

    common = {name: getattr(args, name) for name in ("steps", "seed", "clips", "history_frames", "family")}
    common |= source_settings(args)
    known = [] if args.weights is None else [weights_hash(args.weights, args.family)]
    if args.stage == "finetune" and args.videos is None and args.size != OWN_SIZE:
        raise WorkflowError(
            f"--size needs --videos in stage II, got {args.size} for cartoons: who comes back is judged in pictures of "
            f"{OWN_SIZE}. Leave it out."
        )
    try:
        if args.stage == "pretrain":
            given = {name: getattr(args, name) for name in ("rate", "branches", "low", "modulation")}
            given |= {"own_prompts": not args.one_prompt, "proportional": not args.counts_once}
            given |= {"start": known[0]} if known else {}
            return EncoderTraining(**common, **given, cross_layers=LAYERS if args.cross_attention else 0), []
        starts, digests = starts_of(args)
        for start in starts:
            base = start.spec.base
            if base in BASES.values() and base != BASES[args.family]:
                raise WorkflowError(
                    f"{start.option} needs an encoder for {BASES[args.family]}, got one made for {base}. Name its --family."
                )
        config = finetuning_from(starts, **common, start=" ".join([*known, digests]))
    except ValueError as error:
        raise WorkflowError(str(error)) from error
    shortest = CHARACTERS * config.segment_frames
    if args.videos is None and (config.history_frames < shortest or config.history_frames % config.segment_frames):
        raise WorkflowError(
            f"--history-frames of cartoons needs to be a multiple of {config.segment_frames} in stage II, whose shots have so "
            f"many frames, and {shortest} or more, so that {CHARACTERS} characters are seen, got {config.history_frames}."
        )
    return config, starts


def lora_of(args: argparse.Namespace, config: EncoderTraining, network: Any, targets: str) -> Any:
    """The adapters that stage II goes on with, or None for new ones. Raises WorkflowError for those of another model."""
    if getattr(args, "lora", None) is None:
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ...memory.training.lora import check_lora

    try:
        lora = load_file(args.lora)
        check_lora(network, targets, config.lora_rank, lora)
    except SafetensorError as error:
        raise WorkflowError(f"--lora needs the {LORA_FILE} of stage I, got {args.lora}: '{error}'.") from error
    except ValueError as error:
        raise WorkflowError(f"--lora needs the {LORA_FILE} of stage I, got {args.lora}: {error}") from error
    return lora


def train_until_stopped(train: Callable[..., None], doing: str, processes: Processes) -> bool:
    """Call `train` with the `tell` that speaks for this process; False where the artist stopped it."""
    if processes.leads:
        print(f"{doing}. Ctrl-C stops it; the same command goes on.")
    try:
        train(tell=tell_step if processes.leads else tell_nothing)
    except KeyboardInterrupt:
        print("\nStopped. Give the same command again and it goes on after the last checkpoint.", file=sys.stderr)
        return False
    processes.part()
    return True


def tell_step(row: dict[str, float]) -> None:
    if row["step"] % TELL_EVERY == 0:
        print(f"step {row['step']:5.0f}   loss {row['loss']:.3f}   {row['seconds']:.0f} s")


def tell_nothing(row: dict[str, float]) -> None:
    """For the processes that do not speak."""
