"""Keeps a film on disk while it is made: latents, trace and pictures of every finished chunk, and its lists where they are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from latent_preview import Latent2RGBPreviewer
from PIL import Image
from torch import Tensor

from ..memory.chunks import Chunk
from ..memory.film import join_segments, pictures_to_uint8, write_segment
from ..memory.inspection import inspect_chunk, longest_reach
from ..memory.picture.words import film_seconds
from ..memory.project import Project
from ..memory.rollout import FinishedChunk
from ..memory.selections import save_selections
from ..memory.thumbnails import write_thumbnail
from ..memory.trace import Trace, TraceError, read_trace
from ..memory.trace_groups import step_groups
from ..memory.trace_lines import DIGITS, LatentDrift, chunk_line, film_facts
from .host.guider import FilmGuider
from .host.streaming_decode import StreamingDecoder

if TYPE_CHECKING:
    from .film import Film

Show = Callable[[Path, Mapping[str, Any], Mapping[str, Any]], None]
"""Takes the folder of a film, and header and line of its trace for a chunk that is finished."""


class Recorder:
    """Keeps every finished chunk: latents, trace, and its pictures when there is a VAE."""

    def __init__(self, film: Film, project: Project, tell: Callable[[str], None], show: Show) -> None:
        self._film, self._project, self._tell, self._show = film, project, tell, show
        self._decoder = None if film.vae is None else StreamingDecoder(film.vae)
        self._caught_up = False
        self._trace = Trace(project.trace_path)
        self._drift = LatentDrift()
        self._blends = {blend.chunk: blend.weight for blend in film.blends}
        self._header, self._earlier = _earlier_trace(project.trace_path)

    def finished(self, done: FinishedChunk, guider: FilmGuider) -> None:
        """Write one chunk to disk; nothing of it is believed until all of it is there."""
        latents = done.latents.to(device="cpu", dtype=torch.float32)
        drift = self._drift.of(latents)
        if done.replayed:
            line = self._earlier.get(done.chunk.index)
        else:
            if done.selections is not None:
                save_selections(self._project.selection_path(done.chunk.index), done.selections)
            line = self._trace_chunk(done, guider, drift)
            self._project.save_chunk(done.chunk, latents, done.seconds)
        if self._decoder is None and not self._project.thumbnail_path(done.chunk.index).exists():
            self._preview(done.chunk.index, latents)
        decode_ms = self._decode(done.chunk, latents)
        if decode_ms is not None and done.chunk is not self._film.plan.chunks[-1]:
            guider.reload()
        if line is not None:
            if decode_ms is not None:
                line["milliseconds"] = {**line.get("milliseconds", {}), "decode": decode_ms}
            self._show(self._project.folder, self._header, line)
        self._tell(self._state(done, guider, line))

    def decode_rest(self) -> None:
        """Decode finished chunks whose pictures an earlier run did not come to."""
        for chunk in self._film.plan.chunks[self._project.finished_segments :]:
            self._decode(chunk, self._project.require_chunk(chunk.index))

    def join(self) -> Path | None:
        """Join the segments that are there into the film; None when there is nothing to decode with, or no picture."""
        paths = self._project.segment_paths
        if self._decoder is None or not paths:
            return None
        join_segments(paths, self._project.film_path)
        return self._project.film_path

    def _decode(self, chunk: Chunk, latents: Tensor) -> float | None:
        """Write the pictures of a chunk; milliseconds, or None when there is nothing to decode with or they are on disk."""
        decoder = self._decoder
        if decoder is None or chunk.index < self._project.finished_segments:
            return None
        started = time.perf_counter()
        pieces = [] if self._caught_up else self._catch_up(decoder, chunk)
        self._caught_up = True
        pieces.append(decoder.push(self._film.model.model.process_latent_out(latents)))
        if chunk is self._film.plan.chunks[-1]:
            pieces.append(decoder.finish())
        pictures = pictures_to_uint8(torch.cat(pieces))
        if len(pictures):
            write_segment(self._project.segment_path(chunk.index), pictures, self._film.storyboard.fps)
            write_thumbnail(self._project.thumbnail_path(chunk.index), Image.fromarray(pictures[len(pictures) // 2]))
        spent = round(1000 * (time.perf_counter() - started), 3)
        self._trace.decoded(chunk.index, {"decode": spent})
        self._project.record_segment(chunk.index, len(pictures))
        return spent

    def _catch_up(self, decoder: StreamingDecoder, chunk: Chunk) -> list[Tensor]:
        """Bring the decoder to where the chunk begins; the result are pictures that belong to the chunk."""
        if chunk.index == 0:
            return [] if self._film.start is None else [decoder.push(self._film.start)]
        first = decoder.replay_start(chunk.frames.start)
        decoder.replay(self._film.latents(self._project, range(first, chunk.frames.start)), first)
        return []

    def _preview(self, index: int, latents: Tensor) -> None:
        """A thumbnail without a VAE: the host's own rough colours of the middle frame, where this model has them."""
        known = self._film.model.model.latent_format
        if known.latent_rgb_factors is None:
            return
        previewer = Latent2RGBPreviewer(
            known.latent_rgb_factors, known.latent_rgb_factors_bias, known.latent_rgb_factors_reshape
        )
        middle = latents[:, :, latents.shape[2] // 2 :]
        write_thumbnail(self._project.thumbnail_path(index), previewer.decode_latent_to_preview(middle))

    def _state(self, done: FinishedChunk, guider: FilmGuider, line: Mapping[str, Any] | None) -> str:
        plan = self._film.plan
        reach = 0 if line is None else longest_reach(inspect_chunk(self._header, line))
        start, fps = done.chunk.frames.start, self._film.storyboard.fps
        seconds = film_seconds(start, fps) - film_seconds(start - reach, fps)
        looks_back = f", looks back {seconds:.1f} s" if reach else ""
        lines = [
            self._project.report,
            f"shot {done.chunk.shot + 1} of {len(plan.shots())}, chunk {done.chunk.index + 1} of {len(plan.chunks)}",
            f"{_read(done)}, {_size(guider)} of memory",
            f"{done.remembered} frames remembered{looks_back}",
        ]
        return "\n".join(line for line in lines if line)

    def _trace_chunk(self, done: FinishedChunk, guider: FilmGuider, drift: Mapping[str, float]) -> dict[str, Any]:
        film, session, steps = self._film, guider.session, len(self._film.sigmas) - 1
        shots = film.storyboard.board.shots
        if not self._header or not self._project.trace_path.exists():  # there is none, or none that can be read
            self._header = {
                "project": film.project,
                "fps": film.storyboard.fps,
                "plan": film.plan.summary(),
                "prompts": [shot.prompt for shot in shots],
                "transitions": [str(transition) for transition in film.storyboard.transitions],
                "steps": steps,
                "step_groups": step_groups(steps),
                **film_facts(session),
                **film.moments,
            }
            self._trace.begin(self._header)
        first = film.plan.shots()[done.chunk.shot][0]
        begins = done.chunk.shot > 0 and done.chunk.index == first.index
        line = chunk_line(done, session, drift, len(self._film.plan.chunks))
        if begins:
            line["transition"] = str(film.storyboard.transitions[done.chunk.shot])
        if done.selections is not None:
            line["selection_bytes"] = self._project.selection_path(done.chunk.index).stat().st_size
        if done.chunk.index in self._blends:
            line["blend"] = round(self._blends[done.chunk.index], DIGITS)
        self._trace.add(line)
        return line


def _earlier_trace(path: Path) -> tuple[Mapping[str, Any], dict[int, dict[str, Any]]]:
    """Header and lines of the chunks that an earlier run finished, by chunk; nothing where they cannot be read."""
    try:
        header, events = read_trace(path)
    except TraceError:
        return {}, {}
    return header, {event["chunk"]: event for event in events}


def _size(guider: FilmGuider) -> str:
    """What the memory takes, on the card and beside it."""
    beside = f", and {guider.host_bytes / 2**20:.0f} MiB beside the card" if guider.host_bytes else ""
    return f"{guider.peak_bytes / 2**20:.0f} MiB{beside}"


def _read(done: FinishedChunk) -> str:
    """How much of the film a chunk looked back at, in an artist's words."""
    older, read = done.chunk.frames.start, len(done.read_frames)
    if done.frames_worth <= read:
        return f"{read} older frames read"
    share = done.frames_worth / older
    return (
        f"{read} older frames read, and {done.frames_worth - read:.1f} frames' worth of the others ({share:.0%} of all)"
    )
