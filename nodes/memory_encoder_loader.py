"""The node that loads a memory encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from server import PromptServer

from ..memory.encoded_history import HistoryConfig
from ..memory.encoder_spec import RATES, smaller_frames
from ..memory.history_session import Reading
from .host.build import ENCODERS_FOLDER
from .host.encoder_check import fits
from .host.encoder_model import TYPES, LoadedEncoder, encoder_of, load_encoder
from .sockets import EncoderSocket

FOLDER = "memory_encoders"
AUTO = "auto"
DEFAULT = HistoryConfig()
SMALLER = {f"none: smaller frames ({rate})": rate for rate in RATES}
"""Choices that need no file."""


def add_model_folder() -> None:
    """Tell the host of `models/memory_encoders`, beside those that the user's own list of folders names and the one that ships."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
    folder_paths.add_model_folder_path(FOLDER, str(ENCODERS_FOLDER))
    folder_paths.folder_names_and_paths[FOLDER][1].update({".safetensors", ".sft"})


class MemoryEncoderLoader(io.ComfyNode):
    """File in, memory encoder out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A file and how much of the film it is to tell."""
        return io.Schema(
            node_id="LongReelMemoryEncoderLoader",
            display_name="Memory Encoder Loader",
            category="longreel/memory",
            description=(
                "Loads a memory encoder from models/memory_encoders: a small network that tells an ordinary (not causal) Wan "
                "model or HunyuanVideo of the whole film so far in a few tokens. Connect it to the Chunked AR Sampler, and "
                "put the LoRA that was trained with it on the model."
            ),
            search_aliases=["tinyhistory", "pfp", "framepack", "history compression", "long context"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=[*folder_paths.get_filename_list(FOLDER), *SMALLER],
                    tooltip="A file from models/memory_encoders. Each is made for one model; the node tells you which. "
                    "tiny_encoder comes with LongReel, for the Tiny Storyboard Model trained for a memory encoder. 'none: "
                    "smaller frames' needs no file and fits every model, but none was trained to read it: 2x2x1 keeps most of the "
                    "film, 4x4x4 takes least VRAM and time.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, *TYPES],
                    default=AUTO,
                    advanced=True,
                    tooltip="Precision of the encoder. 'auto' takes bf16 where the card likes it. fp32 is exact and "
                    "takes twice the VRAM; encoders are small.",
                ),
                io.Int.Input(
                    "window",
                    default=DEFAULT.window_frames,
                    min=0,
                    max=256,
                    tooltip="Newest latent frames that are read whole beside the encoder's tokens (4 make a second at 16 "
                    "fps). Turning it up makes the joints between chunks smoother and costs VRAM and time.",
                ),
                io.Int.Input(
                    "history",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Latent frames that are read through the encoder, counted back from now; 0 is the whole film. "
                    "Encoders were trained with a certain length (often 80 frames, 20 s): far beyond it they may blur. "
                    "Turning it down saves time and forgets what is older.",
                ),
                EncoderSocket.Input(
                    "beside",
                    optional=True,
                    tooltip="Another Memory Encoder Loader, so that several encoders tell the film at once: a fine one of the "
                    "newest seconds beside a coarse one of the whole film, say. Each reaches as far back as its own "
                    "'history'; the window is that of the loader next to the sampler. More encoders mean more tokens, so "
                    "more VRAM and time.",
                ),
                io.Combo.Input(
                    "reading",
                    options=[reading.value for reading in Reading],
                    default=Reading.EVERY_STEP.value,
                    optional=True,
                    advanced=True,
                    tooltip="How often the model reads the tokens. 'every step' is how encoders are trained. 'once a chunk' keeps what "
                    "the first step made of them for the other steps, 'once a film' keeps it for good, so that every token goes through "
                    "the model once. Both are meant to save time and take VRAM (a token as much as its keys and values in every "
                    "layer), and older frames no longer look at newer ones: the tiny model recalls as well, others may not. For Wan and encoders whose tokens read the prompts of their own shots. The choice of the loader next to "
                    "the sampler counts.",
                ),
            ],
            outputs=[
                EncoderSocket.Output(display_name="encoder", tooltip="For the Chunked AR Sampler."),
                io.String.Output(display_name="fits", tooltip="Which model the encoder fits, and how it was made."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        encoder: str,
        dtype: str,
        window: int,
        history: int,
        beside: LoadedEncoder | None = None,
        reading: str = Reading.EVERY_STEP.value,
    ) -> tuple[object, ...]:
        """A file that was replaced is loaded again."""
        if encoder in SMALLER:
            return (encoder, dtype, window, history, reading)
        found = Path(folder_paths.get_full_path_or_raise(FOLDER, encoder)).stat()
        return (encoder, found.st_mtime_ns, found.st_size, dtype, window, history, reading)

    @classmethod
    def execute(
        cls,
        encoder: str,
        dtype: str,
        window: int,
        history: int,
        beside: LoadedEncoder | None = None,
        reading: str = Reading.EVERY_STEP.value,
    ) -> io.NodeOutput:
        """Load the file, or say in one sentence why it cannot be."""
        config = HistoryConfig(window, history or None)
        if encoder in SMALLER:
            alone = encoder_of(smaller_frames(SMALLER[encoder]), {}, config, name="smaller frames")
        else:
            alone = load_encoder(Path(folder_paths.get_full_path_or_raise(FOLDER, encoder)), config, TYPES.get(dtype))
        loaded = replace(alone, beside=beside, reading=Reading(reading))
        told = fits(loaded)
        PromptServer.instance.send_progress_text(told, cls.hidden.unique_id)
        return io.NodeOutput(loaded, told)
