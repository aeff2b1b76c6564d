"""Which prompts a film with memory can be guided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from .adapter import PromptNeeds

_REFUSED = {
    "reference_latents": "reference latents",
    "context_latents": "context latents",
    "time_dim_concat": "frames joined in time",
    "time_dim_replace": "frames put in place of others",
    "area": "an area",
    "mask": "a mask",
    "guiding_frame_index": "an image-to-video guide",
    "ref_latent": "a reference latent",
}


def check_conditioning(owner: str, conditioning: Sequence[Any], needs: PromptNeeds) -> None:
    """Raises ValueError unless this is one prompt for whole frames and all steps, as the model needs it.

    What adds tokens has no place in memory. A prompt that is off at t = 0 would leave a chunk out of memory. A LoRA
    schedule would run down in the first chunk.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{owner} needs exactly one prompt, got {len(conditioning)} combined ones. Memory keeps one history; write "
            "them as one prompt."
        )
    vectors, extras = conditioning[0]
    connect = f"it was encoded for another model. {needs.remedy} and connect it to the Storyboard."
    if vectors.shape[-1] != needs.width:
        raise ValueError(f"{owner} needs {needs.width} numbers a word, got {vectors.shape[-1]}: {connect}")
    pooled = extras.get("pooled_output")
    pooled_width = 0 if pooled is None else pooled.shape[-1]
    if pooled_width < needs.pooled_width:
        raise ValueError(
            f"{owner} needs {needs.pooled_width} numbers for the whole prompt beside its words, got {pooled_width}: {connect}"
        )
    found = [name for key, name in _REFUSED.items() if extras.get(key) is not None]
    if (extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)) != (0.0, 1.0):
        found.append("a range of steps")
    hooks = extras.get("hooks")
    if hooks is not None and any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks.hooks):
        found.append("a LoRA schedule")
    if found:
        raise ValueError(
            f"{owner} needs a plain prompt, got one with {' and '.join(found)}: memory cannot be combined with that. "
            "Remove the node that adds it to the conditioning."
        )


def blended(before: Any, after: Any, weight: float) -> list[Any]:
    """One prompt between two: `weight` of the second one's vectors, the shorter one filled up with zeros, as padding is.

    So is the one vector for all words, where both have one. What else a prompt carries is taken from the second.
    """
    (first, extras_before), (second, extras) = before[0], after[0]
    pooled = [each.get("pooled_output") for each in (extras_before, extras)]
    if pooled[0] is not None and pooled[1] is not None:
        extras = {**extras, "pooled_output": torch.lerp(pooled[0], pooled[1].to(pooled[0]), weight)}
    words = max(first.shape[1], second.shape[1])
    first, second = (pad(x, (0, 0, 0, words - x.shape[1])) for x in (first, second))
    return [[torch.lerp(first, second.to(first), weight), extras]]
