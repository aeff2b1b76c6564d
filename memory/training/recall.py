"""Films in which a character comes back, and whether a model in training draws it from what it saw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .causal import predict_flow
from .clips import ClipBatch, TileCodec, clip_batch, decode_latents, text_batch
from .recall_scores import last_looks, nearest
from .storyworld import NAMES, Film, random_look, random_shot
from .tiny_training import FLOW_SHIFT

SAMPLING_STEPS = 4


class Recall(NamedTuple):
    """Means over films: cosine of mean-centred looks, share of films nearest to the right look, and controls."""

    identity: float
    who_is_it: float
    control: float
    name_swap: float
    averaging: float
    chance: float


def recall_film(seed: int, chunks: int, chunk_frames: int, characters: int, distance: int | None = None) -> Film:
    """A film whose first character is in the last chunk and, before that, once: `distance` chunks earlier.

    None stands for the first chunk. Every chunk is a shot; all other characters are seen too, about equally often. Films
    of a seed have the same looks and share their shots, at every length and distance. Raises ValueError when the film is
    too short for that.
    """
    distance = chunks - 1 if distance is None else distance
    if not 2 <= characters < chunks or not 1 <= distance < chunks:
        raise ValueError(
            f"A recall film of {chunks} chunks needs 2 to {chunks - 1} characters and a distance of 1 to {chunks - 1} "
            f"chunks, got {characters} and {distance}. Make the film longer, or the one that is too large smaller."
        )
    rng = random.Random(f"recall {seed}")
    cast = rng.sample(NAMES, characters)
    looks = {name: random_look(rng) for name in cast}
    shots = (random_shot(rng, name, 0, chunk_frames) for name in _names(rng, cast))
    last, once, *others = islice(shots, chunks)
    seen = chunks - 1 - distance
    order = [*others[:seen], once, *others[seen:], last]
    return Film(looks, tuple(shot._replace(start=index * chunk_frames) for index, shot in enumerate(order)))


def _names(rng: random.Random, cast: list[str]) -> Iterator[str]:
    """The first of the cast twice, then the others without end: all of them in each round, in an order of its own."""
    yield from (cast[0], cast[0])
    while True:
        yield from rng.sample(cast[1:], len(cast) - 1)


def swapped_name(film: Film) -> Film:
    """The film with another of its characters named in the last shot, at the same place: the name swap."""
    other = next(name for name in film.looks if name != film.shots[-1].name)
    return Film(film.looks, (*film.shots[:-1], film.shots[-1]._replace(name=other)))


def sampling_levels(steps: int = SAMPLING_STEPS) -> list[float]:
    """Noise levels from 1 to 0 that are even in time before Wan's flow shift."""
    even = torch.linspace(1, 0, steps + 1)
    levels: list[float] = (FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)).tolist()
    return levels


@torch.no_grad()
def draw_last_chunk(model: nn.Module, batch: ClipBatch, modules: Any, seed: int) -> Tensor:
    """The last chunk of each clip, made in 4 Euler steps from noise while the clean chunks before it are read.

    Returns normalised latents `[B, 16, chunk_frames, 12, 16]`.
    """
    latents, size = batch.latents.clone(), batch.chunk_frames
    generator = torch.Generator().manual_seed(seed)
    latents[:, :, -size:] = torch.randn(latents[:, :, -size:].shape, generator=generator)
    sigmas = torch.zeros(latents.shape[0], latents.shape[2])
    with modules.training():
        for level, lower in pairwise(sampling_levels()):
            sigmas[:, -size:] = level
            flow = predict_flow(model, latents, sigmas, batch)[:, :, -size:]
            latents[:, :, -size:] += (lower - level) * flow
    return latents[:, :, -size:]


def compare_looks(film: Film, made: Tensor) -> dict[str, float]:
    """Cosine of the drawn character in the last shot to every character of the film, mean-centred.

    `made` is the RGB picture `[96, 128, 3]` at the first RGB frame of the last latent frame.
    """
    return last_looks(film).cosines(made)


def _last_pictures(latents: Tensor, codec: TileCodec) -> list[Tensor]:
    # A frame in front, because the codec takes the first frame of what it decodes for a single picture.
    padded = torch.cat([latents[:, :, -1:], latents[:, :, -1:]], dim=2)
    return [decode_latents(clip, codec)[1] for clip in padded]


def measure_recall(
    model: nn.Module, codec: TileCodec, modules: Any, films: list[Film], chunk_frames: int, seed: int = 0
) -> Recall:
    """Identity, who-is-it and both controls for films from `recall_film`; the history given is the true one."""
    batch = clip_batch(films, codec, chunk_frames)
    rolled = torch.cat([batch.latents[1:], batch.latents[:1]])
    foreign = torch.cat([rolled[:, :, :-chunk_frames], batch.latents[:, :, -chunk_frames:]], 2)
    swapped_films = [swapped_name(film) for film in films]
    text, text_mask = text_batch([[shot.prompt for shot in film.shots] for film in swapped_films])

    looks = [last_looks(film) for film in films]

    def scores(drawn: ClipBatch) -> list[dict[str, float]]:
        pictures = _last_pictures(draw_last_chunk(model, drawn, modules, seed), codec)
        return [look.cosines(picture) for look, picture in zip(looks, pictures, strict=True)]

    right = scores(batch)
    control = scores(batch._replace(latents=foreign))
    swap = scores(batch._replace(text=text, text_mask=text_mask))
    names = [film.shots[-1].name for film in films]
    swap_names = [film.shots[-1].name for film in swapped_films]
    return Recall(
        identity=_mean([cosines[name] for cosines, name in zip(right, names, strict=True)]),
        who_is_it=_mean([float(nearest(cosines) == name) for cosines, name in zip(right, names, strict=True)]),
        control=_mean([cosines[name] for cosines, name in zip(control, names, strict=True)]),
        name_swap=_mean([float(nearest(cosines) == name) for cosines, name in zip(swap, swap_names, strict=True)]),
        averaging=_mean([look.averaging(film) for look, film in zip(looks, films, strict=True)]),
        chance=1.0 / len(films[0].looks),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
