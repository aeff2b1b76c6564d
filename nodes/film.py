"""One film from its parts: checked before anything is loaded, made chunk by chunk, kept on disk as it grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.sd
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..memory.chunks import Plan
from ..memory.picture.words import byte_size
from ..memory.project import Project
from ..memory.transitions import Blend, blends, reaches
from .film_check import check_film, check_selections
from .host.attach import attach_memory, default_memory, film_marks, memory_config, plan_moments
from .host.conditioning import blended
from .host.encoder_model import LoadedEncoder, attach_encoder
from .host.film_sampler import FilmSampler, SeededNoise
from .host.fingerprint import conditioning_fingerprint, described, model_fingerprint, tensor_fingerprint
from .host.guider import FilmGuider
from .planned_storyboard import PlannedStoryboard
from .recorder import Recorder, Show

FILM_VERSION = 1  # to be raised when the same settings give other bits


@dataclass(frozen=True, slots=True)
class FilmResult:
    """Where a finished film is: `latents` `[1, C, T, H, W]` for the LATENT socket, the joined video, trace and folder."""

    latents: Tensor
    video: Path | None
    trace: Path
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Film:
    """All that makes a film. `start` is a LATENT tensor `[1, C, 1, H, W]` or None; without a VAE nothing is decoded.

    `keep_selections` keeps all lists of pages that the film reads, which changes no bit of it.
    """

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
    encoder: LoadedEncoder | None = None
    keep_selections: bool = False

    @cached_property
    def remembering(self) -> ModelPatcher:
        """The model with its memory: an encoder's, or else with the default one when no Sparse KV Memory is before it."""
        if self.encoder is not None:
            return attach_encoder(self.model, self.encoder, self.vae)
        return attach_memory(self.model, memory_config(self.model) or default_memory(self.model))

    @cached_property
    def plan(self) -> Plan:
        """Chunks of the film, behind the start image if there is one."""
        return self.storyboard.plan(0 if self.start is None else 1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        scale = self.pixels_per_latent
        return self.height // scale, self.width // scale

    @property
    def pixels_per_latent(self) -> int:
        """Pixels of the picture for one of the latents, each way."""
        return int(self.model.model.latent_format.spacial_downscale_ratio)

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.model.model.latent_format.latent_channels)

    def check(self) -> None:
        """Raises ValueError for anything that would fail later, before a model is loaded or a file is written."""
        check_film(self)

    def make(
        self,
        root: Path,
        tell: Callable[[str], None] = lambda text: None,
        show: Show = lambda folder, header, line: None,
    ) -> FilmResult:
        """Make the film in `root/project`, going on where an equal film stopped.

        `tell` gets its state in words, `show` each finished chunk as the trace tells it.
        Raises ValueError for bad input, ProjectError where the folder cannot be used. When it is cancelled or fails,
        finished chunks stay.
        """
        self.check()
        settings = self._settings()
        kept = check_selections(self, root / self.project, settings)
        pictures_of = None if self.vae is None else model_fingerprint(self.vae.patcher)
        with Project.open(root, self.project, settings, pictures_of) as project:
            project.save_storyboard(self.storyboard.to_json(self.plan))
            recorder = Recorder(self, project, tell, show)
            bill = f"Its selections take up to {byte_size(kept)} on disk." if kept else ""
            tell(" ".join(part for part in (project.report, bill) if part))
            try:
                if project.finished < len(self.plan.chunks):
                    self._run(project, recorder)
                elif self.vae is not None:
                    recorder.decode_rest()
            finally:
                video = recorder.join()
            latents = self.latents(project, range(self.plan.total_frames))
            return FilmResult(latents, video, project.trace_path, project.folder)

    def _run(self, project: Project, recorder: Recorder) -> None:
        guider = self.guider()
        sampler = self.film_sampler(project, recorder)
        template = torch.zeros(1, self.channels, self.plan.longest_chunk, *self.latent_size)
        steps = len(self.plan.chunks) * (len(self.sigmas) - 1)
        progress = latent_preview.prepare_callback(self.remembering, steps)
        guider.sample(template, template, sampler, self.sigmas, callback=progress, disable_pbar=True, seed=self.seed)

    def guider(self) -> FilmGuider:
        """The guider of this film: a prompt for each shot, and behind them one for each chunk that blends two."""
        prompts = self.storyboard.conditionings
        mixed = [blended(prompts[blend.shot - 1], prompts[blend.shot], blend.weight) for blend in self.blends]
        return FilmGuider(self.remembering, (*prompts, *mixed), self.storyboard.negative, self.cfg)

    @property
    def blends(self) -> tuple[Blend, ...]:
        """Chunks that are made under two prompts."""
        return blends(self.plan, self.storyboard.transitions, self.storyboard.fps)

    def film_sampler(self, project: Project | None, recorder: Recorder | None) -> FilmSampler:
        """The sampler that makes this film; without a project and recorder nothing is kept."""
        return FilmSampler(
            plan=self.plan,
            noise=SeededNoise(self.storyboard.seeds(self.seed)),
            recache_shots=self.storyboard.recache_shots,
            latent_size=self.latent_size,
            inner=self.sampler,
            start=self.start,
            load=(lambda index: None) if project is None else project.load_chunk,
            finished=(lambda chunk, guider: None) if recorder is None else recorder.finished,
            cast=tuple(frozenset(shot.characters) for shot in self.storyboard.board.shots),
            fps=self.storyboard.fps,
            marks=self.storyboard.marks,
            reaches=reaches(self.plan, self.storyboard.transitions),
            prompts={
                (self.plan.chunks[blend.chunk].frames.start, blend.shot): len(self.storyboard.conditionings) + at
                for at, blend in enumerate(self.blends)
            },
            tallied=True,
            keep_selections=self.keep_selections,
        )

    @property
    def moments(self) -> dict[str, str]:
        """Pins and vetoes of the film, the storyboard's and the prompt bank's, as they were written."""
        marks = film_marks(self.remembering, self.film_sampler(None, None))
        return {
            "pins": ", ".join(mark.pins for mark in marks if mark.pins),
            "vetoes": ", ".join(mark.vetoes for mark in marks if mark.vetoes),
        }

    def _settings(self) -> dict[str, Any]:
        """Whatever changes the film, as JSON: equal settings may go on with each other's chunks."""
        shots = [conditioning_fingerprint(shot) for shot in self.storyboard.conditionings]
        sampler = self.sampler
        return {
            "version": FILM_VERSION,
            "model": model_fingerprint(self.remembering),
            "prompts": shots,
            "negative": conditioning_fingerprint(self.storyboard.negative),
            "plan": self.plan.summary(),
            "fps": self.storyboard.fps,
            "seeds": list(self.storyboard.seeds(self.seed)),
            "cast": [sorted(shot.characters) for shot in self.storyboard.board.shots],
            "transitions": [str(shot.transition) for shot in self.storyboard.board.shots],
            "cfg": self.cfg,
            "sigmas": self.sigmas.tolist(),
            "sampler": None if sampler is None else _sampler_name(sampler),
            "size": [self.width, self.height],
            "start": None if self.start is None else tensor_fingerprint(self.start),
            "memory": self._memory_settings(),
            **plan_moments(self.remembering, self.film_sampler(None, None)).described(self.plan),
        }

    def _memory_settings(self) -> dict[str, Any]:
        if self.encoder is not None:
            first, *beside = self.encoder.all
            told = {**self._encoder_settings(first), "history": described(first.config)}
            others = [{**self._encoder_settings(each), "longest_frames": each.config.longest_frames} for each in beside]
            told |= {"beside": others} if others else {}
            return {**told, **self.encoder.reading.described}
        config = memory_config(self.remembering)
        assert config is not None
        return config.described()

    def _encoder_settings(self, encoder: LoadedEncoder) -> dict[str, Any]:
        small = self.vae if encoder.spec.looks_at_pictures else None
        return {
            "encoder": model_fingerprint(encoder.patcher),
            "spec": encoder.spec.to_json(),
            "pictures": None if small is None else model_fingerprint(small.patcher),
        }

    def latents(self, project: Project, frames: range) -> Tensor:
        """Finished frames of the film `[1, C, T, H, W]` for the LATENT socket, the start image included."""
        chunks = [chunk for chunk in self.plan.chunks if chunk.frames.stop > frames.start]
        chunks = [chunk for chunk in chunks if chunk.frames.start < frames.stop]
        made = torch.cat([project.require_chunk(chunk.index) for chunk in chunks], dim=2)
        out: Tensor = self.model.model.process_latent_out(made)
        first = chunks[0].frames.start
        if self.start is not None and first == self.plan.seeded_frames:
            out, first = torch.cat([self.start.to(out), out], dim=2), 0
        return out[:, :, max(0, frames.start - first) : frames.stop - first]


def _sampler_name(sampler: comfy.samplers.Sampler) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    options = getattr(sampler, "extra_options", {})
    return described([function, options])
