"""How close a drawn chunk comes to the film it belongs to: who is there, where, in which place, how much moves."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .recall_flow import dynamic_degree
from .storyworld import (
    PLACES,
    POSITIONS,
    Film,
    Look,
    Shot,
    character_box,
    first_rgb_frame,
    random_look,
    render_shot,
)

JUDGED = 0
"""Which of the four pictures of a chunk's last latent frame is judged."""
POPULATION = 64
"""Random looks whose mean picture is taken out before looks are compared."""
HIGHEST_DB = 100.0
"""What equal pictures are given, because JSON knows no infinity."""

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels."""


def _judged_frame(shot: Shot) -> int:
    return first_rgb_frame(shot.start + shot.frames - 1)


def _picture(shot: Shot, look: Look, frame: int) -> Tensor:
    return render_shot(shot, look, range(frame, frame + 1))[0]


def _inside(picture: Tensor, box: Box) -> Tensor:
    top, left, bottom, right = box
    return picture[top:bottom, left:right]


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two pictures as vectors."""
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def decibels(made: Tensor, true: Tensor) -> float:
    """Peak signal to noise ratio of pictures in 0..1, at most 100 dB."""
    error = (made - true).square().mean().item()
    return HIGHEST_DB if error == 0 else min(HIGHEST_DB, -10 * math.log10(error))


@dataclass(frozen=True, slots=True)
class Looks:
    """Everybody of a film as they would look in its last shot, with the mean of random looks taken out."""

    box: Box
    mean: Tensor  # [h, w, 3]
    centred: dict[str, Tensor]  # name -> [h, w, 3]

    def cosines(self, made: Tensor) -> dict[str, float]:
        """Cosine of the character drawn in the judged picture `[96, 128, 3]` to everybody's look."""
        drawn = _inside(made, self.box) - self.mean
        return {name: cosine(drawn, look) for name, look in self.centred.items()}

    def averaging(self, film: Film) -> float:
        """The cosine that the mean of all looks seen before the last shot would reach."""
        seen = torch.stack([self.centred[shot.name] for shot in film.shots[:-1]]).mean(0)
        return cosine(seen, self.centred[film.shots[-1].name])


def last_looks(film: Film) -> Looks:
    """What the character in the last shot of a film is compared with."""
    return _looks_in(film.shots[-1], film.looks)


def _looks_in(shot: Shot, looks: dict[str, Look]) -> Looks:
    frame, rng = _judged_frame(shot), random.Random("population")
    box = character_box(shot, frame)
    mean = torch.stack([_inside(_picture(shot, random_look(rng), frame), box) for _ in range(POPULATION)]).mean(0)
    centred = {name: _inside(_picture(shot, look, frame), box) - mean for name, look in looks.items()}
    return Looks(box, mean, centred)


def nearest(scores: dict[str, float]) -> str:
    """The name with the highest score."""
    return max(scores, key=scores.__getitem__)


@dataclass(frozen=True, slots=True)
class Scene:
    """A shot at its judged picture, whoever is in it: its place, what the other places look like, where one may stand."""

    shot: Shot
    true: Tensor  # [96, 128, 3]
    empty: Tensor  # [96, 128, 3], the place without its character
    outside: Tensor  # [96, 128], true outside of the character's box
    places: dict[str, Tensor]  # name -> [96, 128, 3], right outside of the box
    middles: dict[str, Box]  # position -> the middle half of a character's box there

    def background(self, made: Tensor) -> float:
        """PSNR of a picture `[96, 128, 3]` outside of the character's box."""
        return decibels(made[self.outside], self.true[self.outside])

    def obeyed(self, made: Tensor) -> bool:
        """Whether the place is nearest to the named one, and what is not the place stands at the named position."""
        error = {
            name: -(made[self.outside] - place[self.outside]).square().mean().item()
            for name, place in self.places.items()
        }
        stranger = (made - self.empty).square()
        standing = {name: _inside(stranger, middle).mean().item() for name, middle in self.middles.items()}
        return nearest(error) == self.shot.place and nearest(standing) == self.shot.position


def scene_of(shot: Shot, look: Look) -> Scene:
    """The scene of a shot that `look` is in."""
    frame = _judged_frame(shot)
    top, left, bottom, right = character_box(shot, frame)
    outside = torch.ones(_picture(shot, look, frame).shape[:2], dtype=torch.bool)
    outside[top:bottom, left:right] = False
    return Scene(
        shot,
        _picture(shot, look, frame),
        _empty_place(shot, look, frame),
        outside,
        {place: _picture(shot._replace(place=place), look, frame) for place in PLACES},
        {position: _middle(character_box(shot._replace(position=position), frame)) for position in POSITIONS},
    )


def _empty_place(shot: Shot, look: Look, frame: int) -> Tensor:
    """Two halves without a character: those of pictures in which it stands on the other side."""
    at_left, at_right = (shot._replace(position=position) for position in ("left", "right"))
    column = character_box(at_left, frame)[3]
    left, right = _picture(at_left, look, frame), _picture(at_right, look, frame)
    return torch.cat([right[:, :column], left[:, column:]], dim=1)


def _middle(box: Box) -> Box:
    top, left, bottom, right = box
    high, wide = (bottom - top) // 4, (right - left) // 4
    return top + high, left + wide, bottom - high, right - wide


class ChunkScore(NamedTuple):
    """Scores of one drawn chunk; the two shares are 0 or 1."""

    identity_cosine: float
    identity_psnr: float
    who_is_it: float
    background_psnr: float
    obedience: float
    dynamic_degree: float


@dataclass(frozen=True, slots=True)
class Truth:
    """Everything that a drawn last chunk of a film is compared with."""

    name: str
    looks: Looks
    scene: Scene

    def score(self, pictures: Tensor) -> ChunkScore:
        """Scores of the pictures of the chunk's last latent frame: `[4, 96, 128, 3]`."""
        made = pictures[JUDGED]
        cosines = self.looks.cosines(made)
        return ChunkScore(
            identity_cosine=cosines[self.name],
            identity_psnr=decibels(_inside(made, self.looks.box), _inside(self.scene.true, self.looks.box)),
            who_is_it=float(nearest(cosines) == self.name),
            background_psnr=self.scene.background(made),
            obedience=float(self.scene.obeyed(made)),
            dynamic_degree=dynamic_degree(pictures),
        )


def last_truth(film: Film) -> Truth:
    """What the last shot of a film should look like; when it comes and what came before makes no difference."""
    shot = film.shots[-1]
    return _truth(shot._replace(start=shot.frames), tuple(film.looks.items()))


@lru_cache(maxsize=4)
def _truth(shot: Shot, looks: tuple[tuple[str, Look], ...]) -> Truth:
    everybody = dict(looks)
    return Truth(shot.name, _looks_in(shot, everybody), scene_of(shot, everybody[shot.name]))
