"""A SAMPLER whose run is a film: the guider hands it chunk-shaped noise, it makes the chunks one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...memory.chunks import Chunk, Plan, chunk_seed
from ...memory.encoded_rollout import encoded_rollout
from ...memory.film_moments import NO_MARKS, Marks
from ...memory.history_session import HistorySession
from ...memory.rollout import FinishedChunk, Rollout
from ...memory.session import RunSession
from ...memory.transitions import Reach
from .guider import FilmGuider
from .keys import HISTORY, SESSION

Progress = Callable[[int, Tensor, Tensor, int], None]


class Noise(Protocol):
    """Where the randomness of a film comes from."""

    def __call__(self, chunk: Chunk, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of this shape for a step of a chunk."""
        ...

    def seed(self, chunk: Chunk, label: str) -> int:
        """Seed for what else is drawn for a chunk, such as by a SAMPLER."""
        ...


@dataclass(frozen=True, slots=True)
class SeededNoise:
    """Noise that depends on (seed, chunk, step) alone, so that a longer film starts with the shorter one's chunks."""

    seeds: tuple[int, ...]

    def __call__(self, chunk: Chunk, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of this shape, float32 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed(chunk, f"step {step}"))
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)

    def seed(self, chunk: Chunk, label: str) -> int:
        """Seed of one draw; `seeds` are the shots' own."""
        return chunk_seed(self.seeds[chunk.shot], chunk.index, label)


@dataclass(slots=True)
class FilmSampler(comfy.samplers.Sampler):
    """Makes the chunks of `plan` and hands each to `finished`; latents are the model's, not the LATENT socket's.

    `inner` is a SAMPLER that denoises a chunk, or None for the few-step form of causal checkpoints: predict clean frames,
    add fresh noise at the next level. `load` gives the latents of a chunk that an earlier run made, or None. `start` is a
    LATENT tensor `[1, C, 1, H, W]` that the film starts from, or None. `cast` are the characters of each shot,
    `marks` the storyboard's pins and vetoes, `reaches` how far back it may look. `prompts` names another prompt of the
    guider than the shot's own, by the first frame of a chunk and its shot. `tallied` counts what is read of the bank, for a
    trace; `keep_selections` hands on all lists, for a replay.
    """

    plan: Plan
    noise: Noise
    recache_shots: frozenset[int]
    latent_size: tuple[int, int]
    inner: comfy.samplers.Sampler | None
    start: Tensor | None
    load: Callable[[int], Tensor | None]
    finished: Callable[[FinishedChunk, FilmGuider], None]
    cast: tuple[frozenset[str], ...] = ()
    fps: float = 16.0
    marks: Marks = NO_MARKS
    reaches: tuple[Reach, ...] = ()
    prompts: Mapping[tuple[int, int], int] = field(default_factory=dict)
    tallied: bool = False
    keep_selections: bool = False

    def model_calls(self, steps: int) -> int:
        """How often the model is called for a chunk of so many steps, the commit included: a SAMPLER may do it three times a step.

        So do the host's slowest samplers of fixed steps (heunpp2, seeds_3); its adaptive ones may do it more often.
        """
        return steps * (1 if self.inner is None else 3) + 1

    def sample(
        self,
        guider: FilmGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Progress | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Run the film; the result `[1, C, T, H, W]` is its last chunk, each chunk went through `finished`."""
        guider.chunk_shape = tuple(noise.shape)
        steps = ChunkSteps(self, guider, sigmas, extra_args, callback, noise)
        result = noise
        for chunk in self._chunks(steps, guider, extra_args["model_options"]["transformer_options"]):
            if chunk.replayed:
                steps.report_replayed(chunk)
            self.finished(chunk, guider)
            result = chunk.latents
            comfy.model_management.throw_exception_if_processing_interrupted()
        return result

    def prompt_of(self, first_frame: int, shot: int) -> int:
        """The guider's prompt for a chunk that begins with this frame."""
        return self.prompts.get((first_frame, shot), shot)

    def _chunks(self, steps: ChunkSteps, guider: FilmGuider, options: dict[str, Any]) -> Iterator[FinishedChunk]:
        """The film's chunks, remembered as the run's session says: through an encoder, or as keys and values."""
        start = None
        if self.start is not None:
            start = steps.to_device(guider.inner_model.process_latent_in(self.start))

        def load(index: int) -> Tensor | None:
            return steps.to_device(self.load(index))

        if HISTORY in options:
            session: HistorySession = options[HISTORY]
            words = [steps.to_device(prompt) for prompt in guider.prompts]
            prompts = list(zip(words, [steps.to_device(pooled) for pooled in guider.pooled_prompts], strict=True))

            def denoise(chunk: Chunk) -> Tensor:
                try:
                    return steps.denoise(chunk)
                finally:
                    session.forget()  # the next chunk reads another history, and a VAE may need the room before

            return encoded_rollout(
                session.history,
                self.plan,
                denoise,
                load,
                self.reaches,
                start,
                lambda chunk: prompts[self.prompt_of(chunk.frames.start, chunk.shot)],
            )
        rollout = Rollout(options[SESSION], steps.denoise, steps.commit, load)
        return rollout.run(self.plan, self.recache_shots, start)


class ChunkSteps:
    """Denoise and commit one chunk on the host's guider."""

    def __init__(
        self,
        film: FilmSampler,
        guider: FilmGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Progress | None,
        template: Tensor,
    ) -> None:
        self._film, self._guider, self._sigmas, self._extra_args = film, guider, sigmas, extra_args
        self._callback, self._template = callback, template
        self._levels: list[float] = sigmas.tolist()
        self._sampling = guider.inner_model.model_sampling
        self._session: RunSession | None = extra_args["model_options"]["transformer_options"].get(SESSION)

    def to_device(self, latents: Tensor | None) -> Tensor | None:
        """The latents where and as the sampler works on them."""
        return None if latents is None else latents.to(device=self._template.device, dtype=self._template.dtype)

    def denoise(self, chunk: Chunk) -> Tensor:
        """Clean latents `[1, C, T, H, W]` of the chunk."""
        self._enter(self._film.prompt_of(chunk.frames.start, chunk.shot))
        self._enter_step(0)
        denoise = self._few_steps if self._film.inner is None else self._many_steps
        return denoise(chunk)

    def commit(self, latents: Tensor, shot: int) -> None:
        """Run clean latents at t = 0 under the prompt of this shot, or the one that their chunk was made under."""
        assert self._session is not None
        self._enter(self._film.prompt_of(self._session.frames.start, shot))
        self._guider.commit(latents, self._extra_args["model_options"])

    def _enter(self, shot: int) -> None:
        if self._session is not None:
            if shot != self._guider.shot:
                self._session.forget_text()
            self._session.prompt = shot
        self._guider.shot = shot

    def _enter_step(self, step: int) -> None:
        if self._session is not None:
            self._session.enter_step(step, len(self._levels) - 1)

    def _draw(self, chunk: Chunk, step: int) -> Tensor:
        shape = (*self._template.shape[:2], len(chunk.frames), *self._template.shape[3:])
        drawn = self.to_device(self._film.noise(chunk, step, shape))
        assert drawn is not None
        return drawn

    def _few_steps(self, chunk: Chunk) -> Tensor:
        noise = self._draw(chunk, 0)
        x: Tensor = self._sampling.noise_scaling(
            self._sigmas[0], noise, torch.zeros_like(noise), self._film.max_denoise(self._guider, self._sigmas)
        )
        for step, level in enumerate(self._levels[1:]):
            sigma = self._sigmas[step] * x.new_ones(x.shape[0])
            options, seed = self._extra_args["model_options"], self._extra_args["seed"]
            clean: Tensor = self._guider(x, sigma, model_options=options, seed=seed)
            self._report(chunk, step, clean, x)
            x = clean
            if level > 0:
                x = self._sampling.noise_scaling(self._sigmas[step + 1], self._draw(chunk, step + 1), clean)
        return x

    def _many_steps(self, chunk: Chunk) -> Tensor:
        noise = self._draw(chunk, 0)
        assert self._film.inner is not None
        clean: Tensor = self._film.inner.sample(
            self._guider,
            self._sigmas,
            {**self._extra_args, "seed": self._film.noise.seed(chunk, "sampler")},
            lambda step, clean, x, _: self._report(chunk, step, clean, x),
            noise,
            torch.zeros_like(noise),
            None,
            True,
        )
        return clean

    def report_replayed(self, done: FinishedChunk) -> None:
        """Tell the progress that all steps of a chunk were made by an earlier run."""
        self._report(done.chunk, len(self._levels) - 2, done.latents, done.latents)

    def _report(self, chunk: Chunk, step: int, clean: Tensor, x: Tensor) -> None:
        self._enter_step(step + 1)
        if self._callback is None:
            return
        steps = len(self._levels) - 1
        step = min(step, steps - 1)
        # ComfyUI's preview is the first frame of what it is given: step by step it walks through the chunk. Packs that
        # play all frames get all of them.
        shown = clean.roll(-(step * clean.shape[2] // steps), dims=2)
        self._callback(chunk.index * steps + step, shown, x, len(self._film.plan.chunks) * steps)
