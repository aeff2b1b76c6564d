"""Does a memory bring a character back? Films through the real chunk loop. Import it after `boot_host`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.chunks import Plan, plan_chunks
from ...memory.config import MemoryConfig
from ...memory.gates import GateForm
from ...memory.presets import GATED_PRESETS
from ...memory.rollout import FinishedChunk
from ...memory.session import RunSession
from ...memory.training.encoder_family import Family
from ...memory.training.export import weights_fingerprint
from ...memory.training.linear_codec import drop_silent_branches
from ...memory.training.recall import SAMPLING_STEPS, recall_film, sampling_levels, swapped_name
from ...memory.training.recall_flow import dynamic_degree
from ...memory.training.recall_policies import FULL, PINS, Cell, RecallBench, gated_name, recall_policies
from ...memory.training.recall_samples import Drift, Sample, Samples
from ...memory.training.recall_scores import JUDGED, last_truth, nearest, scene_of
from ...memory.training.storyworld import Film, Look, Shot, render_shot
from ...memory.training.tiny_vae import FIRST_TEST_SEED
from ..host.attach import adapter_for, attach_memory
from ..host.build import (
    build_tiny_vae,
    build_tiny_wan,
    gated_weights,
    read_shards,
    shipped_weights,
)
from ..host.build_hunyuan import build_tiny_hunyuan
from ..host.demo_text import build_demo_clip
from ..host.film_sampler import FilmSampler, Noise, SeededNoise
from ..host.gates import brought_gates, use_gates
from ..host.guider import FilmGuider
from .bench_released import watcher

if TYPE_CHECKING:
    from .bench_encoder import EncodedModel

LATENT_CHANNELS, LATENT_SIZE = 16, (12, 16)
DRIFT_POINTS = 12
"""How many chunks of a free-running film are looked at."""
SHOTS_KEPT = 128
"""Encoded shots: more than the films of a seed have together."""
SAMPLER = "euler"
FILMS_PER_SEED = 10_000


@dataclass(slots=True)
class ProbeSampler(comfy.samplers.Sampler):
    """Denoises a chunk, then again from the same noise under the prompts of other shots, on the same history.

    Only the first result goes on into the film and its memory; all of them are in `drawn`, shot by shot.
    """

    inner: comfy.samplers.Sampler
    other_shots: tuple[int, ...]
    drawn: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    ended: float = 0.0

    def sample(
        self,
        guider: FilmGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Clean latents `[1, C, T, H, W]` under the prompt of the chunk's own shot."""
        own, self.drawn = guider.shot, []
        session = guider.session
        for shot in (own, *self.other_shots):
            guider.shot = shot
            if isinstance(session, RunSession):  # what one prompt made the chunk choose is nothing to the next
                session.begin(session.frames, shot)
            started = _now()
            self.drawn.append(
                self.inner.sample(
                    guider, sigmas, dict(extra_args), callback, noise, latent_image, denoise_mask, disable_pbar
                )
            )
            if shot == own:
                self.seconds = _now() - started
        guider.shot = own
        self.ended = _now()
        return self.drawn[0]


def _now() -> float:
    """Seconds, when the device has done what it was given."""
    comfy.model_management.synchronize()
    return time.perf_counter()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A run of the chunk loop: every chunk, what the last one was under each prompt, and what it cost."""

    chunks: list[FinishedChunk]
    probes: list[Tensor]
    seconds: float
    peak_bytes: int


class GatedModel:
    """The tiny model as it was trained with gates of a form."""

    def __init__(self, form: GateForm, folder: Path | None) -> None:
        """Load what ships, or what `longreel train tiny --gates` wrote into `folder`."""
        weights = gated_weights(form, folder)
        assert weights is not None
        self.name, self.preset = gated_name(form), GATED_PRESETS[form]
        self.fingerprint = weights_fingerprint(weights)
        self._model = build_tiny_wan(causal=True, weights=weights)

    def remembering(self, config: MemoryConfig) -> ModelPatcher:
        """The model with this memory, read in gated branches."""
        model = attach_memory(self._model, config)
        use_gates(model, brought_gates(self._model))
        return model


def has_gates(form: GateForm, folder: Path | None) -> bool:
    """Whether gates of this form ship, or are in `folder`."""
    return gated_weights(form, folder) is not None


class TinyModel:
    """The tiny model, its VAE, its text encoder and its sisters with gates, in the host."""

    def __init__(self, folder: Path | None = None, family: Family | None = None) -> None:
        """Load what ships, or the model in `folder` as `longreel train tiny` writes it; ValueError without one.

        Where no `family` is named it is that of the folder, or else Wan.
        """
        family = family or family_in(folder)
        vae, network = load_weights(folder, "vae"), load_weights(folder, family)
        self.fingerprint = weights_fingerprint(network, vae)
        self.gated: tuple[GatedModel, ...] = ()
        if family == "hunyuan":
            self.model = build_tiny_hunyuan(weights=network)
        else:
            self.model = build_tiny_wan(causal=True, weights=network)
            self.gated = tuple(GatedModel(form, folder) for form in GateForm if has_gates(form, folder))
        self.positions = adapter_for(self.model).positions
        self.encoded: tuple[EncodedModel, ...] = ()
        self.vae = build_tiny_vae(weights=vae)
        drop_silent_branches(self.vae.first_stage_model)  # else films would cost more to encode than to draw
        self.clip = build_demo_clip()
        self._prompts: dict[str, Any] = {}
        self._encoded = lru_cache(maxsize=SHOTS_KEPT)(self._encode_shot)

    def prompt(self, text: str) -> Any:
        """The text as a CONDITIONING."""
        if text not in self._prompts:
            self._prompts[text] = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
        return self._prompts[text]

    def encode(self, film: Film) -> Tensor:
        """The film as the model's latents `[1, 16, T, 12, 16]`, shot by shot, each of them once."""
        shots = [shot._replace(start=min(shot.start, shot.frames)) for shot in film.shots]
        return torch.cat([self._encoded(shot, film.looks[shot.name]) for shot in shots], dim=2)

    @torch.inference_mode()
    def _encode_shot(self, shot: Shot, look: Look) -> Tensor:
        pictures = render_shot(shot, look)
        first = shot.start == 0
        # The first frame of a video is one picture to the VAE, so what is not the film's beginning stands behind one.
        latents = self.vae.encode(pictures if first else torch.cat([pictures[:1], pictures]))
        made: Tensor = self.model.model.process_latent_in(latents)
        return made if first else made[:, :, 1:]

    @torch.inference_mode()
    def last_pictures(self, films: Tensor) -> Tensor:
        """The four pictures `[B, 4, 96, 128, 3]` of the last frame of films `[B, 16, T, 12, 16]`, T > 1, by the VAE."""
        # The first frame of a video is one picture to the VAE, so one more is decoded in front.
        decoded: Tensor = self.vae.decode(self.model.model.process_latent_out(films[:, :, -2:]))
        return decoded[:, 1:].float()

    @torch.inference_mode()
    def draw(
        self,
        remembering: ModelPatcher,
        plan: Plan,
        prompts: list[str],
        history: Tensor | None,
        noise: Noise,
        other_shots: tuple[int, ...] = (),
        steps: int = SAMPLING_STEPS,
        cast: tuple[frozenset[str], ...] = (),
        watch: Callable[[FinishedChunk, RunSession], None] = lambda done, session: None,
    ) -> Drawn:
        """Run the film loop: chunks that `history` `[1, 16, T, 12, 16]` holds are remembered, the others are drawn.

        `prompts` are those of the shots, then those of `other_shots`, which only look at what the last chunk looks at, and
        `cast` who is in them. `watch` sees the session after each chunk.
        """
        chunks: list[FinishedChunk] = []
        peak_bytes, commit_seconds = 0, 0.0

        def load(index: int) -> Tensor | None:
            frames = plan.chunks[index].frames
            if history is None or frames.stop > history.shape[2]:
                return None
            return history[:, :, frames.start : frames.stop]

        def finished(chunk: FinishedChunk, guider: FilmGuider) -> None:
            nonlocal peak_bytes, commit_seconds
            peak_bytes, commit_seconds = guider.peak_bytes, _now() - probe.ended
            chunks.append(chunk)
            if isinstance(guider.session, RunSession):
                watch(chunk, guider.session)

        probe = ProbeSampler(comfy.samplers.ksampler(SAMPLER), other_shots)
        sampler = FilmSampler(
            plan=plan,
            noise=noise,
            recache_shots=frozenset(),
            latent_size=LATENT_SIZE,
            inner=probe,
            start=None,
            load=load,
            finished=finished,
            cast=cast,
        )
        conditionings = [self.prompt(prompt) for prompt in prompts]
        guider = FilmGuider(remembering, conditionings, conditionings[0], 1.0)
        template = torch.zeros(1, LATENT_CHANNELS, plan.longest_chunk, *LATENT_SIZE)
        guider.sample(template, template, sampler, torch.tensor(sampling_levels(steps)), disable_pbar=True, seed=0)
        return Drawn(chunks, probe.drawn, probe.seconds + commit_seconds, peak_bytes)


def family_in(folder: Path | None) -> Family:
    """The family of the model in a folder; Wan where there is nothing else."""
    return "hunyuan" if folder is not None and any(folder.glob("tiny_hunyuan*.safetensors")) else "wan"


def load_weights(folder: Path | None, part: Family | Literal["vae"]) -> dict[str, Tensor]:
    """The weights of a part in `folder`, or those that ship.

    A folder without a VAE goes with the one that ships, one that has gates alone with the model that ships. Raises ValueError
    where there are none.
    """
    weights = {} if folder is None else read_shards(folder, part)
    if not weights and (folder is None or part == "vae" or any(has_gates(form, folder) for form in GateForm)):
        weights = shipped_weights(part) or {}
    if not weights:
        place = "memory/weights" if folder is None else str(folder)
        raise ValueError(
            f"The recall bench needs tiny_{part}*.safetensors, got none in {place}. Give --weights a folder that "
            "`longreel train tiny --out` wrote (`--family hunyuan` for HunyuanVideo)."
        )
    return weights


class RecallRun:
    """Measures every policy on the same films and noise, film by film, and keeps what it measures in `samples`."""

    def __init__(self, bench: RecallBench, model: TinyModel, samples: Samples) -> None:
        self.bench, self.model, self.samples = bench, model, samples
        self.policies = bench.measured(model.positions)
        self.gated = {gated.name: gated for gated in gated_models(bench, model) if bench.wants(gated.name)}
        self.encoded = {row.name: row for row in model.encoded if bench.wants(row.name)}
        presets = recall_policies(bench.chunk_frames, bench.compare, model.positions)
        self.policies |= {name: presets[gated.preset] for name, gated in self.gated.items()}

    def run(self, tell: Callable[[int], None]) -> None:
        """Measure what is not there yet; `tell` gets the number of films that are done."""
        for index in range(self.bench.films):
            for cell in self.bench.cells:
                self._measure_cell(cell, index)
            if index < self.bench.drift_films:
                self._measure_drift(index)
            tell(index + 1)

    def _film(self, index: int, cell: Cell) -> Film:
        seed = FIRST_TEST_SEED + FILMS_PER_SEED * self.bench.seed + index
        return recall_film(seed, cell.chunks, self.bench.chunk_frames, self.bench.characters, cell.distance)

    def _remembering(self, name: str, cell: Cell) -> ModelPatcher:
        if name in self.encoded:
            return self.encoded[name].remembering(self.model.vae)
        config = self.policies[name]
        if name in self.gated:
            return self.gated[name].remembering(config)
        if name == PINS and config.prompt_bank is not None:
            pinned = replace(config.prompt_bank, pins=f"shot {cell.chunks - cell.distance}")
            config = replace(config, prompt_bank=pinned)
        return attach_memory(self.model.model, config)

    def _noise(self, index: int, chunks: int) -> SeededNoise:
        return SeededNoise((FILMS_PER_SEED * self.bench.seed + index,) * chunks)

    def _measure_cell(self, cell: Cell, index: int) -> None:
        names = (*self.policies, *self.encoded)
        missing = [name for name in names if (name, *cell, index) not in self.samples.samples]
        if not missing:
            return
        size = self.bench.chunk_frames
        film, foreign = self._film(index, cell), self._film(index + 1, cell)
        swapped = swapped_name(film)
        truth, foreign_truth = last_truth(film), last_truth(foreign)
        latents = self.model.encode(film)
        history = latents[:, :, :-size]
        ceiling = truth.score(self.model.last_pictures(latents)[0])
        plan = plan_chunks([1] * cell.chunks, size)
        prompts = [shot.prompt for shot in (*film.shots, swapped.shots[-1], foreign.shots[-1])]
        others = (cell.chunks, cell.chunks + 1)
        cast = tuple(frozenset({shot.name}) for shot in (*film.shots, swapped.shots[-1], foreign.shots[-1]))
        for name in missing:
            noise, watch = self._noise(index, cell.chunks), watcher(name, plan)
            drawn = self.model.draw(
                self._remembering(name, cell), plan, prompts, history, noise, others, self.bench.steps, cast, watch
            )
            ends = torch.cat([torch.cat([history[:, :, -1:].to(probe), probe], dim=2) for probe in drawn.probes])
            own, other_name, other_film = self.model.last_pictures(ends)
            self.samples.add(
                Sample(
                    name,
                    *cell,
                    index,
                    **truth.score(own)._asdict(),
                    control_cosine=foreign_truth.looks.cosines(other_film[JUDGED])[foreign_truth.name],
                    name_swap=float(nearest(truth.looks.cosines(other_name[JUDGED])) == swapped.shots[-1].name),
                    keys_read_fraction=drawn.chunks[-1].frames_worth / history.shape[2],
                    seconds_per_chunk=drawn.seconds,
                    peak_bytes=drawn.peak_bytes,
                    averaging_cosine=truth.looks.averaging(film),
                    ceiling_cosine=ceiling.identity_cosine,
                    true_dynamic_degree=ceiling.dynamic_degree,
                )
            )

    def _measure_drift(self, index: int) -> None:
        chunks = self.bench.drift_chunks
        names = (*self.policies, *self.encoded)
        missing = [name for name in names if (name, index) not in self.samples.drifts]
        cell = Cell(chunks, chunks - 1)
        film = self._film(index, cell)
        judged = tuple(range(chunks - 1, 0, -max(1, chunks // DRIFT_POINTS)))[::-1]
        shots = [film.shots[chunk] for chunk in judged]
        scenes = [scene_of(shot, film.looks[shot.name]) for shot in shots] if missing else []
        prompts = [shot.prompt for shot in film.shots]
        plan, noise = plan_chunks([1] * chunks, self.bench.chunk_frames), self._noise(index, chunks)
        for name in missing:
            cast = tuple(frozenset({shot.name}) for shot in film.shots)
            remembering, watch = self._remembering(name, cell), watcher(name, plan)
            drawn = self.model.draw(remembering, plan, prompts, None, noise, (), self.bench.steps, cast, watch)
            made = torch.cat([chunk.latents for chunk in drawn.chunks], dim=2)
            ends = torch.cat([made[:, :, stop - 2 : stop] for stop in (plan.chunks[at].frames.stop for at in judged)])
            pictures = self.model.last_pictures(ends)
            background = [scene.background(video[JUDGED]) for scene, video in zip(scenes, pictures, strict=True)]
            moves = tuple(dynamic_degree(video) for video in pictures)
            self.samples.add(Drift(name, index, judged, tuple(background), moves))


def gated_models(bench: RecallBench, model: TinyModel) -> tuple[GatedModel, ...]:
    """The models with gates whose rows stand beside those of the memories."""
    return model.gated if bench.compare == FULL.compare else ()


def bench_settings(bench: RecallBench, model: TinyModel) -> dict[str, Any]:
    """Whatever changes a measured number, as JSON; how many films, which cells and which policies of these do not."""
    presets = recall_policies(bench.chunk_frames, bench.compare, model.positions)
    policies = {name: config.described() for name, config in presets.items()}
    for gated in gated_models(bench, model):
        policies[gated.name] = {**policies[gated.preset], "gates": gated.fingerprint}
    policies |= {row.name: row.described() for row in model.encoded}
    return {
        "weights": model.fingerprint,
        "chunk_frames": bench.chunk_frames,
        "characters": bench.characters,
        "drift_chunks": bench.drift_chunks,
        "seed": bench.seed,
        "sampler": SAMPLER,
        "levels": sampling_levels(bench.steps),
        "policies": policies,
    }
