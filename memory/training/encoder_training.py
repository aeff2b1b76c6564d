"""Trains a memory encoder in the two stages of TinyHistory (arXiv 2512.23851), beside a model whose weights stay.

Stage I, *pretrain*: a random set of frames of a film stays clean, the others are noised before they are encoded, and the
model, with a LoRA, denoises that set at its own times. So no frame may be given up. Stage II, *finetune*: the clean film is
encoded, a new LoRA and the encoder learn to go on with it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..encoded_history import History, stretches, token_counts
from ..encoder import MemoryEncoder, token_positions
from ..encoder_spec import PATCH, EncoderSpec, LowBranch, Modulation, Rate
from .causal import TRAIN_TIMESTEPS
from .clips import FilmClips, TileCodec, film_clips
from .lora import add_lora, load_lora_state, lora_state
from .recall import sampling_levels
from .run_folder import RunFolder, generator_for
from .storyworld import OWN_SIZE, SIZE_STEP, USUAL_PACE, Film, FilmSettings, Size, random_film
from .tiny_vae import FIRST_TEST_SEED
from .video_films import VideoFilms
from .words import embed_text, split_words

FIRST_CHUNKS, SHORTER = 0.05, 0.25
"""Shares of the steps of stage II that begin a film, and that have none or a part of the past: so do the chunks of a film."""
FINETUNE_SHIFT = 8.0
"""Only frames of much noise need history; a returning character is decided there."""
SAMPLING_STEPS = 8
TEST_SEEDS = 1_000_000
"""How many films there are that no training sees, from FIRST_TEST_SEED on."""
LONGEST_SHOT = 5
"""Latent frames of a cartoon's shot at most."""
FAINTEST = 0.2
"""Frames that are not kept are noised at least this much, as in the paper."""


class EncoderStage(Enum):
    """Stage I and stage II."""

    PRETRAIN = "pretrain"
    FINETUNE = "finetune"


class Branches(Enum):
    """Which branches an encoder has; the low-resolution one looks at smaller latents and has no weights.

    A patchifier is a high-resolution branch of one convolution, alone.
    """

    BOTH = "both"
    HIGH = "high"
    LOW = "low"
    PATCHIFIER = "patchifier"


@dataclass(frozen=True, slots=True)
class EncoderTraining:
    """How an encoder is trained: films of `history_frames` in pictures of `size`, `clips` of them a step.

    Stage I keeps `kept_frames` of them, stage II goes on with `segment_frames` more and also shows one of `windows` newest
    frames whole. `shift` spreads noise levels as Wan's flow shift does, tiles with a character count `character_weight`
    times. `films` names what they are; cartoons have shots of at most `longest_shot` frames and move at `pace` times the usual. `branches` are those that the encoder has, `modulation` the noise level that its tokens are told, `own_prompts` whether
    they read the prompts of their own shots, `proportional` whether they count as what they stand for. `start` names what training starts from.
    """

    stage: str = EncoderStage.PRETRAIN.value
    steps: int = 1500
    rate: str = "2x2x2"
    branches: str = Branches.BOTH.value
    modulation: str = Modulation.CLEAN.value
    own_prompts: bool = True
    proportional: bool = True
    widths: tuple[int, ...] = (32, 64, 128, 256)
    history_frames: int = 24
    kept_frames: int = 4
    segment_frames: int = 3
    windows: tuple[int, ...] = (0, 1, 3)
    clips: int = 6
    lora_rank: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 50
    cool_down: int = 300
    shift: float = 5.0
    character_weight: float = 4.0
    seed: int = 0
    save_every: int = 50
    start: str = "seeded"
    size: str = str(OWN_SIZE)
    films: str = "Storyworld cartoons"
    longest_shot: int = LONGEST_SHOT
    pace: float = USUAL_PACE

    def __post_init__(self) -> None:
        _ = EncoderStage(self.stage), Branches(self.branches), Modulation(self.modulation)
        rate, size = Rate.parse(self.rate), Size.parse(self.size)
        if size.height < SIZE_STEP * rate.rows or size.width < SIZE_STEP * rate.columns:
            raise ValueError(
                f"Training a {rate} encoder needs pictures of at least {SIZE_STEP * rate.rows}x{SIZE_STEP * rate.columns}, "
                f"got {size}. Make the pictures larger."
            )
        if min(self.steps, self.clips, self.lora_rank, self.save_every, self.warm_up, self.segment_frames) < 1:
            raise ValueError(
                f"Training an encoder needs steps, clips, lora_rank, save_every, warm_up and segment_frames of at least 1, "
                f"got {self.steps}, {self.clips}, {self.lora_rank}, {self.save_every}, {self.warm_up} and "
                f"{self.segment_frames}. Raise the one that is too small."
            )
        FilmSettings(longest_shot=self.longest_shot, pace=self.pace)  # refuses films that cannot be
        if self.history_frames < rate.frames or not 1 <= self.kept_frames <= self.history_frames:
            raise ValueError(
                f"Training a {rate} encoder needs films of at least {rate.frames} frames, of which 1 or more are kept, got "
                f"{self.history_frames} and {self.kept_frames}. Make the films longer."
            )

    @property
    def film_frames(self) -> int:
        """Latent frames of a film: the history, and in stage II what goes on with it."""
        return self.history_frames + (self.segment_frames if self.stage == EncoderStage.FINETUNE.value else 0)


class EncoderBatch(NamedTuple):
    """What one step sees: the film to encode, frames to make, and what is read beside the encoder's tokens."""

    history: Tensor  # [B, 16, T, h, w], noised where it is not to be kept
    target: Tensor  # [B, 16, t, h, w], clean
    target_frames: Tensor  # [t], counted as the history's own frames
    mask: Tensor  # [B, t, h, w], 1 where the character is
    text: Tensor  # [B, W, 4096]
    window: Tensor  # [B, 16, n, h, w], the newest frames, whole
    prompts: list[list[Tensor]]  # B lists of T: what each frame of the film was made under, [W, 4096]


def tiny_encoder_spec(config: EncoderTraining, width: int) -> EncoderSpec:
    """The encoder that this training makes."""
    branches = Branches(config.branches)
    return EncoderSpec(
        width=width,
        rate=Rate.parse(config.rate),
        stages=() if branches is Branches.PATCHIFIER else config.widths,
        heads=4,
        high=branches is not Branches.LOW,
        low=LowBranch.NONE if branches in (Branches.HIGH, Branches.PATCHIFIER) else LowBranch.LATENTS,
        modulation=Modulation(config.modulation),
        own_prompts=config.own_prompts,
        proportional=config.proportional,
        base="the tiny model that comes with LongReel",
    )


def finetuning_of(spec: EncoderSpec, **settings: Any) -> EncoderTraining:
    """The settings of stage II for an encoder that stage I made."""
    stage = EncoderStage.FINETUNE.value
    return replace(pretraining_of(spec, **settings), stage=stage, shift=FINETUNE_SHIFT)


def pretraining_of(spec: EncoderSpec, **settings: Any) -> EncoderTraining:
    """The settings of stage I under which an encoder that is there could have been made, and is asked for frames."""
    alone = Branches.HIGH if spec.stages else Branches.PATCHIFIER
    branches = Branches.LOW if not spec.high else alone if spec.low is LowBranch.NONE else Branches.BOTH
    return EncoderTraining(
        rate=str(spec.rate),
        widths=spec.stages,
        branches=branches.value,
        modulation=spec.modulation.value,
        own_prompts=spec.own_prompts,
        proportional=spec.proportional,
        **settings,
    )


def trained_spec(spec: EncoderSpec, config: EncoderTraining) -> EncoderSpec:
    """The spec with what is worth knowing of this training added."""
    facts: dict[str, str | int | float] = {
        f"{config.stage} steps": config.steps,
        f"{config.stage} frames": config.history_frames,
        f"{config.stage} seed": config.seed,
        "films": f"{config.films}, {config.size}",
    }
    return replace(spec, trained={**spec.trained, **facts})


def noise_levels(shape: tuple[int, ...], shift: float, generator: torch.Generator, lowest: float = 0.0) -> Tensor:
    """Logit-normal levels from `lowest` to 1, moved by Wan's flow shift."""
    u = torch.randn(shape, generator=generator).sigmoid()
    return lowest + (1 - lowest) * shift * u / (1 + (shift - 1) * u)


def encoder_films(config: EncoderTraining, step: int, first_seed: int = 0, seeds: int = FIRST_TEST_SEED) -> list[Film]:
    """Films of a step: the history, and in stage II the segment behind it as a shot of its own, of somebody who was seen before.

    Their last prompts have equally many words, so that none has to be padded.
    """
    rng = random.Random(f"{config.seed} encoder films {step}")
    frames = 1 if config.stage == EncoderStage.PRETRAIN.value else config.segment_frames
    extra = 0 if config.stage == EncoderStage.PRETRAIN.value else 1
    settings = FilmSettings(
        chunks=config.history_frames // frames + extra,
        chunk_frames=frames,
        longest_shot=(config.longest_shot - 1) // frames + 1,
        pace=config.pace,
    )
    films: list[Film] = []
    while len(films) < config.clips:
        film = random_film(first_seed + rng.randrange(seeds), settings)
        returns = extra == 0 or film.shots[-1].name in {shot.name for shot in film.shots[:-1]}
        if returns and (not films or _words(film) == _words(films[0])):
            films.append(film)
    return films


def films_of(
    config: EncoderTraining, codec: TileCodec, videos: VideoFilms | None, number: int, unseen: bool = False
) -> FilmClips:
    """The films of a step, drawn, or out of `videos`; `unseen` are those that no training sees."""
    if videos is not None:
        return videos.clips(config.clips, config.seed, number, unseen)
    seeds = (FIRST_TEST_SEED, TEST_SEEDS) if unseen else (0, FIRST_TEST_SEED)
    return film_clips(encoder_films(config, number, *seeds), codec, Size.parse(config.size))


def _words(film: Film) -> int:
    return len(split_words(film.shots[-1].prompt))


def encoder_batch(config: EncoderTraining, clips: FilmClips, step: int) -> EncoderBatch:
    """These films as one step sees them; everything that is drawn follows from seed and step."""
    generator = generator_for(config.seed, "encoder batch", step)
    if config.stage == EncoderStage.PRETRAIN.value:
        return _marked_frames(config, clips, generator)
    window = config.windows[int(torch.randint(len(config.windows), (1,), generator=generator))]
    past = clips.latents.shape[2] - config.segment_frames
    draw = float(torch.rand((), generator=generator))
    later = (
        past if draw < FIRST_CHUNKS else int(torch.randint(past, (1,), generator=generator)) if draw < SHORTER else 0
    )
    return clean_batch(config, clips.later(later), window)


def clean_batch(config: EncoderTraining, clips: FilmClips, window: int) -> EncoderBatch:
    """The last segment of these films, to be made beside all that was before and `window` newest frames whole."""
    latents, mask, text, prompts = clips
    first = latents.shape[2] - config.segment_frames
    frames = torch.arange(first, latents.shape[2], dtype=torch.float32)
    newest = latents[:, :, max(0, first - window) : first]
    return EncoderBatch(latents[:, :, :first], latents[:, :, first:], frames, mask[:, first:], text, newest, prompts)


def _marked_frames(config: EncoderTraining, clips: FilmClips, generator: torch.Generator) -> EncoderBatch:
    """Some frames are clean and to be made, under no prompt; the others are noise to different degrees."""
    latents, mask, text, prompts = clips
    total = latents.shape[2]
    kept = torch.randperm(total, generator=generator)[: config.kept_frames].sort().values
    levels = noise_levels((len(latents), total), config.shift, generator, FAINTEST)
    levels[:, kept] = 0.0
    level = levels[:, None, :, None, None]
    history = latents * (1 - level) + torch.randn(latents.shape, generator=generator) * level
    no_prompt = embed_text("").expand(len(text), -1, -1)
    none = latents[:, :, :0]
    return EncoderBatch(history, latents[:, :, kept], kept.float(), mask[:, kept], no_prompt, none, prompts)


def read_history(network: Any, encoder: MemoryEncoder, batch: EncoderBatch) -> History | None:
    """What the model reads of the film: the encoder's tokens, and the window's frames as its own; None where there is nothing."""
    spec = encoder.spec
    _, _, frames, height, width = batch.history.shape
    tokens, positions = [], []
    parts: list[tuple[int, int]] = []  # tokens, and the frame whose prompt they read
    if frames >= spec.rate.frames:
        tokens.append(encoder(batch.history, network.patch_embedding))
        grid = spec.grid(frames, height, width)
        positions.append(token_positions(spec, grid))
        parts += [(grid[1] * grid[2], index * spec.rate.frames) for index in range(grid[0])]
    if batch.window.shape[2]:
        tokens.append(network.patch_embedding(batch.window).flatten(2).transpose(1, 2))
        rows, columns = (torch.arange(count // PATCH, dtype=torch.float32) for count in (height, width))
        newest = batch.target_frames[0] + torch.arange(-batch.window.shape[2], 0)
        positions.append(torch.cartesian_prod(newest, rows, columns))
        parts += [(len(rows) * len(columns), frame) for frame in newest.int().tolist()]
    if not tokens:
        return None
    own = (stretches((count, film[frame]) for count, frame in parts) for film in batch.prompts)
    prompts = tuple(own) if spec.own_prompts else ()
    counts = token_counts(spec, [len(places) for places in positions], bool(batch.window.shape[2]))
    return History(
        torch.cat(tokens, dim=1), torch.cat(positions), spec.modulation, batch.target_frames, prompts, counts
    )


def predict_beside_history(
    modules: Any, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor
) -> Tensor:
    """The model's flow for frames `x` `[B, 16, t, h, w]` at noise `levels` `[B]`, beside a history or without one."""
    options = {} if history is None else modules.with_history(network, history, {})
    flow: Tensor = network(x, levels * TRAIN_TIMESTEPS, text, transformer_options=options)
    return flow


def draw_frames(modules: Any, network: Any, history: History | None, noise: Tensor, text: Tensor) -> Tensor:
    """Frames `[B, 16, t, h, w]` that the model makes of this noise beside a history, in a few Euler steps."""
    x = noise
    for level, lower in pairwise(sampling_levels(SAMPLING_STEPS)):
        levels = torch.full((len(x),), level)
        x = x + (lower - level) * predict_beside_history(modules, network, history, x, levels, text)
    return x


def encoder_loss(
    modules: Any, network: Any, encoder: MemoryEncoder, batch: EncoderBatch, config: EncoderTraining, step: int
) -> Tensor:
    """Mean squared error of the flow on the frames to make; tiles with a character count `character_weight` times."""
    generator = generator_for(config.seed, "encoder noise", step)
    levels = noise_levels((len(batch.target),), config.shift, generator)
    noise = torch.randn(batch.target.shape, generator=generator)
    level = levels[:, None, None, None, None]
    x = batch.target * (1 - level) + noise * level
    history = read_history(network, encoder, batch)
    flow = predict_beside_history(modules, network, history, x, levels, batch.text)
    weight = 1 + (config.character_weight - 1) * batch.mask
    error = (flow - (noise - batch.target)).square().mean(1)
    return (error * weight).sum() / weight.sum()


def _rate_factor(config: EncoderTraining, step: int) -> float:
    return min(1.0, (step + 1) / config.warm_up, max(0.02, (config.steps - step) / max(1, config.cool_down)))


def train_encoder(
    config: EncoderTraining,
    modules: Any,
    peft: Any,
    network: nn.Module,
    encoder: MemoryEncoder,
    codec: TileCodec,
    out: Path,
    tell: Callable[[dict[str, float]], None] = lambda row: None,
    lora: dict[str, Tensor] | None = None,
    videos: VideoFilms | None = None,
) -> None:
    """Train `encoder` and a new LoRA on `network` in place, or continue the run in `out`.

    `modules` and `network` come from `nodes/host/build.py::host_modules`, `peft` is the package; `tell` gets every line of the log,
    `lora` are adapters to begin with in place of new ones, `videos` what is seen in place of cartoons. The same settings
    give the same weights whether or not the run was interrupted. Raises ProjectError when the disk is full or the run in
    `out` has other settings; the last checkpoint stays whole.
    """
    run = RunFolder(out, config)
    parameters = [*encoder.requires_grad_().parameters(), *add_lora(peft, network, config.lora_rank, config.seed)]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    if lora is not None:
        load_lora_state(network, lora)
    first = 0
    state = run.load()
    if state is not None:
        encoder.load_state_dict(state["encoder"])
        load_lora_state(network, state["lora"])
        optimiser.load_state_dict(state["optimiser"])
        first = int(state["step"])
    clock = time.monotonic()
    with modules.training():
        for step in range(first, config.steps):
            batch = encoder_batch(config, films_of(config, codec, videos, step), step)
            loss = encoder_loss(modules, network, encoder, batch, config, step)
            optimiser.param_groups[0]["lr"] = config.learning_rate * _rate_factor(config, step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            row = {"step": step + 1, "loss": loss.item(), "norm": norm.item(), "seconds": time.monotonic() - clock}
            if not math.isfinite(row["loss"]):
                raise ValueError(f"The loss became {row['loss']} at step {step + 1}. Start anew with half the rate.")
            optimiser.step()
            run.log(row)
            tell(row)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                saved = {"encoder": encoder.state_dict(), "lora": lora_state(network)}
                run.save({"step": step + 1, "optimiser": optimiser.state_dict(), **saved})
                run.draw_curve("loss")
