"""The node that brings the small model shipped with the pack."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..memory.gates import GateForm
from ..memory.presets import GATED_PRESETS
from .host.build import build_tiny_reader, build_tiny_vae, build_tiny_wan, gated_weights, shipped_weights
from .host.build_hunyuan import build_tiny_hunyuan, preview_with
from .host.demo_text import build_demo_clip

ANY, ENCODER = "any memory", "memory encoder"
WAN, HUNYUAN = "Wan", "HunyuanVideo"
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
                "A very small model that comes with LongReel, with its text encoder and VAE: no download, and it "
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
                io.Combo.Input(
                    "family",
                    optional=True,
                    options=[WAN, HUNYUAN],
                    default=WAN,
                    tooltip="Which network. 'HunyuanVideo' learned the same cartoons, chunk by chunk of one latent frame: leave the "
                    "two inputs above as they are, and make its film like that of the large one, with KSampler Select and with VAE "
                    "Decode behind the sampler.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The tiny model; connect it like any model of its family."
                ),
                io.Clip.Output(display_name="clip", tooltip="The demo text encoder; it knows words, not meanings."),
                io.Vae.Output(display_name="vae", tooltip="The tiny Wan VAE; turns latents into 8x larger frames."),
            ],
        )

    @classmethod
    def execute(cls, trained_for: str = ANY, causal: bool = True, family: str = WAN) -> io.NodeOutput:
        """Load the shipped weights, or a seeded random Wan while none ships.

        Raises ValueError for what does not ship, for gates without causal, and for either with HunyuanVideo.
        """
        vae = build_tiny_vae(weights=shipped_weights("vae"))
        if family == HUNYUAN:
            model = _hunyuan(trained_for, causal)
            preview_with(model, vae)
        else:
            model = _wan(trained_for, causal)
        return io.NodeOutput(model, build_demo_clip(), vae)


def _wan(trained_for: str, causal: bool) -> ModelPatcher:
    if trained_for == ENCODER:
        return build_tiny_reader(shipped_weights("wan") or {})
    form = FORMS[trained_for]
    if form is not None and not causal:
        raise ValueError(
            f"The model trained for {trained_for} is causal: an ordinary one has no use for gates. Switch 'causal' on, or "
            f"take '{ANY}'."
        )
    weights = shipped_weights("wan") if form is None else gated_weights(form)
    if form is not None and weights is None:
        raise ValueError(
            f"No gates for {trained_for} came with this pack: memory/weights needs tiny_gates_{form.value}.safetensors. "
            f"Train them with `longreel train tiny --gates {form.value}`, or take '{ANY}'."
        )
    return build_tiny_wan(causal=causal, weights=weights)


def _hunyuan(trained_for: str, causal: bool) -> ModelPatcher:
    if trained_for != ANY or not causal:
        raise ValueError(
            f"The tiny HunyuanVideo was trained for '{ANY}', and remembers chunk by chunk; got '{trained_for}', causal "
            f"{'on' if causal else 'off'}. Take '{ANY}' and switch 'causal' on, or take family '{WAN}'."
        )
    weights = shipped_weights("hunyuan")
    if weights is None:
        raise ValueError(
            "No tiny HunyuanVideo came with this pack: memory/weights needs tiny_hunyuan*.safetensors. Train one with `longreel "
            f"train tiny --family hunyuan` and put its files there, or take family '{WAN}'."
        )
    return build_tiny_hunyuan(weights=weights)
