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
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..encoded_history import History
from ..encoder_spec import PATCH
from ..whole_file import ProjectError
from .clips import FilmClips, TileCodec, film_clips
from .encoder_chain import Encoders, Piece, joined, tellers_of, told_by
from .encoder_settings import EncoderStage, EncoderTraining
from .lora import add_lora, load_lora_state, lora_state
from .processes import ALONE, Processes
from .recall import sampling_levels
from .run_folder import RunFolder, generator_for
from .storyworld import Film, FilmSettings, Size, random_film
from .tiny_vae import FIRST_TEST_SEED
from .video_films import VideoFilms
from .words import embed_text, split_words

FIRST_CHUNKS, SHORTER = 0.05, 0.25
"""Shares of the steps of stage II that begin a film, and that have none or a part of the past: so do the chunks of a film."""
SAMPLING_STEPS = 8
TEST_SEEDS = 1_000_000
"""How many films there are that no training sees, from FIRST_TEST_SEED on."""
FAINTEST = 0.2
"""Frames that are not kept are noised at least this much, as in the paper."""


class EncoderBatch(NamedTuple):
    """What one step sees: the film to encode, frames to make, and what is read beside the encoder's tokens."""

    history: Tensor  # [B, 16, T, h, w], noised where it is not to be kept
    target: Tensor  # [B, 16, t, h, w], clean
    target_frames: Tensor  # [t], counted as the history's own frames
    mask: Tensor  # [B, t, h, w], 1 where the character is
    text: Tensor  # [B, W, 4096]
    window: Tensor  # [B, 16, n, h, w], the newest frames, whole
    prompts: list[list[Tensor]]  # B lists of T: what each frame of the film was made under, [W, 4096]

    def to(self, device: torch.device) -> EncoderBatch:
        """The same on a device; times and prompts stay, and follow where they are used."""
        moved = {name: getattr(self, name).to(device) for name in ("history", "target", "mask", "text", "window")}
        return self._replace(**moved)


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
    config: EncoderTraining, codec: TileCodec | None, videos: VideoFilms | None, number: int, unseen: bool = False
) -> FilmClips:
    """The films of a step, drawn, which takes a `codec`, or out of `videos`; `unseen` are those that no training sees."""
    if videos is not None:
        return videos.clips(config.clips, config.seed, number, unseen)
    assert codec is not None
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
    latents, mask, text, prompts, _ = clips
    first = latents.shape[2] - config.segment_frames
    frames = torch.arange(first, latents.shape[2], dtype=torch.float32)
    newest = latents[:, :, max(0, first - window) : first]
    return EncoderBatch(latents[:, :, :first], latents[:, :, first:], frames, mask[:, first:], text, newest, prompts)


def _marked_frames(config: EncoderTraining, clips: FilmClips, generator: torch.Generator) -> EncoderBatch:
    """Some frames are clean and to be made, under no prompt; the others are noise to different degrees."""
    latents, mask, text, prompts, nothing = clips
    total = latents.shape[2]
    kept = torch.randperm(total, generator=generator)[: config.kept_frames].sort().values
    levels = noise_levels((len(latents), total), config.shift, generator, FAINTEST)
    levels[:, kept] = 0.0
    level = levels[:, None, :, None, None]
    history = latents * (1 - level) + torch.randn(latents.shape, generator=generator) * level
    no_prompt = (embed_text("") if nothing is None else nothing[None]).expand(len(text), -1, -1)
    none = latents[:, :, :0]
    return EncoderBatch(history, latents[:, :, kept], kept.float(), mask[:, kept], no_prompt, none, prompts)


def read_history(modules: Any, network: Any, encoder: Encoders, batch: EncoderBatch) -> History | None:
    """What the model reads of the film: the encoders' tokens, and the window's frames as its own; None where there is nothing."""
    tellers, embed = tellers_of(encoder), modules.family.embedding(network)
    told = [told_by(teller, batch.history, embed) for teller in tellers]
    pieces = [piece for piece in told if piece is not None]
    if batch.window.shape[2]:
        tokens = embed(batch.window).flatten(2).transpose(1, 2)
        rows, columns = (torch.arange(count // PATCH, dtype=torch.float32) for count in batch.window.shape[3:])
        newest = batch.target_frames[0] + torch.arange(-batch.window.shape[2], 0)
        places = torch.cartesian_prod(newest, rows, columns)
        pieces.append(Piece(tellers[0].encoder.spec, tokens, places, newest.int().tolist()))
    return joined(pieces, batch.target_frames, batch.prompts)


def predict_beside_history(
    modules: Any, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor
) -> Tensor:
    """The model's flow for frames `x` `[B, 16, t, h, w]` at noise `levels` `[B]`, beside a history or without one."""
    flow: Tensor = modules.family.flow(network, history, x, levels, text)
    return flow


def draw_frames(modules: Any, network: Any, history: History | None, noise: Tensor, text: Tensor) -> Tensor:
    """Frames `[B, 16, t, h, w]` that the model makes of this noise beside a history, in a few Euler steps."""
    x = noise
    for level, lower in pairwise(sampling_levels(SAMPLING_STEPS)):
        levels = torch.full((len(x),), level, device=x.device)
        x = x + (lower - level) * predict_beside_history(modules, network, history, x, levels, text)
    return x


def encoder_loss(
    modules: Any, network: Any, encoder: Encoders, batch: EncoderBatch, config: EncoderTraining, step: int
) -> Tensor:
    """Mean squared error of the flow on the frames to make; tiles with a character count `character_weight` times."""
    generator = generator_for(config.seed, "encoder noise", step)
    levels = noise_levels((len(batch.target),), config.shift, generator)
    noise = torch.randn(batch.target.shape, generator=generator).to(batch.target)
    levels = levels.to(batch.target)
    level = levels[:, None, None, None, None]
    x = batch.target * (1 - level) + noise * level
    history = read_history(modules, network, encoder, batch)
    flow = predict_beside_history(modules, network, history, x, levels, batch.text)
    weight = 1 + (config.character_weight - 1) * batch.mask
    error = (flow - (noise - batch.target)).square().mean(1)
    return (error * weight).sum() / weight.sum()


def _rate_factor(config: EncoderTraining, step: int) -> float:
    return min(1.0, (step + 1) / config.warm_up, max(0.02, (config.steps - step) / max(1, config.cool_down)))


def _diverged(out: Path, row: dict[str, float], saved: int) -> str:
    kept = f"The checkpoint of step {saved} in {out} is whole" if saved else f"Nothing was saved in {out} yet"
    return (
        f"Training needs a finite loss, got {row['loss']} and gradients of {row['norm']} at step {row['step']}: it went wrong there, and "
        f"would again. {kept}. Start anew in another folder, with another seed, more clips a step or a lower learning rate."
    )


def train_encoder(
    config: EncoderTraining,
    modules: Any,
    peft: Any,
    network: nn.Module,
    encoder: Encoders,
    codec: TileCodec | None,
    out: Path,
    tell: Callable[[dict[str, float]], None] = lambda row: None,
    lora: dict[str, Tensor] | None = None,
    videos: VideoFilms | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train `encoder` and a new LoRA on `network` in place, or continue the run in `out`.

    `modules` and `network` come from `nodes/host/build_hunyuan.py::modules_of`, `peft` is the package; `tell` gets every line of the log,
    `lora` are adapters to begin with in place of new ones, `videos` what is seen in place of cartoons, `processes` train together. The same settings
    give the same weights whether or not the run was interrupted. Raises ProjectError when the disk is full, the run in
    `out` has other settings or the loss is no longer finite; the last checkpoint stays whole.
    """
    run = RunFolder(out, config, processes.leads)
    network.to(processes.device)
    encoder.to(processes.device)
    adapters = add_lora(peft, network, modules.family.lora_targets, config.lora_rank, config.seed)
    parameters = [*encoder.requires_grad_().parameters(), *adapters]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    if lora is not None:
        load_lora_state(network, lora)
    first = saved_step = 0
    state = run.load()
    if state is not None:
        encoder.load_state_dict(state["encoder"])
        load_lora_state(network, state["lora"])
        optimiser.load_state_dict(state["optimiser"])
        first = saved_step = int(state["step"])
    clock = time.monotonic()
    with modules.training():
        for step in range(first, config.steps):
            number = processes.batch_number(step)
            batch = encoder_batch(config, films_of(config, codec, videos, number), number).to(processes.device)
            loss = encoder_loss(modules, network, encoder, batch, config, number)
            optimiser.param_groups[0]["lr"] = config.learning_rate * _rate_factor(config, step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            processes.average_gradients(parameters)
            loss = processes.average(loss.detach())
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            row = {"step": step + 1, "loss": loss.item(), "norm": norm.item(), "seconds": time.monotonic() - clock}
            if not (math.isfinite(row["loss"]) and math.isfinite(row["norm"])):
                raise ProjectError(_diverged(out, row, saved_step))
            optimiser.step()
            run.log(row)
            tell(row)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                saved = {"encoder": encoder.state_dict(), "lora": lora_state(network)}
                saved_step = step + 1
                run.save({"step": saved_step, "optimiser": optimiser.state_dict(), **saved})
                run.draw_curve("loss")
