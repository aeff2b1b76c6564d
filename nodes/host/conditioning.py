"""Which prompts a film with memory can be guided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

_REFUSED = {
    "reference_latents": "reference latents",
    "context_latents": "context latents",
    "time_dim_concat": "frames joined in time",
    "area": "an area",
    "mask": "a mask",
}


def check_conditioning(owner: str, conditioning: Sequence[Any], text_width: int) -> None:
    """Raises ValueError unless this is one prompt for whole frames and all steps, of `text_width` numbers a word.

    What adds tokens has no place in memory. A prompt that is off at t = 0 would leave a chunk out of memory. A LoRA
    schedule would run down in the first chunk.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{owner} needs exactly one prompt, got {len(conditioning)} combined ones. Memory keeps one history; write "
            "them as one prompt."
        )
    vectors, extras = conditioning[0]
    if vectors.shape[-1] != text_width:
        raise ValueError(
            f"{owner} needs {text_width} numbers a word, got {vectors.shape[-1]}: it was encoded for another model. "
            "Load umt5_xxl with type 'wan' in Load CLIP and connect it to the Storyboard."
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

    What else a prompt carries is taken from the second.
    """
    (first, _), (second, extras) = before[0], after[0]
    words = max(first.shape[1], second.shape[1])
    first, second = (pad(x, (0, 0, 0, words - x.shape[1])) for x in (first, second))
    return [[torch.lerp(first, second.to(first), weight), extras]]
