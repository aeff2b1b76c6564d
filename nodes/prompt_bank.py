"""The node that lets the coming prompt choose what the film remembers."""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..memory.film_moments import EXAMPLE
from ..memory.prompt_bank import PromptBankConfig
from .host.attach import attach_memory, default_memory, memory_config

DEFAULT = PromptBankConfig(anchors=True)


class PromptRetrievedMemoryBank(io.ComfyNode):
    """Model in, model that brings back what the prompt speaks of out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Model and settings in, model out."""
        return io.Schema(
            node_id="LongReelPromptBank",
            display_name="Prompt-Retrieved Memory Bank",
            category="longreel/memory",
            description=(
                "Brings back the few moments of the film that the coming shot's prompt speaks of, however long ago they "
                "were: rare words count most, so a name finds its character. You may pin moments and forbid others. Goes "
                "before or after Sparse KV Memory, or alone (then it reads 9 newest and 3 first frames beside its own)."
            ),
            search_aliases=["memflow", "character memory", "pin", "retrieval", "consistent character"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A Wan or HunyuanVideo text-to-video model, with or without Sparse KV Memory."
                ),
                io.Int.Input(
                    "bank",
                    default=DEFAULT.frames,
                    min=1,
                    max=256,
                    tooltip="Latent frames that are brought back for each chunk (4 make a second at 16 fps). Turning it up "
                    "brings back more of the past and costs VRAM and time; too many and they blur each other.",
                ),
                io.Float.Input(
                    "variety",
                    default=DEFAULT.variety,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How different the frames of the bank should be. At 0 it may hold three pictures of one moment; "
                    "turning it up spreads them over moments that look different.",
                ),
                io.Boolean.Input(
                    "anchors",
                    default=DEFAULT.anchors,
                    tooltip="When a shot mentions @anna, frames of earlier shots that mention her come first.",
                ),
                io.String.Input(
                    "pin",
                    default="",
                    tooltip="Moments that are always read, as in '12.5s, 31s'. Each latent frame takes a place in the bank.",
                ),
                io.String.Input(
                    "veto",
                    default="",
                    tooltip=f"Moments that no later shot reads, as in '{EXAMPLE}': a shot that went wrong, say.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, for the Chunked AR Sampler.")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, bank: int, variety: float, anchors: bool, pin: str, veto: str
    ) -> io.NodeOutput:
        """Add the bank to the memory that is there."""
        config = PromptBankConfig(frames=bank, variety=variety, anchors=anchors, pins=pin, vetoes=veto)
        memory = memory_config(model) or default_memory(model)
        return io.NodeOutput(attach_memory(model, replace(memory, prompt_bank=config)))
