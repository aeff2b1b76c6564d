"""The node that makes the film."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import InputImpl, io, ui
from comfy_execution.graph import ExecutionBlocker
from server import PromptServer
from torch import Tensor

from ..memory.project import check_project_name
from .film import Film
from .host.encoder_model import LoadedEncoder
from .live_inspection import LiveInspection
from .planned_storyboard import PlannedStoryboard
from .sockets import EncoderSocket, StoryboardSocket, TraceSocket

FILMS_FOLDER = "longreel"


class ChunkedARSampler(io.ComfyNode):
    """Storyboard and model in, film out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Everything a film is made of."""
        return io.Schema(
            node_id="LongReelChunkedARSampler",
            display_name="Chunked AR Sampler",
            category="longreel",
            description=(
                "Makes the film chunk by chunk and writes every finished chunk into output/longreel/PROJECT at once: a "
                "stopped render goes on where it stopped when you queue it again. Connect a VAE to get a video while "
                "it renders. Put Sparse KV Memory before the model input to choose what is remembered."
            ),
            search_aliases=["long video", "autoregressive sampler", "self forcing", "storyboard render"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Wan text-to-video model, best a causal few-step checkpoint, or HunyuanVideo or Kandinsky 5.",
                ),
                StoryboardSocket.Input("storyboard", tooltip="The film in words, from the Storyboard node."),
                io.Sigmas.Input(
                    "sigmas", tooltip="Noise levels, from Basic Scheduler. 4 steps of 'simple' for causal checkpoints."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Another seed gives another film. A shot may have its own seed in the storyboard.",
                ),
                io.Int.Input("width", default=832, min=16, max=8192, step=16, tooltip="Width of the film in pixels."),
                io.Int.Input("height", default=480, min=16, max=8192, step=16, tooltip="Height of the film in pixels."),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="How strongly prompts are followed. 1 for causal few-step checkpoints; above 1 the negative "
                    "prompt acts, each step takes twice as long and the memory twice the VRAM.",
                ),
                io.String.Input(
                    "project",
                    default="film",
                    tooltip="Folder of this film in output/longreel. With the same settings a stopped film goes on; with "
                    "others the earlier film is kept beside it as NAME.1, NAME.2, ... Give every sampler its own name.",
                ),
                io.Sampler.Input(
                    "sampler",
                    optional=True,
                    tooltip="Leave empty for causal few-step checkpoints. Connect KSampler Select (euler, uni_pc, ...) to "
                    "make each chunk in many steps with an ordinary checkpoint, as HunyuanVideo is.",
                ),
                io.Latent.Input(
                    "start_image",
                    optional=True,
                    tooltip="VAE Encode of one image in the size of the film: it becomes the first frame.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Connect it to get a video, decoded chunk by chunk. "
                    "Only Wan's VAEs can do that; for HunyuanVideo and Kandinsky 5 put VAE Decode (Tiled) behind the latent output.",
                ),
                EncoderSocket.Input(
                    "encoder",
                    optional=True,
                    tooltip="From Memory Encoder Loader, for an ordinary Wan model or HunyuanVideo: it then remembers the film through the "
                    "encoder instead of Sparse KV Memory. Leave empty for causal checkpoints.",
                ),
                io.Boolean.Input(
                    "keep_selections",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For research: also keep, in the folder 'selections' of the project, which parts of the film every "
                    "part of the picture looked at in every step. It does not change the film. It takes disk (5 MB a chunk for "
                    "Wan 1.3B in 4 steps) and some time, and only memories that search the film have anything to keep. Chunks "
                    "that are finished already keep none.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The whole film, for VAE Decode and Save Latent."),
                io.Video.Output(display_name="video", tooltip="The film; needs a VAE."),
                TraceSocket.Output(display_name="trace", tooltip="What was remembered, for the Memory Inspector."),
                io.String.Output(display_name="folder", tooltip="Where the film's files are."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, project: str | None = None) -> bool | str:
        """A bad project name is told when the workflow is queued; a linked one is checked when it is there."""
        try:
            if project is not None:
                check_project_name(project)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        storyboard: PlannedStoryboard,
        sigmas: Tensor,
        seed: int,
        width: int,
        height: int,
        cfg: float,
        project: str,
        sampler: comfy.samplers.Sampler | None = None,
        start_image: dict[str, Any] | None = None,
        vae: comfy.sd.VAE | None = None,
        encoder: LoadedEncoder | None = None,
        keep_selections: bool = False,
    ) -> io.NodeOutput:
        """Check everything, then make the film."""
        film = Film(
            model=model,
            storyboard=storyboard,
            sigmas=sigmas,
            seed=seed,
            width=width,
            height=height,
            cfg=cfg,
            project=project,
            sampler=sampler,
            start=None if start_image is None else start_image["samples"],
            vae=vae,
            encoder=encoder,
            keep_selections=keep_selections,
        )
        root = Path(folder_paths.get_output_directory()) / FILMS_FOLDER
        node = cls.hidden.unique_id
        with LiveInspection(node) as live:
            made = film.make(root, lambda text: PromptServer.instance.send_progress_text(text, node), live.finished)
        latent = {"samples": made.latents}
        if made.video is None:
            no_video = ExecutionBlocker(
                "Connect a Wan VAE to the Chunked AR Sampler to get a video, or decode its latent output."
            )
            return io.NodeOutput(latent, no_video, made.trace, str(made.folder))
        subfolder = f"{FILMS_FOLDER}/{made.folder.name}"
        saved = ui.SavedResult(made.video.name, subfolder, io.FolderType.output)
        video = InputImpl.VideoFromFile(str(made.video))
        return io.NodeOutput(latent, video, made.trace, str(made.folder), ui=ui.PreviewVideo([saved]))
