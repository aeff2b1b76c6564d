"""Small encoders, and adapters with something in them, trained beside a model of a user's own; and the host's model under that LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import comfy.sd
import comfy.utils
import peft
import torch
from comfy.model_patcher import ModelPatcher
from numerics import BF16_COMPUTE_ERROR, FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_spec import EncoderSpec
from longreel.memory.training.encoder_family import Family
from longreel.memory.training.encoder_training import EncoderBatch, read_history
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import LORA_TARGETS, add_lora, load_lora_state
from longreel.nodes.host.build import HostModules
from longreel.nodes.host.trained_model import load_network, recognise

RANK = 4
StepFound: TypeAlias = tuple[Tensor, list[Tensor | None]]
"""Loss of a step, and the gradients of all that is trained."""


def small_encoder(width: int, channels: int = 16, cross_layers: int = 0) -> MemoryEncoder:
    """A fresh encoder of a few numbers, whose high-resolution branch has its say."""
    spec = EncoderSpec(width, channels=channels, stages=(8, 16), heads=2, own_prompts=True, cross_layers=cross_layers)
    encoder, generator = MemoryEncoder(spec), torch.Generator().manual_seed(1)
    initialise_encoder(encoder, generator)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("project.weight"):
                weight.normal_(std=0.1, generator=generator)
    return encoder


def drawn_adapters(
    network: Any, family: Family, lora: dict[str, Tensor] | None = None, std: float = 0.05
) -> list[torch.nn.Parameter]:
    """Adapters on a network: these, or drawn ones."""
    adapters = add_lora(peft, network, LORA_TARGETS[family], RANK, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=std, generator=generator)
    if lora is not None:
        load_lora_state(network, lora)
    return adapters


def assert_same_bits(found: StepFound, other: StepFound) -> None:
    """Two steps have one loss and, for every weight, one gradient that is not zero."""
    assert torch.equal(found[0], other[0])
    for gradient, same in zip(found[1], other[1], strict=True):
        assert gradient is not None
        assert same is not None
        assert gradient.any()
        assert torch.equal(gradient, same)


def assert_trained_in_float32(found: StepFound, exact: StepFound) -> None:
    """A step of a network in bf16 has a loss near that of the network in float32, and gradients of float32."""
    assert found[0].dtype == torch.float32
    assert found[0] != exact[0]
    assert relative_error(found[0], exact[0]) < BF16_COMPUTE_ERROR
    for gradient in found[1]:
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()


def assert_the_host_computes_what_was_trained(
    model: ModelPatcher, file: Path, lora_file: Path, modules: HostModules, encoder: MemoryEncoder, batch: EncoderBatch
) -> None:
    """`model` is what the host made of `file`: with the LoRA it is the network of training, and without it another."""
    lora = comfy.utils.load_torch_file(str(lora_file), safe_load=True)
    patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    assert 2 * len(patched.patches) == len(lora)
    kind = recognise(file)
    network = load_network(kind, torch.float32)
    drawn_adapters(network, kind.kind.name, lora)

    @torch.no_grad()
    def flow(reader: Any) -> Tensor:
        with modules.training():
            history = read_history(modules, reader, encoder, batch)
            return modules.family.flow(reader, history, batch.target, torch.tensor([0.7]), batch.text)

    patched.patch_model()
    host_flow, trained_flow = flow(patched.model.diffusion_model), flow(network)
    patched.unpatch_model()
    assert relative_error(host_flow, trained_flow) < FORWARD_ERROR
    assert relative_error(flow(patched.model.diffusion_model), trained_flow) > NOT_ROUNDING
