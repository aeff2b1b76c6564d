"""Keeps a film on disk while it is made: latents, trace and pictures of every finished chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..memory.chunks import Chunk
from ..memory.film import join_segments, pictures_to_uint8, write_segment
from ..memory.project import Project
from ..memory.rollout import FinishedChunk
from ..memory.trace import Trace
from .host.guider import FilmGuider
from .host.streaming_decode import StreamingDecoder

if TYPE_CHECKING:
    from .film import Film


class Recorder:
    """Keeps every finished chunk: latents, trace, and its pictures when there is a VAE."""

    def __init__(self, film: Film, project: Project, tell: Callable[[str], None]) -> None:
        self._film, self._project, self._tell = film, project, tell
        self._decoder = None if film.vae is None else StreamingDecoder(film.vae)
        self._caught_up = False
        self._trace = Trace(project.trace_path)

    def finished(self, done: FinishedChunk, guider: FilmGuider) -> None:
        """Write one chunk to disk; nothing of it is believed until all of it is there."""
        latents = done.latents.to(device="cpu", dtype=torch.float32)
        if not done.replayed:
            self._trace_chunk(done, guider)
            self._project.save_chunk(done.chunk, latents, done.denoise_seconds + done.commit_seconds)
        if self._decode(done.chunk, latents) and done.chunk is not self._film.plan.chunks[-1]:
            guider.reload()
        self._tell(self._state(done, guider))

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

    def _decode(self, chunk: Chunk, latents: Tensor) -> bool:
        """Write the pictures of a chunk; False when there is nothing to decode with or they are on disk already."""
        decoder = self._decoder
        if decoder is None or chunk.index < self._project.finished_segments:
            return False
        pieces = [] if self._caught_up else self._catch_up(decoder, chunk)
        self._caught_up = True
        pieces.append(decoder.push(self._film.model.model.process_latent_out(latents)))
        if chunk is self._film.plan.chunks[-1]:
            pieces.append(decoder.finish())
        pictures = pictures_to_uint8(torch.cat(pieces))
        if len(pictures):
            write_segment(self._project.segment_path(chunk.index), pictures, self._film.storyboard.fps)
        self._project.record_segment(chunk.index, len(pictures))
        return True

    def _catch_up(self, decoder: StreamingDecoder, chunk: Chunk) -> list[Tensor]:
        """Bring the decoder to where the chunk begins; the result are pictures that belong to the chunk."""
        if chunk.index == 0:
            return [] if self._film.start is None else [decoder.push(self._film.start)]
        first = decoder.replay_start(chunk.frames.start)
        decoder.replay(self._film.latents(self._project, range(first, chunk.frames.start)), first)
        return []

    def _state(self, done: FinishedChunk, guider: FilmGuider) -> str:
        plan = self._film.plan
        lines = [
            self._project.report,
            f"shot {done.chunk.shot + 1} of {len(plan.shots())}, chunk {done.chunk.index + 1} of {len(plan.chunks)}",
            f"{_read(done)}, {_size(guider)} of memory",
        ]
        return "\n".join(line for line in lines if line)

    def _trace_chunk(self, done: FinishedChunk, guider: FilmGuider) -> None:
        if not self._project.trace_path.exists():
            fps, plan = self._film.storyboard.fps, self._film.plan.summary()
            prompts = [shot.prompt for shot in self._film.storyboard.board.shots]
            self._trace.begin(
                {
                    "fps": fps,
                    "plan": plan,
                    "prompts": prompts,
                    "peak_kv_bytes": guider.peak_bytes,
                    "host_kv_bytes": guider.host_bytes,
                }
            )
        shot = self._film.plan.shots()[done.chunk.shot]
        transition = str(self._film.storyboard.transitions[done.chunk.shot])
        begins = {"transition": transition} if done.chunk.index == shot[0].index and done.chunk.shot > 0 else {}
        self._trace.add(
            {
                "chunk": done.chunk.index,
                "shot": done.chunk.shot,
                "frames": [done.chunk.frames.start, done.chunk.frames.stop],
                "read_frames": list(done.read_frames),
                "brought_frames": list(done.brought_frames),
                "brought": [[frame, *done.brought[frame]] for frame in done.brought_frames],
                "frames_worth": round(done.frames_worth, 3),
                **begins,
                "recached_frames": list(done.recached_frames),
                "denoise_ms": round(done.denoise_seconds * 1000, 3),
                "commit_ms": round(done.commit_seconds * 1000, 3),
                "finished": time.time(),
            }
        )


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
