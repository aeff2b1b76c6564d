"""The nodes, and everything else that knows ComfyUI. Importing this imports no host: `node_classes` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension, io


def node_classes() -> list[type[io.ComfyNode]]:
    """All nodes of the pack, in the order of the menu."""
    from .chunk_sampler import ChunkedARSampler
    from .memory_encoder_loader import MemoryEncoderLoader
    from .memory_inspector import MemoryInspector
    from .prompt_bank import PromptRetrievedMemoryBank
    from .sparse_kv_memory import SparseKVMemory
    from .storyboard import StoryboardNode
    from .tiny_storyboard_model import TinyStoryboardModel

    return [
        StoryboardNode,
        SparseKVMemory,
        PromptRetrievedMemoryBank,
        MemoryEncoderLoader,
        ChunkedARSampler,
        MemoryInspector,
        TinyStoryboardModel,
    ]


def extension() -> ComfyExtension:
    """The pack as ComfyUI's loader wants it."""
    from comfy_api.latest import ComfyExtension

    class LongReelExtension(ComfyExtension):
        async def on_load(self) -> None:
            from .memory_encoder_loader import add_model_folder

            add_model_folder()

        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return node_classes()

    return LongReelExtension()
