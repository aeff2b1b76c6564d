"""The node that lets the coming prompt choose what the film remembers."""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..memory.presets import LONGREEL, MEMFLOW, memflow
from ..memory.prompt_bank import PromptBankConfig, Scorer
from ..memory.storyboard import MOMENTS, read_moment, split_moments
from .host.attach import attach_memory, default_memory, memory_config
from .host.gates import use_gates

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
                    "model",
                    tooltip="A Wan, HunyuanVideo or Kandinsky 5 text-to-video model, with or without Sparse KV Memory.",
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
                    tooltip="Moments that are always read, as in '12.5s, 31s', beside the bank and what 'pin:' lines of the "
                    "storyboard name. Each latent frame costs VRAM and time.",
                ),
                io.String.Input(
                    "veto",
                    default="",
                    tooltip=f"Moments that no later shot reads, as in '{MOMENTS}': a shot that went wrong, say.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[LONGREEL, MEMFLOW],
                    default=LONGREEL,
                    optional=True,
                    tooltip="'LongReel' is what the other widgets say. 'MemFlow' is the published bank: 3 frames, chosen anew by "
                    "every layer of the model among each ninth frame, beside the 9 newest and 3 first; of the widgets it "
                    "uses pin and veto.",
                ),
                io.Combo.Input(
                    "scorer",
                    options=[scorer.value for scorer in Scorer],
                    default=DEFAULT.scorer.value,
                    optional=True,
                    advanced=True,
                    tooltip="How a prompt finds frames. 'late interaction': by the words of their prompts, rare ones first; best "
                    "in our measurements. 'key-key' (MemFlow's), 'attention mass' and 'visual query': by what the model itself "
                    "saw in the frames.",
                ),
                io.Boolean.Input(
                    "per_layer",
                    default=DEFAULT.per_layer,
                    optional=True,
                    advanced=True,
                    tooltip="On: every layer of the model brings back its own frames. Off: all layers agree. Not for 'late "
                    "interaction', which is the same for all layers.",
                ),
                io.Float.Input(
                    "parts",
                    default=DEFAULT.parts,
                    min=0.0,
                    max=256.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="How much of the bank each small part of the picture reads, in frames' worth: it takes what concerns "
                    "it. Turning it up reads more of the bank; 0 reads all of it. Not together with a preset of Sparse KV "
                    "Memory that searches the film.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, for the Chunked AR Sampler.")],
        )

    @classmethod
    def validate_inputs(cls, pin: str | None = None, veto: str | None = None) -> bool | str:
        """A moment that cannot be read is told when the workflow is queued; a linked text is read when it is there."""
        for name, text in (("pin", pin), ("veto", veto)):
            for part in split_moments(text or ""):
                try:
                    read_moment(part)
                except ValueError as problem:
                    return f"In '{name}': '{part}' needs to be {problem}, as in {MOMENTS}."
        return True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        bank: int,
        variety: float,
        anchors: bool,
        pin: str,
        veto: str,
        preset: str = LONGREEL,
        scorer: str = DEFAULT.scorer.value,
        per_layer: bool = DEFAULT.per_layer,
        parts: float = DEFAULT.parts,
    ) -> io.NodeOutput:
        """Add the bank to the memory that is there."""
        memory = memory_config(model) or default_memory(model)
        if preset == MEMFLOW:
            remembering = attach_memory(model, memflow(memory, pin, veto))
            use_gates(remembering, None)  # a search that is no longer there left them
            return io.NodeOutput(remembering)
        config = PromptBankConfig(
            frames=bank,
            variety=variety,
            anchors=anchors,
            pins=pin,
            vetoes=veto,
            scorer=Scorer(scorer),
            per_layer=per_layer,
            parts=parts,
        )
        return io.NodeOutput(attach_memory(model, replace(memory, prompt_bank=config)))
