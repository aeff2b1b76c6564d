"""Small films on tiny real models, for tests: everything runs in the real host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from longreel.memory.chunks import Plan, plan_frames
from longreel.memory.config import MemoryConfig
from longreel.memory.film_moments import NO_MARKS, Marks
from longreel.memory.rollout import FinishedChunk
from longreel.memory.storyboard_parser import read_storyboard
from longreel.nodes.film import Film as FilmOnDisk
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.film_sampler import FilmSampler, Noise, SeededNoise
from longreel.nodes.host.guider import FilmGuider
from longreel.nodes.host.keys import SESSION
from longreel.nodes.planned_storyboard import PlannedStoryboard, plan_storyboard

LATENT_CHANNELS = 16
TINY_SIZE = (12, 16)  # latent height and width of a 96x128 picture: 6x8 tokens a frame
FOUR_STEPS = (1.0, 0.9375, 0.8333, 0.625, 0.0)
FULL = MemoryConfig(window_frames=None, sink_frames=0)


def prompt(seed: int, words: int = 7) -> list[Any]:
    """A CONDITIONING of random text vectors."""
    vectors = torch.randn(1, words, 4096, generator=torch.Generator().manual_seed(seed))
    return [[vectors, {}]]


def planned(text: str = "[1.5s] a beach", chunk: int = 3, prompts: tuple[Any, ...] = ()) -> PlannedStoryboard:
    """A storyboard whose prompts are random text vectors."""
    board = read_storyboard(text)
    prompts = prompts or tuple(prompt(index) for index in range(len(board.shots)))
    return plan_storyboard(board, prompts, prompt(99, words=3), 16.0, chunk)


def film_on_disk(model: ModelPatcher, storyboard: PlannedStoryboard, **settings: Any) -> FilmOnDisk:
    """A film of 64x32 pixels, one step a chunk, for `make`."""
    small = {"sigmas": torch.tensor([1.0, 0.0]), "seed": 1, "width": 64, "height": 32, "cfg": 1.0, "project": "film"}
    return FilmOnDisk(model=model, storyboard=storyboard, **{**small, **settings})


@dataclass
class Film:
    """What a run gave: the model-space latents `[1, C, T, H, W]` and what each chunk read."""

    chunks: list[FinishedChunk] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def latents(self) -> Tensor:
        return torch.cat([finished.latents for finished in self.chunks], dim=2)

    @property
    def read_frames(self) -> list[tuple[int, ...]]:
        return [finished.read_frames for finished in self.chunks]


def render(
    model: ModelPatcher,
    plan: Plan | None = None,
    *,
    config: MemoryConfig = FULL,
    prompts: tuple[Any, ...] = (),
    negative: Any = None,
    cfg: float = 1.0,
    seed: int = 7,
    noise: Noise | None = None,
    sigmas: tuple[float, ...] = FOUR_STEPS,
    inner: comfy.samplers.Sampler | None = None,
    start: Tensor | None = None,
    recache_shots: frozenset[int] = frozenset(),
    load: Callable[[int], Tensor | None] = lambda index: None,
    on_chunk: Callable[[FinishedChunk], None] = lambda finished: None,
    attached: bool = False,
    size: tuple[int, int] = TINY_SIZE,
    cast: tuple[frozenset[str], ...] = (),
    tallied: bool = False,
    keep_selections: bool = False,
    marks: Marks = NO_MARKS,
) -> Film:
    """Render a plan with memory on a model, chunk by chunk, through the host's guider."""
    plan = plan or plan_frames(9, 3)
    film = Film()

    def finished(chunk: FinishedChunk, guider: FilmGuider) -> None:
        film.chunks.append(chunk)
        film.peak_bytes = guider.model_options["transformer_options"][SESSION].memory.peak_bytes
        on_chunk(chunk)

    shots = len({chunk.shot for chunk in plan.chunks})
    prompts = prompts or tuple(prompt(index) for index in range(shots))
    remembering = model if attached else attach_memory(model, config)
    guider = FilmGuider(remembering, prompts, negative or prompt(99, words=3), cfg)
    sampler = FilmSampler(
        plan=plan,
        noise=noise or SeededNoise((seed,) * shots),
        recache_shots=recache_shots,
        latent_size=size,
        inner=inner,
        start=start,
        load=load,
        finished=finished,
        cast=cast,
        tallied=tallied,
        keep_selections=keep_selections,
        marks=marks,
    )
    template = torch.zeros(1, LATENT_CHANNELS, plan.longest_chunk, *size)
    guider.sample(template, template, sampler, torch.tensor(sigmas), disable_pbar=True, seed=seed)
    return film
