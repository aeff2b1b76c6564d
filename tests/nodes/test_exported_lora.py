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
from encoder_runs import SHORT, batch_of, orthogonal_codec
from hunyuan_film import drawn, lively_network
from numerics import FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor, nn

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.training.encoder_family import Family
from longreel.memory.training.encoder_settings import finetuning_of, tiny_encoder_spec
from longreel.memory.training.encoder_training import EncoderBatch, predict_beside_history, read_history
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import LORA_TARGETS, add_lora, save_lora
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, build_tiny_hunyuan, modules_of

RANK, WIDTH = 4, 128
WAN = TinyWanSpec(width=WIDTH, layers=2, ffn=256, seed=3)
HUNYUAN = TinyHunyuanSpec(width=WIDTH, double_layers=1, single_layers=2, seed=3)
FINETUNE = finetuning_of(tiny_encoder_spec(SHORT, WIDTH), history_frames=6, windows=(1,), clips=2)
Build = Callable[..., ModelPatcher]
FAMILIES: list[tuple[Family, Callable[[], nn.Module], Build]] = [
    ("wan", lambda: host_modules().new_wan(WAN), build_tiny_wan),
    ("hunyuan", lambda: lively_network(HUNYUAN), build_tiny_hunyuan),
]


def flow(family: Family, network: Any, encoder: MemoryEncoder, batch: EncoderBatch, joined: bool = True) -> Tensor:
    """What training computes, beside the encoded film and a frame of it or without history."""
    modules, levels = modules_of(family), torch.tensor([0.7, 0.4])
    with torch.no_grad(), modules.training():
        history = read_history(modules, network, encoder, batch) if joined else None
        return predict_beside_history(modules, network, history, batch.target, levels, batch.text)


@pytest.mark.parametrize(("family", "new", "build"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_the_hosts_loader_takes_an_exported_lora_and_the_network_is_that_of_training(
    host: object, tmp_path: Path, family: Family, new: Callable[[], nn.Module], build: Build
) -> None:
    network = new()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapters = add_lora(peft, network, LORA_TARGETS[family], RANK, seed=1)
    generator = torch.Generator().manual_seed(1)
    encoder = MemoryEncoder(tiny_encoder_spec(FINETUNE, WIDTH)).requires_grad_(False)
    initialise_encoder(encoder, generator)
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.05, generator=generator)
    save_lora(tmp_path / "lora.safetensors", network)
    lora = comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True)
    plain = build(weights=weights)
    patched = comfy.sd.load_lora_for_models(plain, None, lora, 1.0, 0.0)[0]
    assert 2 * len(patched.patches) == len(adapters) == len(lora)
    batch = batch_of(FINETUNE, orthogonal_codec())
    batch = batch._replace(history=drawn(2, *batch.history.shape))
    trained = flow(family, network, encoder, batch)
    patched.patch_model()
    inside = patched.model.diffusion_model
    assert relative_error(flow(family, inside, encoder, batch), trained) < FORWARD_ERROR
    assert relative_error(flow(family, inside, encoder, batch, joined=False), trained) > NOT_ROUNDING
    patched.unpatch_model()
    assert relative_error(flow(family, plain.model.diffusion_model, encoder, batch), trained) > NOT_ROUNDING
