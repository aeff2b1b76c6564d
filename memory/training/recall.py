"""Does the tiny model draw a returning character from what it saw? Measured on films it was never trained on."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .causal import predict_flow
from .clips import ClipBatch, TileCodec, clip_batch, decode_latents, text_batch
from .storyworld import NAMES, Film, Look, Shot, character_box, first_rgb_frame, random_look, random_shot, render_shot
from .tiny_training import FLOW_SHIFT

SAMPLING_STEPS = 4
POPULATION = 64
"""Random looks whose mean picture is taken out before looks are compared."""


class Recall(NamedTuple):
    """Means over films: cosine of mean-centred looks, share of films nearest to the right look, and controls."""

    identity: float
    who_is_it: float
    control: float
    name_swap: float
    averaging: float
    chance: float


def recall_film(seed: int, chunks: int, chunk_frames: int, characters: int) -> Film:
    """A film whose first character is in the first chunk and in the last, and nowhere between."""
    rng = random.Random(f"recall {seed}")
    cast = rng.sample(NAMES, characters)
    looks = {name: random_look(rng) for name in cast}
    others = [cast[1 + index % (characters - 1)] for index in range(chunks - 2)]
    rng.shuffle(others)
    order = [cast[0], *others, cast[0]]
    shots = [random_shot(rng, name, index * chunk_frames, chunk_frames) for index, name in enumerate(order)]
    return Film(looks, tuple(shots))


@torch.no_grad()
def draw_last_chunk(model: nn.Module, batch: ClipBatch, modules: Any, seed: int) -> Tensor:
    """The last chunk of each clip, made in 4 Euler steps from noise while the clean chunks before it are read.

    Returns normalised latents `[B, 16, chunk_frames, 12, 16]`.
    """
    latents, size = batch.latents.clone(), batch.chunk_frames
    steps = torch.linspace(1, 0, SAMPLING_STEPS + 1)
    levels = FLOW_SHIFT * steps / (1 + (FLOW_SHIFT - 1) * steps)
    generator = torch.Generator().manual_seed(seed)
    latents[:, :, -size:] = torch.randn(latents[:, :, -size:].shape, generator=generator)
    sigmas = torch.zeros(latents.shape[0], latents.shape[2])
    with modules.training():
        for level, lower in pairwise(levels.tolist()):
            sigmas[:, -size:] = level
            flow = predict_flow(model, latents, sigmas, batch)[:, :, -size:]
            latents[:, :, -size:] += (lower - level) * flow
    return latents[:, :, -size:]


def _crop(shot: Shot, video: Tensor) -> Tensor:
    frame = first_rgb_frame(shot.start + shot.frames - 1)
    top, left, bottom, right = character_box(shot, frame)
    return video[top:bottom, left:right]


def _true_crop(shot: Shot, look: Look) -> Tensor:
    frame = first_rgb_frame(shot.start + shot.frames - 1)
    return _crop(shot, render_shot(shot, look, range(frame, frame + 1))[0])


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def compare_looks(film: Film, made: Tensor) -> dict[str, float]:
    """Cosine of the drawn character in the last shot to every character of the film, mean-centred.

    `made` is the RGB picture `[96, 128, 3]` at the first RGB frame of the last latent frame.
    """
    shot, rng = film.shots[-1], random.Random("population")
    mean = torch.stack([_true_crop(shot, random_look(rng)) for _ in range(POPULATION)]).mean(0)
    drawn = _crop(shot, made) - mean
    return {name: _cosine(drawn, _true_crop(shot, look) - mean) for name, look in film.looks.items()}


def _averaging(film: Film) -> float:
    """The cosine that the mean of all looks seen in the film would reach."""
    shot, rng = film.shots[-1], random.Random("population")
    mean = torch.stack([_true_crop(shot, random_look(rng)) for _ in range(POPULATION)]).mean(0)
    seen = torch.stack([_true_crop(shot, film.looks[earlier.name]) for earlier in film.shots[:-1]]).mean(0)
    return _cosine(seen - mean, _true_crop(shot, film.looks[shot.name]) - mean)


def _last_pictures(latents: Tensor, codec: TileCodec) -> list[Tensor]:
    # A frame in front, because the codec takes the first frame of what it decodes for a single picture.
    padded = torch.cat([latents[:, :, -1:], latents[:, :, -1:]], dim=2)
    return [decode_latents(clip, codec)[1] for clip in padded]


def measure_recall(
    model: nn.Module, codec: TileCodec, modules: Any, films: list[Film], chunk_frames: int, seed: int = 0
) -> Recall:
    """Identity, who-is-it and both controls for films from `recall_film`; the history given is the true one."""
    batch = clip_batch(films, codec, chunk_frames)
    right = [compare_looks(f, p) for f, p in zip(films, _pictures_of(model, batch, modules, seed, codec), strict=True)]

    rolled = torch.cat([batch.latents[1:], batch.latents[:1]])
    foreign = batch._replace(latents=torch.cat([rolled[:, :, :-chunk_frames], batch.latents[:, :, -chunk_frames:]], 2))
    other = [
        compare_looks(f, p) for f, p in zip(films, _pictures_of(model, foreign, modules, seed, codec), strict=True)
    ]

    swapped_films = [
        Film(film.looks, (*film.shots[:-1], film.shots[-1]._replace(name=film.shots[-2].name))) for film in films
    ]
    text, text_mask = text_batch([[shot.prompt for shot in film.shots] for film in swapped_films])
    swapped = batch._replace(text=text, text_mask=text_mask)
    swap = [
        compare_looks(f, p)
        for f, p in zip(swapped_films, _pictures_of(model, swapped, modules, seed, codec), strict=True)
    ]
    names = [film.shots[-1].name for film in films]
    swap_names = [film.shots[-1].name for film in swapped_films]
    return Recall(
        identity=_mean([scores[name] for scores, name in zip(right, names, strict=True)]),
        who_is_it=_mean([float(max(s, key=s.__getitem__) == n) for s, n in zip(right, names, strict=True)]),
        control=_mean([scores[name] for scores, name in zip(other, names, strict=True)]),
        name_swap=_mean([float(max(s, key=s.__getitem__) == n) for s, n in zip(swap, swap_names, strict=True)]),
        averaging=_mean([_averaging(film) for film in films]),
        chance=1.0 / len(films[0].looks),
    )


def _pictures_of(model: nn.Module, batch: ClipBatch, modules: Any, seed: int, codec: TileCodec) -> list[Tensor]:
    return _last_pictures(draw_last_chunk(model, batch, modules, seed), codec)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
