"""Every HunyuanVideo model that the host knows beside the supported one, at tiny size: detected and built by its own loader."""

from __future__ import annotations

from dataclasses import dataclass, field

import comfy.sd
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, new_hunyuan

SPEC = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, seed=3)


@dataclass(frozen=True, slots=True)
class Variant:
    """The tensors by which the host tells a variant, those that it lacks, and how its refusal names it."""

    named: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    lacks: str | None = None


def patches(channels: int, *size: int) -> dict[str, Tensor]:
    """An embedding of patches of this many channels."""
    return {"img_in.proj.weight": torch.zeros(SPEC.width, channels, *(size or (1, 2, 2)))}


VISION = {"vision_in.proj.0.weight": torch.zeros(1152)}
VARIANTS = {
    "HunyuanVideoI2V": Variant("got HunyuanVideoI2V", patches(33)),
    "HunyuanVideoSkyreelsI2V": Variant("got HunyuanVideoSkyreelsI2V", patches(32)),
    "HunyuanVideo15": Variant("got HunyuanVideo15", {**VISION, **patches(65, 1, 1, 1)}),
    "HunyuanVideo15_SR_Distilled": Variant("got HunyuanVideo15_SR_Distilled", {**VISION, **patches(98, 1, 1, 1)}),
    "HunyuanImage21": Variant("got HunyuanImage21", patches(64, 1, 1), lacks="vector_in"),
    "HunyuanImage21Refiner": Variant("got HunyuanImage21Refiner", patches(128, 1, 1, 1), lacks="vector_in"),
}


def other_hunyuan_models() -> list[str]:
    """Names of the HunyuanVideo models of this host that LongReel does not support."""
    known = comfy.supported_models.models
    family = [config for config in known if config.unet_config.get("image_model") == "hunyuan_video"]
    return [config.__name__ for config in family if config.__name__ != "HunyuanVideo"]


def load_hunyuan_variant(name: str) -> ModelPatcher:
    """The tiny model of this name; KeyError for one that was added to the host since."""
    variant = VARIANTS[name]
    state = {**new_hunyuan(SPEC).state_dict(), **variant.tensors}
    if variant.lacks is not None:
        state = {key: weight for key, weight in state.items() if not key.startswith(variant.lacks)}
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    assert type(model.model.model_config).__name__ == name
    return model
