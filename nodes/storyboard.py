"""The node that turns a written storyboard into shots."""

from __future__ import annotations

import comfy.sd
from comfy_api.latest import io
from server import PromptServer

from ..memory.storyboard_parser import read_storyboard
from .planned_storyboard import FASTEST_FPS, SLOWEST_FPS, PlannedStoryboard, plan_storyboard
from .sockets import StoryboardSocket

EXAMPLE = """style: soft watercolour
@anna: a girl in a red coat

[0s-5s] @anna walks through a village in the rain
[5s-10s] an empty beach at sunset
[10s-15s] @anna sits on a bench at the beach
"""


class StoryboardNode(io.ComfyNode):
    """Storyboard text to encoded shots and a chunk plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Text, CLIP, negative, fps and chunk in; one storyboard out."""
        return io.Schema(
            node_id="LongReelStoryboard",
            display_name="Storyboard",
            category="longreel",
            description=(
                "Write the whole film here, shot by shot: [0s-5s] or [5s] starts a shot, '@anna: a girl in a red coat' "
                "introduces a character once and @anna brings her back later, a 'style:' line goes to every shot. "
                "Inside the brackets a shot may have its own seed and a transition (keep, recache, blend 2s, cut, cut clean): "
                "[5s, seed 42, recache]. 'pin: 12.5s' and 'veto: shot 2' name moments that later shots always read, and never."
            ),
            search_aliases=["shots", "prompt schedule", "long video", "script", "prompt travel"],
            inputs=[
                io.String.Input("text", multiline=True, default=EXAMPLE, tooltip="The storyboard, as text or JSON."),
                io.Clip.Input("clip", tooltip="The text encoder of your model."),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What the film should not show. It only acts when cfg is above 1.",
                ),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=SLOWEST_FPS,
                    max=FASTEST_FPS,
                    step=0.01,
                    tooltip="Frames a second of the film. Wan models were trained at 16; turning it up makes the same "
                    "seconds cost more chunks.",
                ),
                io.Int.Input(
                    "chunk",
                    default=3,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Latent frames made together (3 is 0.75 s at 16 fps). Use what your checkpoint was trained "
                    "with: 3 for most causal Wan models, 1 for frame-wise ones. Shots snap to whole chunks.",
                ),
            ],
            outputs=[
                StoryboardSocket.Output(
                    display_name="storyboard", tooltip="Shots, prompts and chunk plan, for the Chunked AR Sampler."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        """A mistake in the text is told when the workflow is queued; a linked text is read when it is there."""
        try:
            if text is not None:
                read_storyboard(text)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, text: str, clip: comfy.sd.CLIP, negative: str, fps: float, chunk: int) -> io.NodeOutput:
        """Parse, snap, then encode: a mistake in the text costs nothing."""
        board = read_storyboard(text)
        plan_storyboard(board, (), None, fps, chunk)
        encoded = {prompt: _encode(clip, prompt) for prompt in dict.fromkeys(shot.prompt for shot in board.shots)}
        conditionings = tuple(encoded[shot.prompt] for shot in board.shots)
        planned: PlannedStoryboard = plan_storyboard(board, conditionings, _encode(clip, negative), fps, chunk)
        PromptServer.instance.send_progress_text(planned.summary(), cls.hidden.unique_id)
        return io.NodeOutput(planned)


def _encode(clip: comfy.sd.CLIP, prompt: str) -> object:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
