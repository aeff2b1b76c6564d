"""The chunk loop of a film that is remembered through an encoder: read, denoise, append. It knows no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from .chunks import Chunk, Plan
from .encoded_history import EncodedHistory
from .rollout import FinishedChunk
from .select import EVERYTHING
from .transitions import Reach


def encoded_rollout(
    history: EncodedHistory,
    plan: Plan,
    denoise: Callable[[Chunk], Tensor],
    load: Callable[[int], Tensor | None],
    reaches: Sequence[Reach] = (),
    start: Tensor | None = None,
    prompt: Callable[[Chunk], tuple[Tensor | None, Tensor | None]] = lambda chunk: (None, None),
) -> Iterator[FinishedChunk]:
    """Make the plan's chunks in order; `start` `[B, C, plan.seeded_frames, H, W]` is remembered before the first.

    `denoise(chunk)` returns clean latents, `load(index)` the latents of a chunk that an earlier run finished, or None: these are
    encoded just as new ones are, so a resumed film remembers exactly what the uninterrupted one did. `reaches` says how
    far back each shot may look, `prompt` what a chunk is made under, `[W, C]` and one vector for all words; the start goes with the first chunk. Prompts
    are in no token, so nothing has to be encoded anew when a shot begins.
    """
    if start is not None:
        history.append(start, *prompt(plan.chunks[0]))
    for chunk in plan.chunks:
        started = time.perf_counter()
        history.begin(reaches[chunk.shot] if chunk.shot < len(reaches) else EVERYTHING)
        read_frames, frames_worth = history.read_frames, history.frames_worth
        saved = load(chunk.index)
        latents = denoise(chunk) if saved is None else saved
        denoised = time.perf_counter()
        history.append(latents, *prompt(chunk))
        appended = time.perf_counter()
        yield FinishedChunk(
            chunk,
            latents,
            saved is not None,
            read_frames,
            {},
            frames_worth,
            (),
            milliseconds={"denoise": 1000 * (denoised - started), "commit": 1000 * (appended - denoised)},
            remembered=history.remembered,
        )
