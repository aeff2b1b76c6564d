"""Train the small models that come with LongReel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boot import DEVICES, boot_host

if TYPE_CHECKING:
    from ...memory.training.clips import TileCodec

NAME = "train"
QUICK_STEPS = 1200
PROBE_FILMS = 12
TEST_FILMS = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model."""
    models = parser.add_subparsers(metavar="MODEL", required=True)
    tiny = models.add_parser("tiny", help="the demo's VAE and causal Wan, on cartoons made as it goes")
    tiny.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="checkpoints, log, curve and weights")
    tiny.add_argument("--steps", type=int, default=3000, help="train up to this step (default: 3000)")
    tiny.add_argument("--quick", action="store_true", help=f"only the first {QUICK_STEPS} steps of the same curve")
    tiny.add_argument("--seed", type=int, default=0, help="another seed, another model (default: 0)")
    tiny.add_argument("--device", choices=DEVICES, default="auto")
    tiny.set_defaults(train=run_tiny)


def run(args: argparse.Namespace) -> int:
    """Train one model."""
    return int(args.train(args))


def run_tiny(args: argparse.Namespace) -> int:
    """Fit the VAE unless one ships, train or continue the Wan, write its weights and measure its recall."""
    boot_host(args.device)
    import comfy.model_management
    import torch

    from ...memory.training.export import save_weights
    from ...memory.training.recall import measure_recall, recall_film
    from ...memory.training.tiny_training import TinyTraining, train_tiny
    from ...memory.training.tiny_vae import FIRST_TEST_SEED
    from ..host.build import TinyWanSpec, host_modules

    modules = host_modules()
    config = TinyTraining(steps=min(args.steps, QUICK_STEPS) if args.quick else args.steps, seed=args.seed)
    codec = _codec(modules, args.out)
    model = modules.new_wan(TinyWanSpec(layers=4, seed=args.seed))
    device = str(comfy.model_management.get_torch_device())
    print(f"Training to step {config.steps} on {device}. Ctrl-C stops it; the same command goes on.")
    train_tiny(config, modules, model, codec, args.out, device)
    for path in save_weights(model.state_dict(), args.out, "wan"):
        print(f"weights  {path}")
    films = [recall_film(FIRST_TEST_SEED + index, 11, 1, 5) for index in range(TEST_FILMS)]
    with torch.no_grad():
        print(measure_recall(model.cpu(), codec, modules, films, 1))
    return 0


def _codec(modules: Any, out: Path) -> TileCodec:
    """The matrix of the tiny VAE: of the one that ships, or of one fitted now and kept in `out`."""
    from safetensors.torch import load_file

    from ...memory.training.clips import probe_codec
    from ...memory.training.export import save_weights
    from ...memory.training.storyworld import FilmSettings, random_film
    from ...memory.training.tiny_vae import TinyVaeFit, fit_tiny_vae
    from ..host.build import shipped_weights

    weights = shipped_weights("vae")
    fitted = out / "tiny_vae.safetensors"
    if weights is None and not fitted.exists():
        print("Fitting the tiny VAE (a few minutes) ...")
        vae = fit_tiny_vae(TinyVaeFit(), modules.new_vae, modules.latent_mean, modules.latent_std)
        save_weights(vae.state_dict(), out, "vae")
    if weights is None:
        weights = load_file(fitted)
    vae = modules.new_vae(weights["decoder.head.0.gamma"].shape[0])
    vae.load_state_dict(weights)
    films = [random_film(index, FilmSettings(chunks=6)) for index in range(PROBE_FILMS)]
    return probe_codec(vae, films, modules.latent_mean, modules.latent_std)
