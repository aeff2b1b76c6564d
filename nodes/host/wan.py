"""Wan text-to-video models, plain and causal: self-attention that reads and writes memory.

Each layer's `self_attn.forward` is replaced by an object patch. It sees the hidden state and un-rotated q and k, and
cannot confuse self- with cross-attention. Space is turned by the host's own rotary table, time by ours, in float32:
the host builds positions in the model's dtype and rounds them past frame 256 (design decision 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.ar_model
import comfy.ldm.wan.model
import comfy.model_base
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.config import KVSpec
from ...memory.positions import PositionPolicy
from ...memory.session import LayerCall, Phase, RunSession
from .adapter import PromptNeeds
from .attention import check_slot, chunk_rope, compute_dtype, streams_of
from .keys import SESSION

SUPPORTED_MODELS = (comfy.model_base.WAN21, comfy.model_base.WAN21_CausalAR, comfy.model_base.WAN22)
SUPPORTED_NETWORKS = (comfy.ldm.wan.model.WanModel, comfy.ldm.wan.ar_model.CausalWanModel)
SPATIAL_PATCH = 2


class WanAttention:
    """Stands in for one layer's `self_attn.forward`; without a run it is the original."""

    def __init__(self, layer: int, module: torch.nn.Module, original: Callable[..., Tensor]) -> None:
        self.layer, self.module, self.original = layer, module, original

    def __call__(
        self, x: Tensor, freqs: Tensor, kv_cache: Any = None, transformer_options: dict[str, Any] | None = None
    ) -> Tensor:
        """Self-attention output `[B, L, C]` of hidden state `x` `[B, L, C]`; `freqs` is `[1, L, 1, D / 2, 2, 2]`."""
        options = {} if transformer_options is None else transformer_options
        session: RunSession | None = options.get(SESSION)
        if kv_cache is not None:
            return self.original(x, freqs, kv_cache=kv_cache, transformer_options=options)
        if session is None:
            return self.original(x, freqs, transformer_options=options)
        streams = streams_of(session, options, x.shape[0])
        if session.idle:
            return self.original(x, freqs, transformer_options=options)
        return self._attend(x, freqs, session, streams, options)

    def _attend(
        self, x: Tensor, freqs: Tensor, session: RunSession, streams: tuple[int, ...], options: dict[str, Any]
    ) -> Tensor:
        module: Any = self.module
        heads, head_dim = module.num_heads, module.head_dim
        shape = (*x.shape[:2], heads, head_dim)
        rope = chunk_rope(session, freqs)
        q_plain = module.norm_q(module.q(x)).view(shape)  # [B, L, H, D]
        k_plain = module.norm_k(module.k(x)).view(shape)  # [B, L, H, D]
        q, k = apply_rope1(q_plain, rope.absolute), apply_rope1(k_plain, rope.absolute)
        q_timeless = apply_rope1(q_plain, rope.timeless) if session.selects else None
        k_timeless = apply_rope1(k_plain, rope.timeless) if session.phase is Phase.COMMIT else None

        def host_attention(q_row: Tensor, k_row: Tensor, v_row: Tensor) -> Tensor:
            flat = [t.flatten(2) for t in (q_row, k_row, v_row)]
            out: Tensor = optimized_attention(*flat, heads=heads, transformer_options=options)
            return out

        v = module.v(x).view(shape)
        gates = None if session.gates is None else session.gates.values(self.layer, x)
        call = LayerCall(self.layer, streams, q, k, v, q_timeless, k_timeless, host_attention, gates)
        out = session.attend(call)
        if isinstance(module, comfy.ldm.wan.model.WanSelfAttention):
            for patch in options.get("patches", {}).get("attn1_patch", ()):
                out = patch({"x": out, "q": q, "k": k, "transformer_options": options})
        projected: Tensor = module.o(out)
        return projected


class WanTextAttention:
    """Stands in for one layer's `cross_attn.forward`: the text's keys and values are made once a shot.

    The host's own autoregressive path keeps them for a whole film. They are known by the host's ids of the
    conditionings, so another pack's prompt under the same role cannot be mistaken for the shot's.
    """

    def __init__(self, layer: int, module: torch.nn.Module, original: Callable[..., Tensor]) -> None:
        self.layer, self.module, self.original = layer, module, original

    def __call__(
        self, x: Tensor, context: Tensor, transformer_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Tensor:
        """Cross-attention output `[B, L, C]` of `x` `[B, L, C]` over the text `[B, L, C]`."""
        options = {} if transformer_options is None else transformer_options
        session: RunSession | None = options.get(SESSION)
        ids = options.get("uuids")
        if session is None or ids is None:
            return self.original(x, context, transformer_options=options, **kwargs)
        module: Any = self.module
        k, v = session.text(
            (self.layer, *ids), lambda: (module.norm_k(module.k(context)), module.v(context))
        )  # [B, L, H x D]
        q = module.norm_q(module.q(x))
        if session.hears and 0 in (streams := streams_of(session, options, x.shape[0])):
            row, heads = streams.index(0), (module.num_heads, module.head_dim)
            session.hear(self.layer, q[row].unflatten(-1, heads), k[row].unflatten(-1, heads))
        out: Tensor = module.o(optimized_attention(q, k, v, heads=module.num_heads, transformer_options=options))
        return out


def time_channels(head_dim: int) -> int:
    """Channels of a head that Wan's rotary embedding gives to time: 44 of 128."""
    return head_dim - 4 * (head_dim // 6)


class WanAdapter:
    """Wan 2.1 text-to-video (plain and causal) and Wan 2.2 5B."""

    name = "Wan text-to-video"
    positions = PositionPolicy.ABSOLUTE
    joins_text = False
    keeps_text = True
    no_vae: str | None = None

    def refusal(self, model: ModelPatcher) -> str | None:
        """Why this is not a Wan text-to-video model that memory was tested with, or None."""
        network = model.get_model_object("diffusion_model")
        if type(network) not in SUPPORTED_NETWORKS or type(model.model) not in SUPPORTED_MODELS:
            return f"got {type(model.model).__name__} with {type(network).__name__}, which is not one of its models."
        if network.model_type != "t2v" or network.in_dim != network.out_dim:
            return (
                f"got an image-to-video or control checkpoint (type {network.model_type}, {network.in_dim} input "
                "channels); memory needs a text-to-video one. A start image goes into the Chunked AR Sampler instead."
            )
        return None

    def kv_spec(self, model: ModelPatcher, height: int, width: int) -> KVSpec:
        """Keys and values for latents of this height and width."""
        network = model.get_model_object("diffusion_model")
        head_dim = network.dim // network.num_heads
        return KVSpec(
            layers=len(network.blocks),
            heads=network.num_heads,
            head_dim=head_dim,
            rows=-(-height // SPATIAL_PATCH),
            columns=-(-width // SPATIAL_PATCH),
            time_channels=time_channels(head_dim),
            theta=float(network.rope_embedder.theta),
            dtype=compute_dtype(model),
            device=model.load_device,
        )

    def prompts(self, model: ModelPatcher) -> PromptNeeds:
        """Words of 4096 numbers, from the UMT5 encoder."""
        width = int(model.get_model_object("diffusion_model").text_dim)
        return PromptNeeds(width, pooled_width=0, remedy="Load umt5_xxl with type 'wan' in Load CLIP")

    def time_scale(self, model: ModelPatcher) -> float:
        """What the user's rope options say."""
        rope_options = model.model_options["transformer_options"].get("rope_options") or {}
        return float(rope_options.get("scale_t", 1.0))

    def text_refusal(self, model: ModelPatcher) -> str | None:
        """Which layer's cross-attention is not ours to listen to, or None."""
        for layer in range(len(model.get_model_object("diffusion_model").blocks)):
            place = f"diffusion_model.blocks.{layer}.cross_attn.forward"
            if not isinstance(model.object_patches.get(place), WanTextAttention):
                return f"another node on the model's wire holds {place}. Remove that node"
        return None

    @torch.inference_mode()
    def text_keys(self, network: Any, prompt: Tensor) -> Tensor:
        """Mean keys `[layers, H, D]` of the words of a prompt `[W, C]`, as each layer's cross-attention makes them."""
        context = network.text_embedding(prompt[None])
        keys = []
        for block in network.blocks:
            module = block.cross_attn
            k = module.norm_k(module.k(context))[0].mean(dim=0, dtype=torch.float32)
            keys.append(k.unflatten(-1, (module.num_heads, module.head_dim)))
        return torch.stack(keys)

    def attach(self, model: ModelPatcher) -> None:
        """Patch every layer of this clone; ValueError when another pack holds a layer's attention."""
        network = model.get_model_object("diffusion_model")
        for layer in range(len(network.blocks)):
            key = f"diffusion_model.blocks.{layer}.self_attn.forward"
            check_slot(model, key, WanAttention)
            module = network.blocks[layer].self_attn
            original = type(module).forward.__get__(module)
            model.add_object_patch(key, WanAttention(layer, module, original))
            self._keep_text(model, layer, network.blocks[layer].cross_attn)

    def _keep_text(self, model: ModelPatcher, layer: int, module: torch.nn.Module) -> None:
        """Saves time only, so whoever else holds this place keeps it."""
        parts = f"diffusion_model.blocks.{layer}", "cross_attn", "forward"
        places = [".".join(parts[: count + 1]) for count in range(len(parts))]
        held = [model.object_patches[place] for place in places if place in model.object_patches]
        if all(isinstance(holder, WanTextAttention) for holder in held):
            original = type(module).forward.__get__(module)
            model.add_object_patch(places[-1], WanTextAttention(layer, module, original))
