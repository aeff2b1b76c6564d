"""Trains the tiny causal Wan, or HunyuanVideo: flow matching on noisy chunks that read clean ones, more characters as it goes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .causal import Predict, ReadingLesson, predict_flow
from .clips import ClipBatch, TileCodec, clip_batch
from .muon import Muon
from .run_folder import RunFolder, generator_for
from .storyworld import Film, FilmSettings, random_film
from .tiny_vae import FIRST_TEST_SEED

FLOW_SHIFT = 5.0
MATRICES = ("blocks.", "text_embedding.", "double_blocks.", "single_blocks.", "txt_in.", "vector_in.")
"""Names of what Muon trains, in Wan and in HunyuanVideo."""


class Stage(NamedTuple):
    """What clips are like from step `first` on.

    A step takes its frames a chunk at random from `chunk_frames` and has `clips` clips, or fewer where chunks are longer,
    of `chunks` chunks, with shots of up to `longest_shot` chunks and `fewest` to `most` characters. Few characters at
    first, so that reading history pays at once; more later, so that averaging everybody's look does not. `names` is how
    many names there are, `familiar` the share of characters who look the same in every film (or else a name is noise at
    first, and the text attention learns to look away from it for good), `plain` the share of one-coloured ones: whom to
    read is learned before which part of them. `shift` spreads the noise levels as Wan's flow shift does; only the high ones need history. `lesson` is the
    weight of the reading lesson; the last stages go without.
    """

    first: int
    clips: int
    chunks: int
    chunk_frames: tuple[int, ...]
    longest_shot: int
    fewest: int
    most: int
    names: int
    familiar: float
    plain: float
    shift: float
    lesson: float


STAGES = (
    Stage(0, 8, 5, (1,), 1, 1, 3, 12, 0.7, 1.0, 8.0, 0.1),
    Stage(300, 8, 6, (1,), 1, 3, 4, 12, 0.1, 1.0, 8.0, 0.1),
    Stage(450, 4, 12, (1,), 1, 4, 6, 24, 0.0, 1.0, 8.0, 0.1),
    Stage(650, 4, 12, (1,), 1, 4, 6, 24, 0.0, 0.3, 8.0, 0.05),
    Stage(1000, 4, 12, (1, 2, 3), 3, 4, 6, 24, 0.0, 0.1, 5.0, 0.0),
)

HUNYUAN_STAGES = (
    Stage(0, 8, 5, (1,), 1, 1, 3, 12, 0.7, 1.0, 8.0, 0.1),
    Stage(200, 8, 6, (1,), 1, 3, 4, 12, 0.1, 1.0, 8.0, 0.1),
    Stage(300, 4, 8, (1,), 1, 4, 6, 24, 0.0, 1.0, 8.0, 0.1),
    Stage(400, 4, 8, (1,), 1, 4, 6, 24, 0.0, 0.3, 8.0, 0.05),
    Stage(520, 4, 12, (1, 2, 3), 3, 4, 6, 24, 0.0, 0.1, 5.0, 0.0),
    Stage(700, 4, 8, (1,), 1, 4, 6, 24, 0.0, 0.1, 8.0, 0.05),
)
"""The same way in fewer steps and shorter clips: a step of HunyuanVideo costs twice as much, and clips of 12 chunks twice of that."""


@dataclass(frozen=True, slots=True)
class TinyTraining:
    """How the tiny Wan is trained: `steps` through `stages`, the rates rising over `warm_up`, falling over `cool_down`.

    `matrix_rate` is Muon's, for the matrices of the layers and of the text, `rate` AdamW's for the rest. Every clip goes in once clean
    and `noisy_copies` times with noise on every chunk; tiles with a character count `character_weight` times. `start`
    names the weights that training starts from.
    """

    steps: int = 1500
    stages: tuple[Stage, ...] = STAGES
    matrix_rate: float = 2e-3
    rate: float = 2e-3
    warm_up: int = 100
    cool_down: int = 200
    noisy_copies: int = 2
    character_weight: float = 4.0
    average_decay: float = 0.99
    seed: int = 0
    save_every: int = 25
    start: str = "seeded"

    def __post_init__(self) -> None:
        if min(self.steps, self.save_every, self.warm_up, self.noisy_copies) < 1:
            raise ValueError(
                f"Training needs steps, save_every, warm_up and noisy_copies of at least 1, got {self.steps}, "
                f"{self.save_every}, {self.warm_up} and {self.noisy_copies}. Raise the one that is too small."
            )
        if not self.stages or self.stages[0].first != 0:
            raise ValueError(f"Training needs a stage that begins at step 0, got {self.stages}. Add one.")


def stage_at(config: TinyTraining, step: int) -> Stage:
    """The stage that this step belongs to."""
    return next(stage for stage in reversed(config.stages) if step >= stage.first)


def training_films(config: TinyTraining, step: int) -> tuple[list[Film], int]:
    """The films of a step and the frames of their chunks."""
    rng = random.Random(f"{config.seed} films {step}")
    stage = stage_at(config, step)
    chunk_frames = rng.choice(stage.chunk_frames)
    settings = FilmSettings(
        chunks=stage.chunks,
        chunk_frames=chunk_frames,
        longest_shot=stage.longest_shot,
        fewest_characters=stage.fewest,
        most_characters=stage.most,
        names=stage.names,
        familiar=stage.familiar,
        plain=stage.plain,
    )
    clips = max(1, stage.clips // chunk_frames)
    return [random_film(rng.randrange(FIRST_TEST_SEED), settings) for _ in range(clips)], chunk_frames


def draw_sigmas(shape: tuple[int, int, int], shift: float, generator: torch.Generator) -> Tensor:
    """A noise level for every chunk, `[B, copies, C]`: none in the first copy, else as this flow shift spreads them."""
    u = torch.rand(shape, generator=generator)
    sigmas = shift * u / (1 + (shift - 1) * u)
    sigmas[:, 0] = 0.0
    return sigmas


class FlowLoss(NamedTuple):
    """What training lowers (`total`), the error of tiles with a character alone, and the loss of the reading lesson."""

    total: Tensor
    character: Tensor
    reading: Tensor


def flow_loss(
    model: nn.Module,
    batch: ClipBatch,
    config: TinyTraining,
    step: int,
    device: str,
    predict: Predict = predict_flow,
) -> FlowLoss:
    """Mean squared error of the flow on the noisy copies; tiles with a character count `character_weight` times."""
    generator = generator_for(config.seed, "noise", step)
    clips, chunks = batch.text_mask.shape[:2]
    copies = 1 + config.noisy_copies
    sigmas = draw_sigmas((clips, copies, chunks), stage_at(config, step).shift, generator)
    frames = sigmas.repeat_interleave(batch.chunk_frames, dim=2).flatten(0, 1).to(device)  # [B * copies, T]
    latents = batch.latents.repeat_interleave(copies, dim=0)  # [B * copies, 16, T, h, w]
    noise = torch.randn(latents.shape, generator=generator).to(device)
    latents = latents.to(device)
    level = frames[:, None, :, None, None]
    lesson = ReadingLesson(batch)
    noised = latents * (1 - level) + noise * level
    flow = predict(model, noised, frames, batch, lesson)
    noisy = (torch.arange(len(frames), device=device) % copies > 0).float()[:, None, None, None]
    character = batch.mask.to(device).repeat_interleave(copies, dim=0) * noisy  # [B * copies, T, h, w]
    weight = noisy + (config.character_weight - 1) * character
    error = (flow - (noise - latents)).square().mean(1)
    picture = (error * weight).sum() / weight.sum()
    return FlowLoss(
        picture + stage_at(config, step).lesson * lesson.loss.to(device),
        (error * character).sum() / character.sum().clamp_min(1),
        lesson.loss,
    )


def _optimisers(model: nn.Module, config: TinyTraining) -> list[torch.optim.Optimizer]:
    # The text embedding takes 4096 numbers: a step of AdamW that suits a layer would move its output by whole units.
    matrices = [
        p
        for name, p in model.named_parameters()
        if name.startswith(MATRICES) and name.endswith("weight") and p.ndim == 2
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=config.matrix_rate),
        torch.optim.AdamW(others, lr=config.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(config: TinyTraining, step: int) -> float:
    """What the rates of a step are multiplied by: rising over the warm-up, falling over the cool-down."""
    return min(1.0, (step + 1) / config.warm_up, max(0.02, (config.steps - step) / max(1, config.cool_down)))


def train_tiny(
    config: TinyTraining,
    modules: Any,
    model: nn.Module,
    codec: TileCodec,
    out: Path,
    device: str = "cpu",
    tell: Callable[[dict[str, float]], None] = lambda row: None,
    predict: Predict = predict_flow,
) -> nn.Module:
    """Train `model` (or continue the run in `out`) and return it with averaged weights.

    `modules` and `model` come from `nodes/host/build.py::host_modules`, `predict` is the model's family's; `tell` gets every line of the log. The same
    settings give the same weights whether or not the run was interrupted. Raises ProjectError when the disk is full or
    the run in `out` has other settings; the last checkpoint stays whole.
    """
    run = RunFolder(out, config)
    model.to(device).train()
    optimisers = _optimisers(model, config)
    average = [p.detach().clone() for p in model.parameters()]
    first = 0
    state = run.load()
    if state is not None:
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        average = [tensor.to(device) for tensor in state["average"]]
        first = int(state["step"])
    clock = time.monotonic()
    with modules.training():
        for step in range(first, config.steps):
            films, chunk_frames = training_films(config, step)
            loss = flow_loss(model, clip_batch(films, codec, chunk_frames), config, step, device, predict)
            for optimiser, rate in zip(optimisers, (config.matrix_rate, config.rate), strict=True):
                optimiser.param_groups[0]["lr"] = rate * rate_factor(config, step)
                optimiser.zero_grad(set_to_none=True)
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            decay = min(config.average_decay, step / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - decay)
            row = {"step": step + 1, "loss": loss.total.item(), "character_loss": loss.character.item()}
            row |= {"reading_loss": loss.reading.item(), "norm": norm.item(), "seconds": time.monotonic() - clock}
            if not math.isfinite(row["loss"]):
                raise ValueError(f"The loss became {row['loss']} at step {step + 1}. Start anew with half the rates.")
            run.log(row)
            tell(row)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                saved = {"model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
                run.save({"step": step + 1, "average": average, **saved})
                run.draw_curve("loss")
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), average, strict=True):
            parameter.copy_(mean)
    return model
