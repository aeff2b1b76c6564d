"""Which prompts a film with memory can be guided by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REFUSED = {
    "reference_latents": "reference latents",
    "context_latents": "context latents",
    "time_dim_concat": "frames joined in time",
    "area": "an area",
    "mask": "a mask",
}


def check_conditioning(owner: str, conditioning: Sequence[Any]) -> None:
    """Raises ValueError unless this is one prompt for whole frames and all steps, as memory needs it.

    What adds tokens has no place in memory. A prompt that is off at t = 0 would leave a chunk out of memory.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{owner} needs exactly one prompt, got {len(conditioning)} combined ones. Memory keeps one history; write "
            "them as one prompt."
        )
    _, extras = conditioning[0]
    found = [name for key, name in _REFUSED.items() if extras.get(key) is not None]
    if (extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)) != (0.0, 1.0):
        found.append("a range of steps")
    if found:
        raise ValueError(
            f"{owner} needs a plain prompt, got one with {' and '.join(found)}: memory cannot be combined with that. "
            "Remove the node that adds it to the conditioning."
        )
