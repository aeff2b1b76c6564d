"""Films in which a character comes back, and the noise levels at which its return is drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import torch

from .storyworld import NAMES, Film, random_look, random_shot
from .tiny_training import FLOW_SHIFT

SAMPLING_STEPS = 4


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
