"""What every family does where its attention meets memory: whose history a row is, and the chunk's rotary tables."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.session import Phase, Rope, RunSession


def check_slot(model: ModelPatcher, key: str, ours: type) -> None:
    """Raises ValueError where another pack's object patch, one that is not `ours`, holds the method `key` or what it belongs to."""
    for place, held in model.object_patches.items():
        if f"{key}.".startswith(f"{place}.") and not isinstance(held, ours):
            raise ValueError(
                f"Memory needs the attention slot {key}, but another node already holds {place} "
                f"({held!r:.80}). Remove that node from the model's wire, or render without Sparse KV Memory."
            )


def streams_of(session: RunSession, options: dict[str, Any], batch: int) -> tuple[int, ...]:
    """The history of each row of the batch.

    Raises ValueError for a batch of films, and for more prompts at once than histories are kept.
    """
    roles = tuple(options.get("cond_or_uncond", (0,)))
    if len(roles) != batch:
        raise ValueError(f"Memory needs one film at a time, got a batch of {batch} for {len(roles)} conditionings.")
    kept = session.memory.streams
    if max(roles) >= kept:
        raise ValueError(
            f"Memory needs a history for each prompt, got {max(roles) + 1} prompts at once where it keeps {kept}. When a "
            "node such as CFG Override turns guidance on in the middle, set cfg of the Chunked AR Sampler above 1 and let "
            "that node turn it down; otherwise remove the node that adds prompts from the model's wire."
        )
    return roles


def chunk_rope(session: RunSession, freqs: Tensor, tokens_at: int = 1, words: int = 0) -> Rope:
    """Rotary tables of the session's chunk, made once for all layers that are handed the same `freqs`.

    `freqs` is `[B, L, 1, D / 2, 2, 2]`, or `[B, 1, L, D / 2, 2, 2]` with `tokens_at` 2, equal in all rows: space is turned as
    it says, time as the memory says, in float32. The first `words` tokens are left alone. Raises ValueError when the other
    tokens are not those of the chunk.
    """
    if session.rope is not None and session.rope.source is freqs:
        return session.rope
    rotation = session.memory.current_rotation  # [T, pairs, 2, 2]
    assert rotation is not None
    frames, pairs = rotation.shape[:2]
    tokens = frames * session.memory.spec.frame_tokens
    if freqs.shape[tokens_at] != words + tokens:
        raise ValueError(
            f"Memory needs a chunk of {tokens} tokens, got {freqs.shape[tokens_at] - words}: reference or context latents "
            "cannot be combined with memory. Remove the node that adds them to the conditioning."
        )
    absolute = freqs[:1].clone()
    of_frames = absolute.narrow(tokens_at, words, tokens).unflatten(tokens_at, (frames, -1))
    shape = [1] * 4
    shape[tokens_at] = frames
    of_frames[..., :pairs, :, :] = rotation.view(*shape, pairs, 2, 2).to(freqs.dtype)
    timeless = None
    if session.phase is Phase.COMMIT or session.selects:
        timeless = freqs[:1].clone()
        still = torch.eye(2, dtype=freqs.dtype, device=freqs.device)
        timeless.narrow(tokens_at, words, tokens)[..., :pairs, :, :] = still
    session.rope = Rope(freqs, absolute, timeless)
    return session.rope


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """The type that the model computes in, and so that of its keys and values.

    Not `get_dtype_inference()`: the clone's own compute dtype is on the model only once it is loaded.
    """
    dtype: torch.dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    return dtype
