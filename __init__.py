"""LongReel: minute-long films from storyboards, chunk by chunk, with a memory you can see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI asks for when it loads the pack."""
    from .nodes import extension

    return extension()
