"""A LoRA as training exports it, of both families, in the host: its own loader takes it, and the network is that of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from hunyuan_film import drawn
from numerics import FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor, nn

from longreel.memory.training.lora import save_lora
from longreel.nodes.headless.large_models import LORA_TARGETS
from longreel.nodes.host.build import Family, TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH, TEXT_WIDTH, TinyHunyuanSpec, build_tiny_hunyuan, new_hunyuan

RANK = 4
WAN = TinyWanSpec(width=128, layers=2, ffn=256, seed=3)
HUNYUAN = TinyHunyuanSpec(width=128, double_layers=1, single_layers=2, guidance=False, seed=3)
Build = Callable[..., ModelPatcher]
FAMILIES: list[tuple[Family, Callable[[], nn.Module], Build]] = [
    ("wan", lambda: host_modules().new_wan(WAN), build_tiny_wan),
    ("hunyuan", lambda: new_hunyuan(HUNYUAN), build_tiny_hunyuan),
]


def flow(family: Family, network: Any) -> Tensor:
    text, inputs = drawn(2, 1, 5, TEXT_WIDTH), {"y": drawn(3, 1, CLIP_WIDTH)} if family == "hunyuan" else {}
    with torch.no_grad(), host_modules().training():
        made: Tensor = network(drawn(1, 1, 16, 2, 8, 8), torch.tensor([700.0]), text, **inputs, transformer_options={})
    return made


@pytest.mark.parametrize(("family", "new", "build"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_the_hosts_loader_takes_an_exported_lora_and_the_network_is_that_of_training(
    host: object, tmp_path: Path, family: Family, new: Callable[[], nn.Module], build: Build
) -> None:
    network = new().requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LORA_TARGETS[family], bias="none")
    peft.inject_adapter_in_model(config, network)
    generator = torch.Generator().manual_seed(1)
    adapters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.05, generator=generator)
    save_lora(tmp_path / "lora.safetensors", network)
    lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    plain = build(weights=weights)
    patched = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)[0]
    assert 2 * len(patched.patches) == len(adapters) == len(lora)
    patched.patch_model()
    trained, loaded = flow(family, network), flow(family, patched.model.diffusion_model)
    assert relative_error(loaded, trained) < FORWARD_ERROR
    patched.unpatch_model()
    assert relative_error(flow(family, plain.model.diffusion_model), trained) > NOT_ROUNDING
