"""The node that brings the small model shipped with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..memory.gates import GateForm
from ..memory.presets import GATED_PRESETS
from .host.build import build_tiny_reader, build_tiny_vae, build_tiny_wan, gated_weights, shipped_weights
from .host.demo_text import build_demo_clip

ANY, ENCODER = "any memory", "memory encoder"
FORMS: dict[str, GateForm | None] = {ANY: None} | {preset: form for form, preset in GATED_PRESETS.items()}


class TinyStoryboardModel(io.ComfyNode):
    """Loads the demo model, its text encoder and its VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Which model, three outputs."""
        return io.Schema(
            node_id="LongReelTinyStoryboardModel",
            display_name="Tiny Storyboard Model",
            category="longreel/demo",
            description=(
                "A very small Wan model that comes with LongReel, with its text encoder and VAE: no download, and it "
                "renders 128x96 cartoon films on any computer. Use it to try a storyboard and to learn the nodes. "
                "It only knows the words of the demo storyboards; for real pictures load a Wan checkpoint instead."
            ),
            search_aliases=["demo model", "test model", "longreel demo"],
            inputs=[
                io.Combo.Input(
                    "trained_for",
                    optional=True,
                    options=[*FORMS, ENCODER],
                    default=ANY,
                    tooltip="Which memory the model was trained for. 'any memory' reads with every preset of Sparse KV Memory. "
                    "'OmniMem' and 'DecMem' have gates, weights that say how much of what was found goes into the "
                    "picture: give them the preset of that name. 'memory encoder' is no causal model: it has the LoRA that reads "
                    "tiny_encoder of the Memory Encoder Loader.",
                ),
                io.Boolean.Input(
                    "causal",
                    optional=True,
                    default=True,
                    tooltip="On: a causal model, which remembers through Sparse KV Memory. Off: the same weights as an ordinary "
                    "model, which remembers through a memory encoder that you trained for it. Changes nothing for 'memory encoder'.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The tiny Wan model; connect it like any Wan model."),
                io.Clip.Output(display_name="clip", tooltip="The demo text encoder; it knows words, not meanings."),
                io.Vae.Output(display_name="vae", tooltip="The tiny Wan VAE; turns latents into 8x larger frames."),
            ],
        )

    @classmethod
    def execute(cls, trained_for: str = ANY, causal: bool = True) -> io.NodeOutput:
        """Load the shipped weights, or seeded random ones while none ship; ValueError while no gates ship, or for gates without causal."""
        vae = build_tiny_vae(weights=shipped_weights("vae"))
        if trained_for == ENCODER:
            return io.NodeOutput(build_tiny_reader(shipped_weights("wan") or {}), build_demo_clip(), vae)
        form = FORMS[trained_for]
        if form is not None and not causal:
            raise ValueError(
                f"The model trained for {trained_for} is causal: an ordinary one has no use for gates. Switch 'causal' on, or take '{ANY}'."
            )
        weights = shipped_weights("wan") if form is None else gated_weights(form)
        if form is not None and weights is None:
            raise ValueError(
                f"No gates for {trained_for} came with this pack: memory/weights needs tiny_gates_{form.value}.safetensors. "
                f"Train them with `longreel train tiny --gates {form.value}`, or take '{ANY}'."
            )
        model = build_tiny_wan(causal=causal, weights=weights)
        return io.NodeOutput(model, build_demo_clip(), vae)
