"""Train the small models that come with LongReel."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boot import DEVICES, boot_host
from .render import INTERRUPTED_EXIT, check_folder, set_logging
from .train_encoder import add_encoder
from .train_table import add_table
from .workflow import WorkflowError

if TYPE_CHECKING:
    from torch import nn

    from ...memory.training.causal import Predict
    from ...memory.training.clips import TileCodec
    from ...memory.training.gate_training import GateTraining
    from ...memory.training.tiny_training import TinyTraining

NAME = "train"
STEPS = {"wan": 3000, "hunyuan": 1000}
QUICK_STEPS = 1000
PROBE_FILMS = 12
TELL_EVERY = 25
LAYERS = 4
GATE_FORMS = ("omnimem", "decmem")
GATE_STEPS = 600
FAMILIES = tuple(STEPS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    models = parser.add_subparsers(metavar="MODEL", required=True)
    tiny = models.add_parser("tiny", help="the demo's VAE and causal Wan, on cartoons made as it goes")
    tiny.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="checkpoints, log, curve and weights")
    tiny.add_argument("--steps", type=int, help=f"train up to this step (default: {_default_steps()})")
    tiny.add_argument("--quick", action="store_true", help=f"only the first {QUICK_STEPS} steps of the same curve")
    tiny.add_argument("--seed", type=int, default=0, help="another seed, another model (default: 0)")
    tiny.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="start from the files of this family in this folder"
    )
    tiny.add_argument(
        "--gates",
        choices=GATE_FORMS,
        help="continue the model that ships, or the one in --weights, with the gates of this memory",
    )
    tiny.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="which network (default: wan)")
    tiny.add_argument("--device", choices=DEVICES, default="auto")
    tiny.set_defaults(train=run_tiny)
    add_table(add_encoder(models))


def run(args: argparse.Namespace) -> int:
    """Train one model."""
    return int(args.train(args))


def run_tiny(args: argparse.Namespace) -> int:
    """Fit the VAE unless one ships, train or continue the Wan, and write its weights.

    Raises WorkflowError for bad arguments before anything is loaded, ProjectError for a folder that cannot be used.
    """
    if args.gates is not None:
        return run_gates(args)
    config = _config(args)
    check_folder(args.out)
    set_logging(verbose=False)
    boot_host(args.device)
    import comfy.model_management

    from ...memory.training.export import save_weights
    from ...memory.training.run_folder import RunFolder
    from ...memory.training.tiny_training import train_tiny
    from ..host.build import read_shards
    from ..host.build_hunyuan import modules_of

    RunFolder(args.out, config).check()  # before the slow part
    modules = modules_of(args.family)
    codec = tiny_codec(modules, args.out)
    model, predict = _new_model(args.family, args.seed)
    if args.weights is not None:
        model.load_state_dict(read_shards(args.weights, args.family))
    device = str(comfy.model_management.get_torch_device())
    print(f"Training to step {config.steps} on {device}. Ctrl-C stops it; the same command goes on.")
    try:
        train_tiny(config, modules, model, codec, args.out, device, _tell, predict)
    except KeyboardInterrupt:
        return _stopped()
    for path in save_weights(model.state_dict(), args.out, args.family):
        print(f"weights  {path}")
    print(f"Does it remember?  longreel bench recall --quick --weights {args.out}")
    return 0


def run_gates(args: argparse.Namespace) -> int:
    """Train or continue the gates of a tiny Wan, and write them; errors are those of `run_tiny`."""
    config = _gate_config(args)
    check_folder(args.out)
    set_logging(verbose=False)
    boot_host(args.device)
    import comfy.model_management

    from ...memory.training.export import save_weights
    from ...memory.training.gate_training import train_gates
    from ...memory.training.run_folder import RunFolder
    from ..host.build import WEIGHTS_FOLDER, TinyWanSpec, host_modules, read_shards

    RunFolder(args.out, config).check()  # before the slow part
    modules = host_modules()
    codec = tiny_codec(modules, args.out)
    model = modules.new_wan(TinyWanSpec(layers=LAYERS))
    model.load_state_dict(read_shards(args.weights or WEIGHTS_FOLDER, "wan"))
    device = str(comfy.model_management.get_torch_device())
    print(f"Training gates to step {config.steps} on {device}. Ctrl-C stops it; the same command goes on.")
    try:
        trained = train_gates(config, modules, model, codec, args.out, device, _tell)
    except KeyboardInterrupt:
        return _stopped()
    for path in save_weights(trained, args.out, f"gates_{config.form}"):
        print(f"weights  {path}")
    print(f"Do they help?  longreel bench recall --quick --weights {args.out}")
    return 0


def _default_steps() -> str:
    return ", ".join([f"{steps} for {family}" for family, steps in STEPS.items()] + [f"{GATE_STEPS} with --gates"])


def _new_model(family: str, seed: int) -> tuple[nn.Module, Predict]:
    """A seeded network of this family and how its flow is predicted."""
    from ...memory.training.causal import predict_flow
    from ...memory.training.joined import predict_joined_flow
    from ..host.build import TinyWanSpec, host_modules
    from ..host.build_hunyuan import TinyHunyuanSpec, new_hunyuan

    if family == "wan":
        return host_modules().new_wan(TinyWanSpec(layers=LAYERS, seed=seed)), predict_flow
    return new_hunyuan(TinyHunyuanSpec(guidance=False, seed=seed)), predict_joined_flow


def _config(args: argparse.Namespace) -> TinyTraining:
    from ...memory.training.tiny_training import HUNYUAN_STAGES, STAGES, TinyTraining

    start = "seeded" if args.family == "wan" else f"seeded {args.family}"
    if args.weights is not None:
        start = weights_hash(args.weights, args.family)
    steps = STEPS[args.family] if args.steps is None else args.steps
    stages = STAGES if args.family == "wan" else HUNYUAN_STAGES
    try:
        return TinyTraining(min(steps, QUICK_STEPS) if args.quick else steps, stages, seed=args.seed, start=start)
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def _gate_config(args: argparse.Namespace) -> GateTraining:
    from ...memory.training.gate_training import GateTraining

    if args.family != FAMILIES[0]:
        raise WorkflowError(f"Gates are there for --family {FAMILIES[0]}, got {args.family}. Leave one of the two out.")
    if args.quick:
        raise WorkflowError("--quick is for a whole model. Leave it out with --gates, or give fewer --steps.")
    start = "shipped" if args.weights is None else weights_hash(args.weights)
    steps = GATE_STEPS if args.steps is None else args.steps
    try:
        return GateTraining(form=args.gates, steps=steps, seed=args.seed, start=start)
    except ValueError as error:
        raise WorkflowError(str(error)) from error


def weights_hash(folder: Path, family: str = FAMILIES[0]) -> str:
    """Sixteen digits that stand for the network of this family in a folder; WorkflowError where there is none."""
    shards = sorted(folder.glob(f"tiny_{family}*.safetensors"))
    if not shards:
        raise WorkflowError(
            f"--weights needs a folder with tiny_{family}*.safetensors, got {folder}. Give a folder that "
            "`longreel train tiny` wrote, or leave it out to start anew."
        )
    return hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()[:16]


def _stopped() -> int:
    print("\nStopped. Give the same command again and it goes on after the last checkpoint.", file=sys.stderr)
    return INTERRUPTED_EXIT


def _tell(row: dict[str, float]) -> None:
    if row["step"] % TELL_EVERY == 0:
        print(f"step {row['step']:5.0f}   loss {row['loss']:.3f}   {row['seconds']:.0f} s")


def tiny_codec(modules: Any, out: Path) -> TileCodec:
    """The matrix of the tiny VAE."""
    from ...memory.training.clips import probe_codec
    from ...memory.training.storyworld import FilmSettings, random_film

    films = [random_film(index, FilmSettings(chunks=6)) for index in range(PROBE_FILMS)]
    return probe_codec(tiny_vae(modules, out), films, modules.latent_mean, modules.latent_std)


def tiny_vae(modules: Any, out: Path) -> Any:
    """The tiny VAE that ships, or one fitted now and kept in `out`; only to run."""
    from safetensors.torch import load_file

    from ...memory.training.export import save_weights
    from ...memory.training.linear_codec import drop_silent_branches
    from ...memory.training.real_clips import real_clips
    from ...memory.training.tiny_vae import TinyVaeFit, fit_tiny_vae
    from ..host.build import host_modules, shipped_weights

    weights = shipped_weights("vae")
    fitted = out / "tiny_vae.safetensors"
    if weights is None and not fitted.exists():
        print("Fitting the tiny VAE (a few minutes) ...")
        try:
            clips = [clip.fitted for clip in real_clips()]
        except ValueError as error:
            raise WorkflowError(str(error)) from error
        wan = host_modules()  # the VAE is Wan's, whoever learns to draw in its latents
        vae = fit_tiny_vae(TinyVaeFit(), wan.new_vae, wan.latent_mean, wan.latent_std, clips)
        save_weights(vae.state_dict(), out, "vae")
    if weights is None:
        weights = load_file(fitted)
    vae = modules.new_vae(weights["decoder.head.0.gamma"].shape[0])
    vae.load_state_dict(weights)
    drop_silent_branches(vae)
    return vae
