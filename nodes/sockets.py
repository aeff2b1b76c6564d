"""The socket types of the pack, each defined once."""

from __future__ import annotations

from comfy_api.latest import io

StoryboardSocket = io.Custom("LONGREEL_STORYBOARD")
TraceSocket = io.Custom("LONGREEL_TRACE")
EncoderSocket = io.Custom("LONGREEL_ENCODER")
