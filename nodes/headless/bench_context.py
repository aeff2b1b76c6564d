"""How long the context of an encoder is at real sizes, and what reading and training it takes. Import it after `boot_host`.

Everything is counted on the meta device: the encoder's own module and the host's own networks run with real shapes and no
numbers, so nothing here is a time that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...memory.encoded_history import HistoryConfig
from ...memory.encoder import MemoryEncoder
from ...memory.encoder_spec import EncoderSpec, Rate
from ...memory.training.lora import LORA_TARGETS
from ..host.build import host_modules
from .large_models import BF16, META, LargeModel

SECONDS = (20, 60, 120)
SEGMENT_FRAMES, WINDOW_FRAMES = 8, HistoryConfig().window_frames
"""Latent frames that are made at a time, and that are read whole beside the encoder's tokens."""
LORA_RANK = 128
"""As in the paper, in all cases."""
TRAINED_BYTES = 4 * torch.float32.itemsize
"""Of a weight that is trained: itself, its gradient and AdamW's two means, in float32."""
_COUNTED_FRAMES = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations of a call: what every call takes, what every token takes, and what every pair of tokens takes. Products of
    matrices are counted, a multiplication and an addition as two."""

    fixed: float
    token: float
    pair: float

    def of(self, tokens: float) -> float:
        """Operations of a call with so many tokens."""
        return self.fixed + self.token * tokens + self.pair * tokens**2

    def attention(self, sequence: float) -> float:
        """Those of self-attention in a sequence of this length, words that stand in it among it."""
        return self.pair * sequence**2


def cost_of(count: Callable[[int], float], frame_tokens: int) -> Cost:
    """The parabola through what calls of one, two and three frames take; a fourth lies on it (tested)."""
    one, two, three = (count(frames) for frames in _COUNTED_FRAMES)
    bend = (three - 2 * two + one) / 2
    slope = two - one - 3 * bend
    return Cost(one - slope - bend, slope / frame_tokens, bend / frame_tokens**2)


def call_cost(model: LargeModel, network: Any) -> Cost:
    """What a step's call of the network takes."""
    size = model.sizes[0]

    @torch.no_grad()
    def count(frames: int) -> float:
        with FlopCounterMode(display=False) as counter:
            model.call(network, model.latents(frames, size))
        return float(counter.get_total_flops())

    return cost_of(count, model.frame_tokens(size))


def encoder_on_meta(model: LargeModel, rate: Rate) -> MemoryEncoder:
    """The paper's encoder for this model, without numbers."""
    return MemoryEncoder(EncoderSpec(model.width, rate, channels=model.channels), device=META, dtype=BF16)


@torch.no_grad()
def tokens_of(model: LargeModel, network: Any, rate: Rate, size: tuple[int, int], seconds: int) -> int:
    """Tokens `[1, M, width]` that the encoder gives for so much film, counted; they are as wide as the model."""
    encoder = encoder_on_meta(model, rate)
    tokens: Tensor = encoder(model.latents(model.frames(seconds), size), model.embed(network))
    assert tokens.shape[2] == model.width
    return tokens.shape[1]


class EncoderCost(NamedTuple):
    """Weights of an encoder, operations for a second of film, and bytes that training keeps of 20 seconds for the way back."""

    weights: int
    second: float
    kept_bytes: int


def encoder_cost(model: LargeModel, network: Any, rate: Rate) -> EncoderCost:
    """What encoding takes at the smaller size of the model's films."""
    encoder, seconds = encoder_on_meta(model, rate), SECONDS[0]
    latents, embed = model.latents(model.frames(seconds), model.sizes[0]), model.embed(network)
    with FlopCounterMode(display=False) as counter:
        kept = _kept_bytes(encoder, lambda: encoder(latents, embed))
    return EncoderCost(_count(encoder.parameters()), counter.get_total_flops() / seconds, kept)


class TrainingCost(NamedTuple):
    """Of a model with a LoRA on it: weights, trained ones among them apart, operations of a call and of its way back, and bytes
    that a token keeps for it in the layers."""

    weights: int
    trained: int
    forward: Cost
    backward: Cost
    token_bytes: float


def training_cost(peft: Any, model: LargeModel) -> TrainingCost:
    """What a step of training takes at the smaller size of the model's films. Changes nothing but a network of its own."""
    network, size = model.network(), model.sizes[0]
    weights = _count(network.parameters())
    config = peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=LORA_TARGETS[model.family], bias="none")
    peft.inject_adapter_in_model(config, network, low_cpu_mem_usage=True)
    trained = _count(parameter for parameter in network.parameters() if parameter.requires_grad)
    counted = {frames: _there_and_back(model, network, frames) for frames in _COUNTED_FRAMES}
    tokens = model.frame_tokens(size)
    forward = cost_of(lambda frames: counted[frames].forward, tokens)
    backward = cost_of(lambda frames: counted[frames].backward, tokens)
    two, three = _COUNTED_FRAMES[-2:]
    return TrainingCost(weights, trained, forward, backward, (counted[three].kept - counted[two].kept) / tokens)


class _Trip(NamedTuple):
    forward: float
    backward: float
    kept: int


def _there_and_back(model: LargeModel, network: Any, frames: int) -> _Trip:
    """Operations of a call and of its way back, and bytes kept between them."""
    flows: list[Tensor] = []
    latents = model.latents(frames, model.sizes[0]).requires_grad_()  # as tokens have to be, whose encoder is trained
    with host_modules().training():
        with FlopCounterMode(display=False) as there:
            kept = _kept_bytes(network, lambda: flows.append(model.call(network, latents)))
        with FlopCounterMode(display=False) as back:
            flows[0].sum().backward()
    return _Trip(there.get_total_flops(), back.get_total_flops(), kept)


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _kept_bytes(module: nn.Module, run: Callable[[], object]) -> int:
    """Bytes that autograd keeps of a run, the module's own weights left out."""
    own = {weight.untyped_storage()._cdata for weight in module.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no two tensors have one address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())
