"""The published models that an encoder would be trained for, as the host's own networks without weights. Import it after `boot_host`.

On the meta device a tensor has a shape and no numbers, so networks of 14 billion weights run on any computer: what comes out
are lengths, operations and bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.ldm.hunyuan_video.model import HunyuanVideo
from comfy.ldm.wan.model import WanModel
from torch import Tensor, nn

from ...memory.chunks import PICTURES_PER_FRAME
from ...memory.encoder_spec import PATCH
from ...memory.training.encoder_family import Family
from ..host.build_hunyuan import CLIP_WIDTH, MLP_RATIO, TEXT_WIDTH
from ..host.keys import OVERRIDE

META, BF16 = torch.device("meta"), torch.bfloat16
WORDS: dict[Family, int] = {"wan": 512, "hunyuan": 256}
"""Words of a prompt: Wan's text is filled up to so many, HunyuanVideo's is cut there."""


@dataclass(frozen=True, slots=True)
class LargeModel:
    """A network and the films that it was made for; HunyuanVideo has two kinds of `layers`. `pixels` of the picture, each way,
    are one latent."""

    name: str
    family: Family
    width: int
    layers: tuple[int, ...]
    ffn: int
    channels: int = 16
    pixels: int = 8
    fps: int = 16
    sizes: tuple[tuple[int, int], ...] = ((480, 832), (720, 1280))

    @property
    def joined_words(self) -> int:
        """Words that stand in one sequence with the frames."""
        return WORDS[self.family] if self.family == "hunyuan" else 0

    def latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in latents of a picture in pixels."""
        return size[0] // self.pixels, size[1] // self.pixels

    def frame_tokens(self, size: tuple[int, int]) -> int:
        """Tokens of a latent frame of pictures of this size."""
        return math.prod(count // PATCH for count in self.latent_size(size))

    def frames(self, seconds: int) -> int:
        """Latent frames of so much film."""
        return seconds * self.fps // PICTURES_PER_FRAME

    def latents(self, frames: int, size: tuple[int, int]) -> Tensor:
        """Latents `[1, C, frames, H, W]` without numbers."""
        return torch.empty(1, self.channels, frames, *self.latent_size(size), device=META, dtype=BF16)

    def network(self) -> Any:
        """The host's network, without numbers and frozen."""
        made = _wan(self) if self.family == "wan" else _hunyuan(self)
        return made.requires_grad_(False)

    def embed(self, network: Any) -> Callable[[Tensor], Tensor]:
        """The network's own embedding of patches, `[B, C, T, H, W]` to `[B, width, T, H / 2, W / 2]`."""
        layer = network.patch_embedding if self.family == "wan" else network.img_in.proj
        return lambda latents: layer(latents.to(layer.weight.dtype))  # that of Wan is in float32

    def call(self, network: Any, latents: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        """One step's call of the network: the flow of these latents."""
        inputs = {}
        if self.family == "hunyuan":
            inputs = {"y": _empty(1, CLIP_WIDTH), "guidance": _empty(1)}
        text = _empty(1, WORDS[self.family], TEXT_WIDTH)
        options = {**(options or {}), OVERRIDE: _attend}
        flow: Tensor = network(latents, _empty(1), text, **inputs, transformer_options=options)
        return flow


LARGE_MODELS = (
    LargeModel("Wan 2.1 1.3B", "wan", 1536, (30,), 8960),
    LargeModel("Wan 2.1 14B", "wan", 5120, (40,), 13824),
    LargeModel("Wan 2.2 5B", "wan", 3072, (30,), 14336, 48, 16, 24, ((480, 832), (704, 1280))),
    LargeModel("HunyuanVideo", "hunyuan", 3072, (20, 40), int(MLP_RATIO * 3072), fps=24),
)
HEAD = 128


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device=META, dtype=BF16)


def _wan(model: LargeModel) -> nn.Module:
    made: nn.Module = WanModel(
        dim=model.width,
        ffn_dim=model.ffn,
        num_heads=model.width // HEAD,
        num_layers=model.layers[0],
        in_dim=model.channels,
        out_dim=model.channels,
        device=META,
        dtype=BF16,
        operations=comfy.ops.disable_weight_init,
    )
    return made


def _hunyuan(model: LargeModel) -> nn.Module:
    made: nn.Module = HunyuanVideo(
        in_channels=model.channels,
        out_channels=model.channels,
        vec_in_dim=CLIP_WIDTH,
        context_in_dim=TEXT_WIDTH,
        hidden_size=model.width,
        mlp_ratio=model.ffn / model.width,
        num_heads=model.width // HEAD,
        depth=model.layers[0],
        depth_single_blocks=model.layers[1],
        axes_dim=[16, 56, 56],
        theta=256,
        patch_size=[1, PATCH, PATCH],
        qkv_bias=True,
        guidance_embed=True,
        byt5=False,
        meanflow=False,
        use_cond_type_embedding=False,
        vision_in_dim=None,
        meanflow_sum=False,
        device=META,
        dtype=BF16,
        operations=comfy.ops.disable_weight_init,
    )
    return made


def _attend(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *masks: Tensor | None,
    skip_reshape: bool = False,
    **settings: Any,
) -> Tensor:
    """Attention that keeps no matrix of scores, as on a GPU; the host would ask the meta device for free memory."""
    if not skip_reshape:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    read: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False)[0]
    return read.transpose(1, 2).flatten(2)
