"""HunyuanVideo text-to-video models: attention over text and picture in one sequence, that reads and writes memory.

The host offers two places in each layer: `attn1_patch` sees q, k, v before rotation, `attn1_output_patch` what came out.
The first hands them to memory, the second gives back what memory answered; between them the host is left one token to
attend to. Text stands first in the sequence and at place 0 in time and space, so only pictures are turned and
remembered. The host's token refiner goes through the same attention function but through neither place.
"""

from __future__ import annotations

from typing import Any

import comfy.ldm.hunyuan_video.model
import comfy.model_base
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.functional import pad

from ...memory.config import KVSpec
from ...memory.positions import PositionPolicy
from ...memory.session import LayerCall, Phase, RunSession
from .adapter import PromptNeeds
from .attention import chunk_rope, compute_dtype, streams_of
from .keys import SESSION

INTO, OUT_OF = "attn1_patch", "attn1_output_patch"
ANSWER = "longreel_answer"
CLIP_WIDTH = 768


class HunyuanAttention:
    """The `attn1_patch` of every layer; without a run it changes nothing."""

    def __init__(self, double_layers: int) -> None:
        self.double_layers = double_layers

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pe: Tensor | None,
        attn_mask: Tensor | None,
        extra_options: dict[str, Any],
    ) -> dict[str, Any]:
        """What the host should attend with instead of `q`, `k`, `v` `[B, H, L, D]`; `pe` is `[B, 1, L, D / 2, 2, 2]`.

        The answer of memory `[B, L, H x D]` lies in `extra_options`, which the host makes anew for every layer.
        """
        session: RunSession | None = extra_options.get(SESSION)
        if session is None:
            return {}
        streams = streams_of(session, extra_options, q.shape[0])
        if session.idle and session.memory.current_time == 0:
            return {}
        if pe is None or k.shape != q.shape:
            raise _changed_before(extra_options)
        words = int(extra_options["img_slice"][0])
        _check_words(words, session)
        rope = chunk_rope(session, pe, tokens_at=2, words=words)

        def host_attention(q_row: Tensor, k_row: Tensor, v_row: Tensor) -> Tensor:
            heads_first = [t.transpose(1, 2) for t in (q_row, k_row, v_row)]
            mask = None if attn_mask is None else pad(attn_mask, (k_row.shape[1] - q_row.shape[1], 0))
            out: Tensor = optimized_attention(
                *heads_first, q.shape[1], mask=mask, skip_reshape=True, transformer_options=extra_options
            )
            return out

        extra_options[ANSWER] = session.attend(
            LayerCall(
                layer=extra_options["block_index"] + self._first_layer(extra_options["block_type"]),
                streams=streams,
                q=_turned(q, rope.absolute),
                k=_turned(k, rope.absolute),
                v=v.transpose(1, 2),
                q_timeless=_turned(q, rope.timeless) if session.selects else None,
                k_timeless=_turned(k, rope.timeless) if session.phase is Phase.COMMIT else None,
                host_attention=host_attention,
                words=words,
            )
        )
        return {"q": q[:, :, :1], "k": k[:, :, :1], "v": v[:, :, :1], "pe": None, "attn_mask": None}

    def _first_layer(self, kind: str) -> int:
        return 0 if kind == "double" else self.double_layers


class HunyuanAnswer:
    """The `attn1_output_patch` of every layer: gives what memory answered, if it did."""

    def __call__(self, attention: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """`[B, L, H x D]`."""
        answer: Tensor = extra_options.pop(ANSWER, attention)
        return answer


def _turned(x: Tensor, table: Tensor | None) -> Tensor:
    """`[B, L, H, D]` of `[B, H, L, D]`."""
    out: Tensor = apply_rope1(x, table).transpose(1, 2)
    return out


def _check_words(words: int, session: RunSession) -> None:
    if words > session.memory.words:
        raise ValueError(
            f"Memory has room for the {session.memory.words} words of the film's longest prompt, got {words}: another node "
            "makes prompts longer while the film renders. Remove it from the model's wire."
        )


def _changed_before(options: dict[str, Any]) -> ValueError:
    others = [patch for patch in options["patches"][INTO] if not isinstance(patch, HunyuanAttention)]
    return ValueError(
        f"Memory needs queries and keys as the model makes them, but another node's {INTO} "
        f"({', '.join(f'{other!r:.60}' for other in others)}) turned or lengthened them already. Remove that node from the "
        "model's wire, or render without Sparse KV Memory."
    )


class HunyuanVideoAdapter:
    """HunyuanVideo text-to-video, with distilled guidance or without."""

    name = "HunyuanVideo text-to-video"
    positions = PositionPolicy.ANCHORED
    joins_text = True
    keeps_text = False
    no_vae: str | None = (
        "HunyuanVideo's VAE lets every picture depend on the whole clip, on later frames too, so its films cannot be decoded "
        "while they are made. Disconnect the VAE from the Chunked AR Sampler and put VAE Decode (Tiled) behind its latent "
        "output."
    )

    def refusal(self, model: ModelPatcher) -> str | None:
        """Why this is not the HunyuanVideo that memory was tested with, or None."""
        network = model.get_model_object("diffusion_model")
        if (
            type(network) is not comfy.ldm.hunyuan_video.model.HunyuanVideo
            or type(model.model) is not comfy.model_base.HunyuanVideo
        ):
            return f"got {type(model.model).__name__} with {type(network).__name__}, which is not one of its models."
        if network.in_channels != network.out_channels or network.byt5_in is not None or network.vector_in is None:
            return (
                f"got a variant with other inputs ({network.in_channels} input channels for {network.out_channels}); memory "
                "needs the text-to-video checkpoint. A start image goes into the Chunked AR Sampler instead."
            )
        return None

    def kv_spec(self, model: ModelPatcher, height: int, width: int) -> KVSpec:
        """Keys and values for latents of this height and width: double layers first, then single ones."""
        network = model.get_model_object("diffusion_model")
        _, patch_height, patch_width = network.patch_size
        return KVSpec(
            layers=len(network.double_blocks) + len(network.single_blocks),
            heads=network.num_heads,
            head_dim=network.hidden_size // network.num_heads,
            rows=-(-height // patch_height),
            columns=-(-width // patch_width),
            time_channels=network.params.axes_dim[0],
            theta=float(network.params.theta),
            dtype=compute_dtype(model),
            device=model.load_device,
        )

    def prompts(self, model: ModelPatcher) -> PromptNeeds:
        """Words from LLaVA-Llama-3, and the whole prompt as one vector from CLIP-L."""
        return PromptNeeds(
            width=int(model.get_model_object("diffusion_model").params.context_in_dim),
            pooled_width=CLIP_WIDTH,
            remedy="Load clip_l and llava_llama3 with type 'hunyuan_video' in DualCLIPLoader",
        )

    def time_scale(self, model: ModelPatcher) -> float:
        """1: the host has no rope options for this family."""
        return 1.0

    def text_refusal(self, model: ModelPatcher) -> str | None:
        """Words and picture share one attention here."""
        return "HunyuanVideo reads its prompt together with the picture and has none. Take a Wan model"

    def text_keys(self, network: Any, prompt: Tensor) -> Tensor:
        """Nobody asks where there is a `text_refusal`; ValueError."""
        raise ValueError("HunyuanVideo has no cross-attention whose keys could be asked for.")

    def attach(self, model: ModelPatcher) -> None:
        """Stand behind all patches of other packs going in, and before them coming out."""
        network = model.get_model_object("diffusion_model")
        patches = model.model_options["transformer_options"].setdefault("patches", {})
        into = [patch for patch in patches.get(INTO, ()) if not isinstance(patch, HunyuanAttention)]
        out_of = [patch for patch in patches.get(OUT_OF, ()) if not isinstance(patch, HunyuanAnswer)]
        patches[INTO] = [*into, HunyuanAttention(len(network.double_blocks))]
        patches[OUT_OF] = [HunyuanAnswer(), *out_of]
