"""Low-rank adapters on a host model, by peft, and the file that the host's own LoRA loader takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..whole_file import explained, whole_file
from .encoder_family import Family

LORA_TARGETS: dict[Family, str] = {
    "wan": r"blocks\.\d+\.((self_attn|cross_attn)\.(q|k|v|o)|ffn\.(0|2))",
    "hunyuan": r"(double|single)_blocks\.\d+\.(.*\.)?(qkv|proj|linear1|linear2|(img|txt)_mlp\.(0|2))",
}
"""Every matrix of every layer of a family's models, but for those that make shifts and gates."""
_ADAPTER = "default"


def add_lora(peft: Any, network: nn.Module, targets: str, rank: int, seed: int) -> list[nn.Parameter]:
    """Freeze `network`, put new adapters of float32 that change nothing yet on its `targets`, and give their parameters.

    `peft` is the package, handed over because it takes seconds to import and is there for training alone.
    """
    network.requires_grad_(False)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
    adapters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in adapters:
        parameter.data = parameter.data.float()  # peft gives them the type of the matrix
    return adapters


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters' weights as the host's LoRA loader names them; the scale is 1."""
    state = {}
    for name, tensor in network.state_dict().items():
        if ".lora_" in name:
            state[f"diffusion_model.{name.replace(f'.{_ADAPTER}.', '.')}"] = tensor.detach().cpu().contiguous()
    return state


def check_lora(network: nn.Module, targets: str, rank: int, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless `state` holds adapters of this rank for every one of the `targets` of `network`, which has none yet."""
    needed: dict[str, tuple[int, ...]] = {}
    for name, part in network.named_modules():
        if isinstance(part, nn.Linear) and re.fullmatch(targets, name):
            needed[f"diffusion_model.{name}.lora_A.weight"] = (rank, part.in_features)
            needed[f"diffusion_model.{name}.lora_B.weight"] = (part.out_features, rank)
    for name, shape in needed.items():
        if name not in state or state[name].shape != shape:
            got = f"{list(state[name].shape)}" if name in state else "none"
            raise ValueError(f"{name} needs to be {list(shape)} in a LoRA of rank {rank} for this model, got {got}.")


def load_lora_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `lora_state` gave. Raises KeyError where it is of another model, RuntimeError where it is of another rank."""
    own: dict[str, Any] = dict(network.named_parameters())
    with torch.no_grad():
        for name in lora_state(network):
            stem, _, kind = name.removeprefix("diffusion_model.").rpartition(".")
            own[f"{stem}.{_ADAPTER}.{kind}"].copy_(state[name])


def save_lora(path: Path, network: nn.Module) -> None:
    """Write the adapters for the host's LoRA loader, whole or not at all. Raises ProjectError where the disk refuses."""
    with explained(f"write into {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file(lora_state(network), part)
