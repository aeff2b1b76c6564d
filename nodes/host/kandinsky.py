"""Kandinsky 5 video models: self-attention over the picture that reads and writes memory; the text is read apart.

Each visual layer's `self_attention.forward` is replaced by an object patch, as for Wan. Queries and keys are normalised head by
head and turned after that place. The text goes through layers that know the noise level, so nothing of it lasts longer than
a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.kandinsky5.model
import comfy.model_base
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...memory.config import KVSpec
from ...memory.positions import PositionPolicy
from ...memory.session import LayerCall, Phase, RunSession
from .adapter import PromptNeeds
from .attention import check_slot, chunk_rope, compute_dtype, streams_of
from .keys import PACK, SESSION

CLIP_WIDTH = 768


class KandinskyAttention:
    """Stands in for one layer's `self_attention.forward`; without a run it is the original."""

    def __init__(self, layer: int, module: torch.nn.Module, original: Callable[..., Tensor]) -> None:
        self.layer, self.module, self.original = layer, module, original

    def __call__(self, x: Tensor, freqs: Tensor, transformer_options: dict[str, Any] | None = None) -> Tensor:
        """Self-attention output `[B, L, C]` of hidden state `x` `[B, L, C]`; `freqs` is `[1, L, 1, D / 2, 2, 2]`."""
        options = {} if transformer_options is None else transformer_options
        session: RunSession | None = options.get(SESSION)
        if session is None:
            return self.original(x, freqs, transformer_options=options)
        streams = streams_of(session, options, x.shape[0])
        if session.idle:
            return self.original(x, freqs, transformer_options=options)
        module: Any = self.module
        shape = (*x.shape[:2], module.num_heads, module.head_dim)
        rope = chunk_rope(session, freqs)
        q_plain = module.query_norm(module.to_query(x).view(shape))  # [B, L, H, D]
        k_plain = module.key_norm(module.to_key(x).view(shape))  # [B, L, H, D]

        def host_attention(q_row: Tensor, k_row: Tensor, v_row: Tensor) -> Tensor:
            heads_first = [t.transpose(1, 2) for t in (q_row, k_row, v_row)]
            out: Tensor = optimized_attention(
                *heads_first, heads=module.num_heads, skip_reshape=True, transformer_options=options
            )
            return out

        answer = session.attend(
            LayerCall(
                layer=self.layer,
                streams=streams,
                q=apply_rope1(q_plain, rope.absolute),
                k=apply_rope1(k_plain, rope.absolute),
                v=module.to_value(x).view(shape),
                q_timeless=apply_rope1(q_plain, rope.timeless) if session.selects else None,
                k_timeless=apply_rope1(k_plain, rope.timeless) if session.phase is Phase.COMMIT else None,
                host_attention=host_attention,
            )
        )
        projected: Tensor = module.out_layer(answer)
        return projected


def _as_long_as_the_chunk(
    executor: Callable[..., Tensor], x: Tensor, t: Tensor, c_concat: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    """APPLY_MODEL: the empty picture and mask that go in beside the latents are as long as the film's longest chunk."""
    return executor(x, t, None if c_concat is None else c_concat[:, :, : x.shape[2]], *args, **kwargs)


class KandinskyAdapter:
    """Kandinsky 5 text-to-video, Lite and Pro."""

    name = "Kandinsky 5 text-to-video"
    positions = PositionPolicy.CLAMPED
    joins_text = False
    keeps_text = False
    no_vae: str | None = (
        "Kandinsky 5 has HunyuanVideo's VAE, which lets every picture depend on the whole clip, so its films cannot be decoded while "
        "they are made. Disconnect the VAE from the Chunked AR Sampler and put VAE Decode (Tiled) behind its latent output."
    )

    def refusal(self, model: ModelPatcher) -> str | None:
        """Why this is not a Kandinsky 5 video model that memory was tested with, or None."""
        network = model.get_model_object("diffusion_model")
        if (
            type(network) is not comfy.ldm.kandinsky5.model.Kandinsky5
            or type(model.model) is not comfy.model_base.Kandinsky5
        ):
            return f"got {type(model.model).__name__} with {type(network).__name__}, which is not one of its models."
        return None

    def kv_spec(self, model: ModelPatcher, height: int, width: int) -> KVSpec:
        """Keys and values of the visual layers for latents of this height and width."""
        network = model.get_model_object("diffusion_model")
        attention = network.visual_transformer_blocks[0].self_attention
        _, patch_height, patch_width = network.patch_size
        return KVSpec(
            layers=len(network.visual_transformer_blocks),
            heads=attention.num_heads,
            head_dim=attention.head_dim,
            rows=-(-height // patch_height),
            columns=-(-width // patch_width),
            time_channels=network.rope_embedder_3d.axes_dim[0],
            theta=float(network.rope_embedder_3d.theta),
            dtype=compute_dtype(model),
            device=model.load_device,
        )

    def prompts(self, model: ModelPatcher) -> PromptNeeds:
        """Words from Qwen 2.5 VL, and the whole prompt as one vector from CLIP-L."""
        return PromptNeeds(
            width=int(model.get_model_object("diffusion_model").text_embeddings.in_layer.in_features),
            pooled_width=CLIP_WIDTH,
            remedy="Load qwen_2.5_vl_7b and clip_l with type 'kandinsky5' in DualCLIPLoader",
        )

    def time_scale(self, model: ModelPatcher) -> float:
        """What the user's rope options say."""
        rope_options = model.model_options["transformer_options"].get("rope_options") or {}
        return float(rope_options.get("scale_t", 1.0))

    def text_refusal(self, model: ModelPatcher) -> str | None:
        """Its words are other ones at every noise level."""
        return "Kandinsky 5 reads its prompt anew at every step. Take a Wan model"

    def text_keys(self, network: Any, prompt: Tensor) -> Tensor:
        """Nobody asks where there is a `text_refusal`; ValueError."""
        raise ValueError("Kandinsky 5 has no keys of a prompt that last longer than a step.")

    def attach(self, model: ModelPatcher) -> None:
        """Patch every visual layer of this clone; ValueError when another pack holds a layer's attention."""
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, PACK)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, PACK, _as_long_as_the_chunk)
        for layer, block in enumerate(model.get_model_object("diffusion_model").visual_transformer_blocks):
            key = f"diffusion_model.visual_transformer_blocks.{layer}.self_attention.forward"
            check_slot(model, key, KandinskyAttention)
            module = block.self_attention
            model.add_object_patch(key, KandinskyAttention(layer, module, type(module).forward.__get__(module)))
