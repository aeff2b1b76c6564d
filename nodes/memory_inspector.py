"""The node that shows what a film remembered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io

from ..memory.inspection import inspect_film
from ..memory.picture import PictureView, draw_inspection
from ..memory.thumbnails import read_thumbnails
from ..memory.trace import read_trace
from ..memory.trace_groups import MOST_HEAD_GROUPS, MOST_LAYER_GROUPS
from .sockets import TraceSocket
from .thumbnail_address import thumbnail_addresses

DEFAULT = PictureView()


class MemoryInspector(io.ComfyNode):
    """Trace in, picture and numbers of what each chunk read out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A trace and what the picture shows in, image and JSON out."""
        return io.Schema(
            node_id="LongReelMemoryInspector",
            display_name="Memory Inspector",
            category="longreel",
            description=(
                "Shows what the film remembers: for every chunk which older frames it read, how much of each and why, "
                "what that cost, and how far the film drifted. The picture grows while the film is made. This is the memory "
                "of the story, not the VRAM."
            ),
            search_aliases=["memory", "what was remembered", "attention map", "trace", "pin", "veto"],
            is_output_node=True,
            inputs=[
                TraceSocket.Input("trace", tooltip="From the Chunked AR Sampler: what every chunk read."),
                io.Int.Input(
                    "layer_group",
                    default=0,
                    min=0,
                    max=MOST_LAYER_GROUPS,
                    tooltip="0 shows the mean over the whole model in the image; 1 and up show one group of its layers, "
                    "the first ones first. Only pages differ between groups.",
                ),
                io.Int.Input(
                    "head_group",
                    default=0,
                    min=0,
                    max=MOST_HEAD_GROUPS,
                    tooltip="0 shows the mean over all attention heads in the image; 1 and up show one group of them.",
                ),
                io.Int.Input(
                    "width",
                    default=DEFAULT.width,
                    min=480,
                    max=8192,
                    step=16,
                    tooltip="Width of the image in pixels. Turn it up for long films: below one pixel a chunk, chunks share one.",
                ),
                io.Int.Input(
                    "height",
                    default=DEFAULT.height,
                    min=480,
                    max=8192,
                    step=16,
                    tooltip="Height of the image in pixels. Turn it up for long films: a row is a remembered frame.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture, for Save Image."),
                io.String.Output(display_name="json", tooltip="All its numbers, as JSON."),
            ],
        )

    @classmethod
    def execute(cls, trace: Path, layer_group: int, head_group: int, width: int, height: int) -> io.NodeOutput:
        """Read the trace and draw it."""
        header, events = read_trace(trace)
        chunks = [event["chunk"] for event in events]
        inspection = inspect_film(header, events, thumbnail_addresses(trace.parent, chunks))
        view = PictureView(width, height, _chosen(layer_group), _chosen(head_group))
        picture = draw_inspection(inspection, read_thumbnails(trace.parent, chunks), view)
        image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
        return io.NodeOutput(image, json.dumps(inspection, ensure_ascii=False), ui={"longreel": [inspection]})


def _chosen(group: int) -> int | None:
    return None if group == 0 else group - 1
