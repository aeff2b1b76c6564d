"""The node that gives a model memory of the film it makes."""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..memory.config import LONGEST_TRAINED_FRAMES, BankConfig, MemoryConfig
from ..memory.positions import PositionPolicy
from ..memory.presets import DECMEM, FULL, GATED_PRESETS, LONGLIVE, LONGREEL, OMNIMEM, PRESETS
from .host.attach import adapter_for, attach_memory, memory_config
from .host.gates import brought_gates, use_gates

WINDOW, WINDOW_AND_SINK, CUSTOM = "window", "window + sink", "custom"
OPTIONS = (WINDOW_AND_SINK, LONGREEL, OMNIMEM, DECMEM, LONGLIVE, FULL, WINDOW, CUSTOM)
DEFAULT = BankConfig()
AUTO, OFF = "auto", "off"


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
                "Decides what each new moment of the film may look back at. 'LongLive' reads the newest frames and the very "
                "first ones. 'LongReel', 'OmniMem' and 'DecMem' also search the whole film for what each part of the "
                "picture needs, at the same VRAM for a minute as for an hour. 'full' reads everything and grows."
            ),
            search_aliases=[
                "kv cache",
                "long video memory",
                "window attention",
                "sink",
                "sparse attention",
                "retrieval",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan, HunyuanVideo or Kandinsky 5 text-to-video model, with LoRAs already applied.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(OPTIONS),
                    default=WINDOW_AND_SINK,
                    tooltip="What is read. 'window + sink': the newest frames and the first ones. 'LongReel': the same (9 and "
                    "3), and 2.5 frames' worth of the film between them, chosen anew for every part of the picture. "
                    "'OmniMem': the newest 9 and 0.3 frames' worth in thin strips. 'DecMem': the newest 8 and 13 frames' "
                    "worth in sixths of a frame. 'LongLive': 9 and 3. 'full': the whole film. 'window': the newest only. "
                    "'custom': window, sink and read.",
                ),
                io.Int.Input(
                    "window",
                    default=9,
                    min=1,
                    max=4096,
                    tooltip="Newest latent frames that are read, the chunk being made included (9 is 2.25 s at 16 fps). "
                    "Turning it up keeps motion and looks steadier and costs VRAM and time. Used by 'window', 'window + "
                    "sink' and 'custom'.",
                ),
                io.Int.Input(
                    "sink",
                    default=3,
                    min=0,
                    max=4096,
                    tooltip="First latent frames of the film that stay readable for ever. Turning it up holds on to the "
                    "opening look more firmly; too high and later shots drift back to it. Used by 'window + sink' and "
                    "'custom'.",
                ),
                io.Combo.Input(
                    "positions",
                    options=[*(policy.value for policy in PositionPolicy), AUTO],
                    default=AUTO,
                    advanced=True,
                    tooltip="When the model thinks a remembered frame was: 'absolute' as it was; 'contiguous' closes the "
                    "gaps, where there are some (a preset that searches the whole film leaves none); 'clamped' never further "
                    "away than the trained length; 'anchored' as contiguous, within the trained length from its beginning. "
                    "'auto': absolute for Wan, anchored for HunyuanVideo, whose text has a place in time, clamped for Kandinsky 5.",
                ),
                io.Int.Input(
                    "trained_frames",
                    default=LONGEST_TRAINED_FRAMES,
                    min=1,
                    max=4096,
                    advanced=True,
                    tooltip="Longest distance in latent frames that the checkpoint saw in training: 21 for Wan, 33 for HunyuanVideo. "
                    "Used by 'clamped' and 'anchored'.",
                ),
                io.Float.Input(
                    "read",
                    optional=True,
                    default=DEFAULT.frames_worth,
                    min=0.0,
                    max=64.0,
                    step=0.1,
                    tooltip="How much of the film between sink and window each part of the picture may read, in frames' "
                    "worth; 0 forgets it. Turning it up finds more and costs time; too much blurs what is found. While the "
                    "film renders, the sampler shows it in percent. Used by 'custom'.",
                ),
                io.Int.Input(
                    "look_back",
                    optional=True,
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="How far back the film may be searched, in latent frames (4 make a second at 16 fps); 0 is to "
                    "its beginning. Turning it down takes less RAM. Used where a preset searches.",
                ),
                io.Boolean.Input(
                    "strict",
                    optional=True,
                    default=DEFAULT.groups,
                    advanced=True,
                    tooltip="On: every small part of the picture chooses for itself what it reads. Off: the whole chunk "
                    "reads the same, which is good for comparing and bad for finding anybody.",
                ),
                io.Int.Input(
                    "shortlist",
                    optional=True,
                    default=DEFAULT.shortlist,
                    min=1,
                    max=65_536,
                    advanced=True,
                    tooltip="Pages (64 neighbouring tokens of a frame) that a chunk brings onto the card to choose from. "
                    "Turning it up misses less and costs VRAM. Used by 'custom'.",
                ),
                io.Boolean.Input(
                    "eight_bit",
                    optional=True,
                    default=DEFAULT.eight_bit,
                    advanced=True,
                    tooltip="Keeps the film in 8 bits: half the RAM, a small loss. Used where a preset searches.",
                ),
                io.Combo.Input(
                    "gates",
                    optional=True,
                    options=[AUTO, OFF],
                    default=AUTO,
                    advanced=True,
                    tooltip="Some checkpoints were trained with gates: weights that say, for every part of the picture, how "
                    "much of what was found goes into it. 'auto' uses them where the checkpoint has them, 'off' reads as if it "
                    "had none. Used by 'OmniMem' and 'DecMem' with gates of their own kind, and by 'custom' with any.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model, for the Chunked AR Sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        preset: str,
        window: int,
        sink: int,
        positions: str,
        trained_frames: int,
        read: float = DEFAULT.frames_worth,
        look_back: int = 0,
        strict: bool = DEFAULT.groups,
        shortlist: int = DEFAULT.shortlist,
        eight_bit: bool = DEFAULT.eight_bit,
        gates: str = AUTO,
    ) -> io.NodeOutput:
        """Attach the memory that the preset means; ValueError for gates that are broken."""
        if preset in PRESETS:
            config = PRESETS[preset]
        else:
            searched = preset == CUSTOM and read > 0
            config = MemoryConfig(
                window_frames=window,
                sink_frames=0 if preset == WINDOW else sink,
                bank=BankConfig(frames_worth=read, shortlist=shortlist) if searched else None,
            )
        if config.bank is not None:
            bank = replace(config.bank, look_back=look_back or None, eight_bit=eight_bit, groups=strict)
            config = replace(config, bank=bank)
        before = memory_config(model)
        config = replace(
            config,
            positions=adapter_for(model).positions if positions == AUTO else PositionPolicy(positions),
            trained_frames=trained_frames,
            prompt_bank=None if before is None else before.prompt_bank,
        )
        remembering = attach_memory(model, config)
        searches = config.bank is not None
        brought = brought_gates(model) if searches and gates == AUTO else None
        fits = brought is not None and preset in (GATED_PRESETS[brought.form], CUSTOM)
        use_gates(remembering, brought if fits else None)
        return io.NodeOutput(remembering)
