"""Builds tiny real models through the host's own loaders, and hands host classes to code that must not import the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...memory.gates import GateForm, find_gates, gate_keys
from ...memory.training.eight_bit import out_of_eight_bits
from ...memory.training.encoder_family import EncoderFamily, Family
from ...memory.training.initialise import initialise_vae, initialise_wan
from .gates import bring_gates
from .wan import time_channels
from .wan_training import TrainedWan

HEAD_SIZE = 128
"""The host's detection of Wan models divides the width by this to get the number of heads."""
LATENT_CHANNELS = 16
WEIGHTS_FOLDER = Path(__file__).resolve().parents[2] / "memory" / "weights"
ENCODERS_FOLDER = WEIGHTS_FOLDER / "encoders"
"""Where the tiny memory encoder lies alone, because an artist chooses among all files of this folder."""
TINY_ENCODER = ENCODERS_FOLDER / "tiny_encoder.safetensors"
ENCODER_LORA = WEIGHTS_FOLDER / "tiny_encoder_lora.safetensors"
CAUSAL_METADATA = {"config": json.dumps({"transformer": {"causal_ar": True}})}
"""What the host looks for in a file before it loads a Wan model as the causal class."""


@dataclass(frozen=True, slots=True)
class TinyWanSpec:
    """The shape of a tiny Wan model; `seed` draws its weights when no trained ones are given."""

    width: int = 256
    layers: int = 6
    ffn: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < HEAD_SIZE or self.width % HEAD_SIZE:
            raise ValueError(
                f"A tiny Wan model needs a width that is a multiple of {HEAD_SIZE}, got {self.width}. "
                f"Use {HEAD_SIZE}, {2 * HEAD_SIZE} or {3 * HEAD_SIZE}."
            )
        if self.layers < 1 or self.ffn < 1:
            raise ValueError(
                f"A tiny Wan model needs at least 1 layer and an ffn of at least 1, got {self.layers} layers "
                f"and ffn {self.ffn}. Use layers=6, ffn=1024."
            )

    @property
    def heads(self) -> int:
        """Attention heads of 128 numbers each."""
        return self.width // HEAD_SIZE


class HostModules(NamedTuple):
    """What training needs from the host, handed over so that training code imports nothing of it."""

    new_wan: Callable[[TinyWanSpec], nn.Module]
    new_vae: Callable[[int], nn.Module]
    latent_mean: Tensor  # [1, 16, 1, 1, 1]
    latent_std: Tensor  # [1, 16, 1, 1, 1]
    training: Callable[[], Any]
    time_channels: Callable[[int], int]
    family: EncoderFamily


def _new_wan(spec: TinyWanSpec) -> nn.Module:
    model: nn.Module = WanModel(
        dim=spec.width,
        ffn_dim=spec.ffn,
        num_heads=spec.heads,
        num_layers=spec.layers,
        in_dim=LATENT_CHANNELS,
        out_dim=LATENT_CHANNELS,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    initialise_wan(model, torch.Generator().manual_seed(spec.seed))
    return model


def _new_vae(dim: int, seed: int = 0) -> nn.Module:
    # The arguments that the host's VAE loader uses for every Wan 2.1 file, but for the width.
    vae: nn.Module = WanVAE(
        dim=dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        image_channels=3,
        conv_out_channels=3,
        dropout=0.0,
    )
    initialise_vae(vae, torch.Generator().manual_seed(seed))
    return vae


@contextmanager
def _training() -> Iterator[None]:
    # The host's fast rotary kernel has no autograd formula; this switch makes it use plain torch.
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def host_modules() -> HostModules:
    """Host classes at tiny size with seeded weights, the Wan latent statistics and the host's training switch."""
    latents = comfy.latent_formats.Wan21()
    return HostModules(
        _new_wan, _new_vae, latents.latents_mean, latents.latents_std, _training, time_channels, TrainedWan()
    )


def read_shards(folder: Path, part: str) -> dict[str, Tensor]:
    """The weights in all files `tiny_<part>*.safetensors` of a folder; empty where there are none."""
    weights: dict[str, Tensor] = {}
    for shard in sorted(folder.glob(f"tiny_{part}*.safetensors")):
        weights.update(comfy.utils.load_torch_file(str(shard), safe_load=True))
    return out_of_eight_bits(weights)


def shipped_weights(part: Family | Literal["vae"]) -> dict[str, Tensor] | None:
    """The trained weights in `memory/weights`, or None if none ship."""
    return read_shards(WEIGHTS_FOLDER, part) or None


def gated_weights(form: GateForm, folder: Path | None = None) -> dict[str, Tensor] | None:
    """The tiny Wan with gates that ships, or None; with a folder the one there, over a Wan there or else the shipped one.

    The files `tiny_gates_<form>*.safetensors` hold what is other than in the model that gates were trained for.
    """
    folder = folder or WEIGHTS_FOLDER
    trained = read_shards(folder, f"gates_{form.value}")
    base = read_shards(folder, "wan") or shipped_weights("wan")
    return {**base, **trained} if trained and base else None


def build_tiny_reader(weights: Mapping[str, Tensor], lora: Path = ENCODER_LORA) -> ModelPatcher:
    """The tiny Wan as an ordinary model, with the LoRA that lets it read a memory encoder's tokens. ValueError without that file."""
    if not lora.is_file():
        raise ValueError(
            f"The model trained for a memory encoder needs {lora.name} in memory/weights, got none. Train one with `longreel "
            "train encoder`, or load your own LoRA onto the model for any memory."
        )
    return with_lora(build_tiny_wan(weights=weights), lora)


def with_lora(model: ModelPatcher, lora: Path) -> ModelPatcher:
    """A clone of the model with the LoRA in this file at full strength, by the host's own loader."""
    adapters = comfy.utils.load_torch_file(str(lora), safe_load=True)
    patched: ModelPatcher = comfy.sd.load_lora_for_models(model, None, adapters, 1.0, 0.0)[0]
    return patched


def build_tiny_wan(
    spec: TinyWanSpec | None = None,
    causal: bool = False,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> ModelPatcher:
    """A tiny Wan text-to-video model, detected and loaded by the host itself.

    `causal` writes the metadata by which the host picks its causal class (flow shift 5 instead of 8).
    `weights` (a Wan state dict of any tiny shape) replaces the seeded random weights of `spec`; gates among them come
    with the model. Raises ValueError for weights that are no Wan and for broken gates.
    """
    state = dict(weights) if weights is not None else _new_wan(spec or TinyWanSpec()).state_dict()
    gates = find_gates(state)
    for key in gate_keys(list(state)):
        del state[key]
    metadata = CAUSAL_METADATA if causal else None
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype}, metadata=metadata)
    if model is None:
        raise ValueError(
            f"The host did not recognise these weights as a Wan model: needed Wan 2.1 keys such as 'head.modulation', "
            f"got {len(state)} other tensors. Give the weights as `longreel train tiny` writes them."
        )
    if gates is not None:
        bring_gates(model, gates)
    return model


def build_tiny_vae(
    dim: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> comfy.sd.VAE:
    """A narrow Wan VAE (16 channels, time 4, space 8) in the host's own wrapper; `weights` replaces the seeded ones."""
    state = dict(weights) if weights is not None else _new_vae(dim, seed).state_dict()
    return comfy.sd.VAE(sd=state, dtype=dtype)
