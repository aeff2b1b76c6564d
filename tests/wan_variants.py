"""Every Wan model that the host knows, at tiny size: detected and built by its own loader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import comfy.latent_formats
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from longreel.memory.training.initialise import initialise_wan
from longreel.nodes.host.build import TinyWanSpec, host_modules

SPEC = TinyWanSpec(width=128, layers=1, ffn=128, seed=3)
SUPPORTED = ("WAN21_T2V", "WAN21_CausalAR_T2V", "WAN22_T2V")


@dataclass(frozen=True, slots=True)
class Variant:
    """What sets a variant apart: the tensors by which the host tells it, and how its refusal names it."""

    named: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    model_type: str | None = None
    """For variants that the host tells by the metadata of the file alone."""


def patches(name: str, channels: int) -> dict[str, Tensor]:
    """An embedding of patches of this many channels."""
    return {f"{name}.weight": torch.zeros(SPEC.width, channels, 1, 2, 2)}


IMAGE = {"img_emb.proj.0.bias": torch.zeros(1280)}
CAMERA = {"control_adapter.conv.weight": torch.zeros(SPEC.width, 1536, 2, 2)}
VARIANTS = {
    "WAN21_I2V": Variant("type i2v, 36 input channels", {**patches("patch_embedding", 36), **IMAGE}),
    "WAN21_FunControl2V": Variant("type i2v, 48 input channels", {**patches("patch_embedding", 48), **IMAGE}),
    "WAN21_Vace": Variant(
        "WAN21_Vace", {**patches("vace_patch_embedding", 96), "vace_blocks.0.norm3.bias": torch.zeros(SPEC.width)}
    ),
    "WAN21_Camera": Variant("WAN21_Camera", {**patches("patch_embedding", 32), **CAMERA, **IMAGE}),
    "WAN22_Camera": Variant("WAN21_Camera", {**patches("patch_embedding", 36), **CAMERA}),
    "WAN22_S2V": Variant(
        "WAN22_S2V", {"casual_audio_encoder.encoder.final_linear.weight": torch.zeros(SPEC.width, SPEC.width)}
    ),
    "WAN21_HuMo": Variant("WAN21_HuMo", {"audio_proj.audio_proj_glob_1.layer.bias": torch.zeros(512)}),
    "WAN22_Animate": Variant("WAN22_Animate", {"face_adapter.fuser_blocks.0.k_norm.weight": torch.ones(128)}),
    "WAN_Animate2": Variant("WAN_Animate2", patches("patch_embedding", 36), model_type="animate2"),
    "WAN21_FlowRVS": Variant("WAN21_FlowRVS", model_type="flow_rvs"),
    "WAN21_SCAIL": Variant("WAN21_SCAIL", patches("patch_embedding_pose", 16)),
    "WAN21_SCAIL2": Variant("WAN21_SCAIL2", patches("patch_embedding_mask", 28)),
    "WAN22_WanDancer": Variant(
        "WAN22_WanDancer", {**patches("patch_embedding", 36), **patches("patch_embedding_global", 36)}
    ),
}


def other_wan_models() -> list[str]:
    """Names of the Wan models of this host that LongReel does not support."""
    known = [config for config in comfy.supported_models.models if config.unet_config.get("image_model") == "wan2.1"]
    return [config.__name__ for config in known if config.__name__ not in SUPPORTED]


def load_wan(tensors: dict[str, Tensor], model_type: str | None = None) -> ModelPatcher:
    """A tiny text-to-video Wan with these tensors on top, as the host loads it."""
    state = {**host_modules().new_wan(SPEC).state_dict(), **tensors}
    metadata: dict[str, Any] | None = None
    if model_type is not None:
        metadata = {"config": json.dumps({"transformer": {"model_type": model_type}})}
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32}, metadata=metadata)


def load_variant(name: str) -> ModelPatcher:
    """The tiny model of this name; KeyError for one that was added to the host since."""
    variant = VARIANTS[name]
    model = load_wan(variant.tensors, variant.model_type)
    assert type(model.model.model_config).__name__ == name
    return model


def build_tiny_wan22() -> ModelPatcher:
    """A Wan 2.2 text-and-image-to-video model of 48 channels, detected and loaded by the host itself."""
    channels = comfy.latent_formats.Wan22().latent_channels
    network = WanModel(
        dim=SPEC.width,
        ffn_dim=SPEC.ffn,
        num_heads=SPEC.heads,
        num_layers=1,
        in_dim=channels,
        out_dim=channels,
        device="cpu",
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    initialise_wan(network, torch.Generator().manual_seed(0))
    return comfy.sd.load_diffusion_model_state_dict(network.state_dict(), model_options={"dtype": torch.float32})
