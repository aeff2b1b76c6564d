"""One film from its parts: checked before anything is loaded, made chunk by chunk, kept on disk as it grows."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.samplers
import comfy.sd
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..memory.chunks import Chunk, Plan
from ..memory.config import MemoryConfig
from ..memory.film import join_segments, pictures_to_uint8, write_segment
from ..memory.positions import assign_times
from ..memory.project import Project, check_project_name
from ..memory.rollout import FinishedChunk
from ..memory.trace import Trace
from .host.attach import attach_memory, memory_config, plan_memory
from .host.conditioning import check_conditioning
from .host.film_sampler import FilmSampler, SeededNoise
from .host.fingerprint import conditioning_fingerprint, model_fingerprint, tensor_fingerprint
from .host.guider import FilmGuider
from .host.streaming_decode import StreamingDecoder
from .planned_storyboard import PlannedStoryboard

SIGMA_ROUNDING = 1e-4
PATCH_PIXELS = 2  # latent rows and columns that Wan joins into a token


@dataclass(frozen=True, slots=True)
class FilmResult:
    """Where a finished film is: `latents` `[1, C, T, H, W]` for the LATENT socket, the joined video, trace and folder."""

    latents: Tensor
    video: Path | None
    trace: Path
    folder: Path


@dataclass(frozen=True)
class Film:
    """All that makes a film. `start` is a LATENT tensor `[1, C, 1, H, W]` or None; without a VAE nothing is decoded."""

    model: ModelPatcher
    storyboard: PlannedStoryboard
    sigmas: Tensor
    seed: int
    width: int
    height: int
    cfg: float
    project: str
    sampler: comfy.samplers.Sampler | None = None
    start: Tensor | None = None
    vae: comfy.sd.VAE | None = None

    @cached_property
    def remembering(self) -> ModelPatcher:
        """The model with its memory; with the default memory when no Sparse KV Memory is before it."""
        return attach_memory(self.model, memory_config(self.model) or MemoryConfig())

    @cached_property
    def plan(self) -> Plan:
        """Chunks of the film, behind the start image if there is one."""
        return self.storyboard.plan(0 if self.start is None else 1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        scale = self._pixels_per_latent
        return self.height // scale, self.width // scale

    @property
    def _pixels_per_latent(self) -> int:
        return int(self.model.model.latent_format.spacial_downscale_ratio)

    def check(self) -> None:
        """Raises ValueError for anything that would fail later, before a model is loaded or a file is written."""
        check_project_name(self.project)
        plan_memory(self.remembering, self._sampler(None, None), streams=1)
        self._check_options()
        self._check_positions()
        step = self._pixels_per_latent * PATCH_PIXELS
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels % step or pixels < step:
                nearest = max(step, round(pixels / step) * step)
                raise ValueError(f"The {name} needs to be a multiple of {step}, got {pixels}. Use {nearest}.")
        self._check_sigmas()
        if self.start is not None:
            channels = int(self.model.model.latent_format.latent_channels)
            needed = (1, channels, 1, *self.latent_size)
            if tuple(self.start.shape) != needed:
                raise ValueError(
                    f"The start image needs a video latent of one frame {list(needed)}, got {list(self.start.shape)}. "
                    f"Scale one image to {self.width}x{self.height} and encode it with the VAE of this Wan model."
                )
        if self.vae is not None:
            StreamingDecoder(self.vae)

    def _check_options(self) -> None:
        options = self.model.model_options
        if options.get("context_handler") is not None:
            raise ValueError(
                "Context windows and memory cannot be combined: memory already bounds what is read. Remove the Context "
                "Windows node from the model's wire."
            )
        if self.model.get_additional_models_with_key("multigpu"):
            raise ValueError(
                "Memory lives on one GPU, but this model is spread over several. Remove the MultiGPU node."
            )
        if getattr(self.sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_ar_video:
            raise ValueError(
                "The sampler input needs one that makes a single chunk, got Sampler AR Video, which makes whole films "
                "itself. Leave the input empty: the Chunked AR Sampler does the same, with memory."
            )
        for number, conditioning in enumerate(self.storyboard.conditionings, start=1):
            check_conditioning(f"Shot {number}", conditioning)
        check_conditioning("The negative prompt", self.storyboard.negative)

    def _check_positions(self) -> None:
        config = memory_config(self.remembering) or MemoryConfig()
        first = range(self.plan.longest_chunk)
        assign_times(config.positions, (), first, config.trained_frames)

    def _check_sigmas(self) -> None:
        levels = self.sigmas.tolist()
        falling = all(high > low for high, low in pairwise(levels))
        noisiest = float(self.model.get_model_object("model_sampling").sigma_max)
        if len(levels) < 2 or levels[-1] != 0 or not falling or levels[0] > noisiest + SIGMA_ROUNDING:
            raise ValueError(
                f"Sigmas need to fall from at most {noisiest:g} to 0, got {[round(level, 4) for level in levels]}. "
                "Connect Basic Scheduler ('simple', 4 steps, denoise 1) with this model to the sigmas input."
            )

    def make(self, root: Path, tell: Callable[[str], None] = lambda text: None) -> FilmResult:
        """Make the film in `root/project`, going on where an equal film stopped; `tell` gets its state in words.

        Raises ValueError for bad input, ProjectError where the folder cannot be used. When it is cancelled or fails,
        finished chunks stay.
        """
        self.check()
        with Project.open(root, self.project, self._settings()) as project:
            recorder = Recorder(self, project, tell)
            tell(project.report)
            try:
                if project.finished < len(self.plan.chunks):
                    self._run(project, recorder)
                elif self.vae is not None:
                    recorder.decode_rest()
            finally:
                recorder.join()
            latents = self.latents(project, range(self.plan.total_frames))
            return FilmResult(latents, recorder.video, project.trace_path, project.folder)

    def _run(self, project: Project, recorder: Recorder) -> None:
        guider = FilmGuider(self.remembering, self.storyboard.conditionings, self.storyboard.negative, self.cfg)
        sampler = self._sampler(project, recorder)
        channels = int(self.model.model.latent_format.latent_channels)
        template = torch.zeros(1, channels, self.plan.longest_chunk, *self.latent_size)
        steps = len(self.plan.chunks) * (len(self.sigmas) - 1)
        progress = latent_preview.prepare_callback(self.remembering, steps)
        guider.sample(template, template, sampler, self.sigmas, callback=progress, disable_pbar=True, seed=self.seed)

    def _sampler(self, project: Project | None, recorder: Recorder | None) -> FilmSampler:
        return FilmSampler(
            plan=self.plan,
            noise=SeededNoise(self.storyboard.seeds(self.seed)),
            recache_shots=self.storyboard.recache_shots,
            latent_size=self.latent_size,
            inner=self.sampler,
            start=self.start,
            load=(lambda index: None) if project is None else project.load_chunk,
            finished=(lambda chunk, guider: None) if recorder is None else recorder.finished,
        )

    def _settings(self) -> dict[str, Any]:
        """Whatever changes the film, as JSON: equal settings may go on with each other's chunks."""
        config = memory_config(self.remembering)
        assert config is not None
        shots = [conditioning_fingerprint(shot) for shot in self.storyboard.conditionings]
        sampler = self.sampler
        return {
            "model": model_fingerprint(self.remembering),
            "vae": None if self.vae is None else model_fingerprint(self.vae.patcher),
            "prompts": shots,
            "negative": conditioning_fingerprint(self.storyboard.negative),
            "plan": self.plan.summary(),
            "fps": self.storyboard.fps,
            "seeds": list(self.storyboard.seeds(self.seed)),
            "transitions": [str(shot.transition) for shot in self.storyboard.board.shots],
            "cfg": self.cfg,
            "sigmas": self.sigmas.tolist(),
            "sampler": None if sampler is None else _sampler_name(sampler),
            "size": [self.width, self.height],
            "start": None if self.start is None else tensor_fingerprint(self.start),
            "memory": {**dataclasses.asdict(config), "positions": config.positions.value},
        }

    def latents(self, project: Project, frames: range) -> Tensor:
        """Finished frames of the film `[1, C, T, H, W]` for the LATENT socket, the start image included."""
        chunks = [chunk for chunk in self.plan.chunks if chunk.frames.stop > frames.start]
        chunks = [chunk for chunk in chunks if chunk.frames.start < frames.stop]
        made = [project.load_chunk(chunk.index) for chunk in chunks]
        out: Tensor = self.model.model.process_latent_out(
            torch.cat([piece for piece in made if piece is not None], dim=2)
        )
        first = chunks[0].frames.start
        if self.start is not None and first == self.plan.seeded_frames:
            out, first = torch.cat([self.start.to(out), out], dim=2), 0
        return out[:, :, max(0, frames.start - first) : frames.stop - first]


class Recorder:
    """Keeps every finished chunk: latents, trace, and its pictures when there is a VAE."""

    def __init__(self, film: Film, project: Project, tell: Callable[[str], None]) -> None:
        self._film, self._project, self._tell = film, project, tell
        self._decoder = None if film.vae is None else StreamingDecoder(film.vae)
        self._caught_up = False
        self._trace = Trace(project.trace_path)
        self.video: Path | None = None

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

    def join(self) -> None:
        """Join the segments that are there into the film."""
        paths: Sequence[Path] = self._project.segment_paths
        if paths:
            join_segments(paths, self._project.film_path)
            self.video = self._project.film_path

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
            f"{len(done.read_frames)} frames remembered, {guider.peak_bytes / 2**20:.0f} MiB",
        ]
        return "\n".join(line for line in lines if line)

    def _trace_chunk(self, done: FinishedChunk, guider: FilmGuider) -> None:
        if not self._project.trace_path.exists():
            fps, plan = self._film.storyboard.fps, self._film.plan.summary()
            prompts = [shot.prompt for shot in self._film.storyboard.board.shots]
            self._trace.begin({"fps": fps, "plan": plan, "prompts": prompts, "peak_kv_bytes": guider.peak_bytes})
        self._trace.add(
            {
                "chunk": done.chunk.index,
                "shot": done.chunk.shot,
                "frames": [done.chunk.frames.start, done.chunk.frames.stop],
                "read_frames": list(done.read_frames),
                "recached_frames": list(done.recached_frames),
                "denoise_ms": round(done.denoise_seconds * 1000, 3),
                "commit_ms": round(done.commit_seconds * 1000, 3),
                "finished": time.time(),
            }
        )


def _sampler_name(sampler: comfy.samplers.Sampler) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    options = getattr(sampler, "extra_options", {})
    return f"{getattr(function, '__name__', type(function).__name__)} {sorted(options.items())!r}"
