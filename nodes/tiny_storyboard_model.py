"""The node that brings the small model shipped with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from .host.build import WEIGHTS_FOLDER, build_tiny_vae, build_tiny_wan, read_gates, shipped_weights
from .host.demo_text import build_demo_clip
from .host.gates import bring_gates


class TinyStoryboardModel(io.ComfyNode):
    """Loads the demo model, its text encoder and its VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """No inputs, three outputs."""
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
            outputs=[
                io.Model.Output(display_name="model", tooltip="The tiny Wan model; connect it like any Wan model."),
                io.Clip.Output(display_name="clip", tooltip="The demo text encoder; it knows words, not meanings."),
                io.Vae.Output(display_name="vae", tooltip="The tiny Wan VAE; turns latents into 8x larger frames."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the shipped weights, or seeded random ones while none ship."""
        model = build_tiny_wan(causal=True, weights=shipped_weights("wan"))
        bring_gates(model, read_gates(WEIGHTS_FOLDER))
        vae = build_tiny_vae(weights=shipped_weights("vae"))
        return io.NodeOutput(model, build_demo_clip(), vae)
