"""The node that gives a model memory of the film it makes."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..memory.config import LONGEST_TRAINED_FRAMES, MemoryConfig
from ..memory.positions import PositionPolicy
from .host.attach import attach_memory

FULL, WINDOW, WINDOW_AND_SINK = "full", "window", "window + sink"
PRESETS = (WINDOW_AND_SINK, WINDOW, FULL)


class SparseKVMemory(io.ComfyNode):
    """Model in, model with memory out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Model and settings in, model out."""
        return io.Schema(
            node_id="LongReelSparseKVMemory",
            display_name="Sparse KV Memory",
            category="longreel/memory",
            description=(
                "Decides what each new moment of the film may look back at. 'window + sink' reads the newest frames and "
                "the very first ones and needs the same memory for a minute as for an hour; 'window' reads the newest "
                "frames only; 'full' reads everything and grows with the film."
            ),
            search_aliases=["kv cache", "long video memory", "window attention", "sink", "autoregressive"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan text-to-video model, with LoRAs already applied."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=WINDOW_AND_SINK,
                    tooltip="What is read: the newest frames and the first ones, the newest only, or the whole film.",
                ),
                io.Int.Input(
                    "window",
                    default=9,
                    min=1,
                    max=4096,
                    tooltip="Newest latent frames that are read, the chunk being made included (9 is 2.25 s at 16 fps). "
                    "Turning it up keeps motion and looks steadier and costs VRAM and time. Not used by 'full'.",
                ),
                io.Int.Input(
                    "sink",
                    default=3,
                    min=0,
                    max=4096,
                    tooltip="First latent frames of the film that stay readable for ever. Turning it up holds on to the "
                    "opening look more firmly; too high and later shots drift back to it. Used by 'window + sink'.",
                ),
                io.Combo.Input(
                    "positions",
                    options=[policy.value for policy in PositionPolicy],
                    default=PositionPolicy.ABSOLUTE.value,
                    advanced=True,
                    tooltip="When the model thinks a remembered frame was: 'absolute' as it was; 'contiguous' closes the "
                    "gaps; 'clamped' never further away than the trained length.",
                ),
                io.Int.Input(
                    "trained_frames",
                    default=LONGEST_TRAINED_FRAMES,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="Longest distance in latent frames that the checkpoint saw in training. Used by 'clamped'.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, for the Chunked AR Sampler.")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, preset: str, window: int, sink: int, positions: str, trained_frames: int
    ) -> io.NodeOutput:
        """Attach the memory that the preset means."""
        config = MemoryConfig(
            window_frames=None if preset == FULL else window,
            sink_frames=sink if preset == WINDOW_AND_SINK else 0,
            positions=PositionPolicy(positions),
            trained_frames=trained_frames,
        )
        return io.NodeOutput(attach_memory(model, config))
