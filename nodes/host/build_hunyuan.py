"""A tiny real HunyuanVideo, built through the host's own loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import comfy.latent_formats
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...memory.training.encoder_family import Family
from ...memory.training.initialise import initialise_hunyuan
from .build import HEAD_SIZE, LATENT_CHANNELS, HostModules, host_modules
from .hunyuan_training import TrainedHunyuan

CLIP_WIDTH, TEXT_WIDTH, MLP_RATIO = 768, 4096, 4.0
FLAT = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""Black and the three colours."""


@dataclass(frozen=True, slots=True)
class TinyHunyuanSpec:
    """The shape of a tiny HunyuanVideo; `guidance` gives it the input of distilled guidance, `seed` draws its weights.

    Raises ValueError for a width that the host could not read off the weights.
    """

    width: int = 256
    double_layers: int = 2
    single_layers: int = 4
    guidance: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < HEAD_SIZE or self.width % HEAD_SIZE:
            raise ValueError(
                f"A tiny HunyuanVideo needs a width that is a multiple of {HEAD_SIZE}, got {self.width}. Use {HEAD_SIZE} or "
                f"{2 * HEAD_SIZE}."
            )
        if self.double_layers < 1 or self.single_layers < 1:
            raise ValueError(
                f"A tiny HunyuanVideo needs at least 1 layer of each kind, got {self.double_layers} double and "
                f"{self.single_layers} single ones."
            )


def new_hunyuan(spec: TinyHunyuanSpec, in_channels: int = LATENT_CHANNELS) -> nn.Module:
    """The host's network with seeded weights; image-to-video checkpoints have other `in_channels`."""
    model: nn.Module = HunyuanVideo(
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        vec_in_dim=CLIP_WIDTH,
        context_in_dim=TEXT_WIDTH,
        hidden_size=spec.width,
        mlp_ratio=MLP_RATIO,
        num_heads=spec.width // HEAD_SIZE,
        depth=spec.double_layers,
        depth_single_blocks=spec.single_layers,
        axes_dim=[16, 56, 56],
        theta=256,
        patch_size=[1, 2, 2],
        qkv_bias=True,
        guidance_embed=spec.guidance,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    initialise_hunyuan(model, torch.Generator().manual_seed(spec.seed))
    return model


def hunyuan_modules() -> HostModules:
    """What training needs from the host for HunyuanVideo: its latent statistics, and how it reads history."""
    modules, scale = host_modules(), comfy.latent_formats.HunyuanVideo().scale_factor
    mean, std = torch.zeros_like(modules.latent_mean), torch.full_like(modules.latent_std, 1 / scale)
    return modules._replace(latent_mean=mean, latent_std=std, family=TrainedHunyuan())


def modules_of(family: Family) -> HostModules:
    """What training needs from the host for this family."""
    return host_modules() if family == "wan" else hunyuan_modules()


def build_tiny_hunyuan(
    spec: TinyHunyuanSpec | None = None,
    dtype: torch.dtype = torch.float32,
    weights: Mapping[str, Tensor] | None = None,
) -> ModelPatcher:
    """A tiny HunyuanVideo text-to-video model, detected and loaded by the host itself.

    `weights` (a HunyuanVideo state dict of any tiny shape) replaces the seeded random weights of `spec`.
    """
    state = dict(weights) if weights is not None else new_hunyuan(spec or TinyHunyuanSpec()).state_dict()
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
    if model is None:
        raise ValueError(
            f"The host did not recognise these weights as a HunyuanVideo model, got {len(state)} tensors. Give the weights "
            "of `new_hunyuan`."
        )
    return model


@torch.inference_mode()
def preview_with(model: ModelPatcher, vae: comfy.sd.VAE) -> None:
    """Let the host preview this model's latents in the rough colours of `vae`, which is not HunyuanVideo's own."""
    flat = [vae.encode(torch.tensor(colour).expand(1, 32, 32, 3))[:, :, 0, 2, 2] for colour in FLAT]  # [1, 16] each
    latents: Tensor = model.model.process_latent_in(torch.cat(flat))
    factors = 2 * torch.linalg.pinv(latents[1:] - latents[0])  # [16, 3]; the host's pictures go from -1 to 1
    known = model.model.latent_format
    known.latent_rgb_factors = factors.tolist()
    known.latent_rgb_factors_bias = (-1 - latents[0] @ factors).tolist()
