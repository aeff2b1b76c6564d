"""Storyworld: endless labelled cartoon storyboards whose characters leave and come back.

A character's look is random for each film and never in the prompt, so a returning character can only be drawn right
from what was seen before. Name, place, position and action are in the prompt. Everything follows from a seed.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

HEIGHT, WIDTH = 96, 128
"""The world as it is drawn at its own size, in pixels; all lengths here are pixels of it. Other sizes show it larger."""
SIZE_STEP = 16  # pixels of a token of the model
FPS = 16
FRAME_STRIDE = 4
"""RGB frames of a latent frame, but for the first, which is one picture."""
USUAL_PACE, FASTEST = 1.0, 16.0
"""Times the usual pace at most; beyond that the camera pans half a screen between two latent frames."""
BOX_HEIGHT, BOX_WIDTH = 68, 64  # pixels; a character with all of its soft edge, leaning or not

NAMES = (
    "anna", "ben", "cleo", "dora", "emil", "fina", "gus", "hana", "ivo", "juno", "kai", "lena",
    "milo", "nora", "otto", "pia", "quin", "rosa", "sam", "tara", "udo", "vera", "wim", "zoe",
)  # fmt: skip
POSITIONS = {"left": 32.0, "middle": 64.0, "right": 96.0}
ACTIONS = ("stands", "walks", "jumps", "waves")
CAMERAS = {"": 0.0, "pan left": -0.5, "pan right": 0.5}  # pixels a frame
SHAPES = {"round": 2.0, "square": 5.0, "diamond": 1.2}  # exponent of the superellipse
PATTERNS = ("halves", "sides", "stripes", "core")
_GROUND_Y = 54.0
_HALF_HEIGHT, _HALF_WIDTH = 24.0, 18.0
_EDGE = 0.24  # of the half size: soft, because a 48x smaller latent cannot hold a hard edge
_REACH = 48  # pixels to each side of the centre; what lies beyond is below 1e-5
_STRIPE_PERIOD = 28.0  # pixels


class Size(NamedTuple):
    """Pixels of a picture. Its height always shows the whole world; a wider one shows as much more at both sides."""

    height: int = HEIGHT
    width: int = WIDTH

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """The size that is written like `128x192`; ValueError unless both can be divided by 16."""
        height, _, width = text.partition("x")
        if not (height.isdecimal() and width.isdecimal()) or min(size := cls(int(height), int(width))) < 1:
            raise ValueError(f"A picture needs a size like {cls()}, height first, got {text!r}.")
        if size.height % SIZE_STEP or size.width % SIZE_STEP:
            raise ValueError(f"Height and width of a picture need to be multiples of {SIZE_STEP}, got {text}.")
        return size

    @property
    def scale(self) -> float:
        """Pixels for each pixel of the world."""
        return self.height / HEIGHT

    @property
    def left(self) -> float:
        """Where in the world the first column lies, so that the world's middle is the picture's."""
        return (WIDTH - self.width / self.scale) / 2


OWN_SIZE = Size()


class Place(NamedTuple):
    """A landscape: sky, ground and hill colours, and where the horizon lies (pixels from the top)."""

    sky: tuple[float, float, float]
    ground: tuple[float, float, float]
    hill: tuple[float, float, float]
    horizon: float


PLACES = {
    "forest": Place((0.55, 0.72, 0.60), (0.18, 0.34, 0.16), (0.10, 0.42, 0.20), 44.0),
    "beach": Place((0.55, 0.80, 0.95), (0.93, 0.84, 0.60), (0.20, 0.50, 0.75), 58.0),
    "town": Place((0.78, 0.78, 0.82), (0.45, 0.43, 0.45), (0.62, 0.36, 0.30), 52.0),
    "desert": Place((0.98, 0.80, 0.55), (0.86, 0.60, 0.30), (0.75, 0.45, 0.22), 62.0),
    "meadow": Place((0.62, 0.82, 0.98), (0.50, 0.75, 0.28), (0.70, 0.82, 0.35), 50.0),
    "mountain": Place((0.72, 0.80, 0.92), (0.48, 0.50, 0.52), (0.36, 0.40, 0.52), 66.0),
    "night": Place((0.08, 0.09, 0.24), (0.12, 0.13, 0.22), (0.20, 0.20, 0.38), 56.0),
    "snow": Place((0.80, 0.87, 0.93), (0.95, 0.96, 0.98), (0.68, 0.76, 0.86), 54.0),
}


class Look(NamedTuple):
    """How a character looks in one film: two colours, how they share the body, and the outline."""

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str
    shape: str


class Shot(NamedTuple):
    """Who does what where, from latent frame `start` for `frames` latent frames; everything moves `pace` times as fast as usual."""

    start: int
    frames: int
    name: str
    place: str
    position: str
    action: str
    camera: str
    pace: float = USUAL_PACE

    @property
    def prompt(self) -> str:
        """The shot in words; the look is not among them."""
        camera = f", camera {self.camera}" if self.camera else ""
        return f"{self.name} {self.action} {self.position} in the {self.place}{camera}"


@dataclass(frozen=True, slots=True)
class Film:
    """A storyboard with the look of everybody in it."""

    looks: dict[str, Look]
    shots: tuple[Shot, ...]

    @property
    def frames(self) -> int:
        """Length in latent frames."""
        return self.shots[-1].start + self.shots[-1].frames


@dataclass(frozen=True, slots=True)
class FilmSettings:
    """What a random film is like: how many chunks of how many latent frames, chunks of a shot at most, characters.

    The cast comes from the first `names` of NAMES; `familiar` is the chance that a character looks as its name always
    looks, so that names mean something before reading is learned; `plain` is the chance that a character has one colour instead of two: what it looks like is then the same all over.
    Everything moves `pace` times as fast as usual.
    """

    chunks: int = 12
    chunk_frames: int = 1
    longest_shot: int = 1
    fewest_characters: int = 4
    most_characters: int = 6
    names: int = len(NAMES)
    familiar: float = 0.0
    plain: float = 0.0
    pace: float = USUAL_PACE

    def __post_init__(self) -> None:
        if min(self.chunks, self.chunk_frames, self.longest_shot) < 1:
            raise ValueError(
                f"A film needs at least 1 chunk of at least 1 frame in shots of at least 1 chunk, got {self.chunks}, "
                f"{self.chunk_frames} and {self.longest_shot}. Raise the numbers that are below 1."
            )
        if not 1 <= self.fewest_characters <= self.most_characters <= self.names <= len(NAMES):
            raise ValueError(
                f"A film needs 1 to {len(NAMES)} characters with a name each, got {self.fewest_characters} to "
                f"{self.most_characters} and {self.names} names. Give fewest_characters <= most_characters <= names."
            )
        for share in (self.familiar, self.plain):
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"Shares of characters lie from 0 to 1, got {share}. Use 0 for a real film.")
        if not 0.0 <= self.pace <= FASTEST:
            raise ValueError(f"A film moves 0 to {FASTEST:g} times as fast as usual, got {self.pace}. Use 1.")


def first_rgb_frame(frame: int) -> int:
    """The first RGB frame that latent frame `frame` stands for."""
    return max(0, frame * FRAME_STRIDE - FRAME_STRIDE + 1)


def random_look(rng: random.Random) -> Look:
    """Two well separated colours, a pattern and an outline."""

    def colour() -> tuple[float, float, float]:
        return (rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.98))

    first, second = colour(), colour()
    while sum(abs(a - b) for a, b in zip(first, second, strict=True)) < 0.9:
        second = colour()
    return Look(first, second, rng.choice(PATTERNS), rng.choice(tuple(SHAPES)))


def random_shot(rng: random.Random, name: str, start: int, frames: int) -> Shot:
    """`name` somewhere, doing something."""
    return Shot(
        start,
        frames,
        name,
        rng.choice(tuple(PLACES)),
        rng.choice(tuple(POSITIONS)),
        rng.choice(ACTIONS),
        rng.choice(("", "", "pan left", "pan right")),
    )


def random_film(seed: int, settings: FilmSettings) -> Film:
    """The film of this seed: every character is in it at random, so most of them return."""
    rng = random.Random(seed)
    cast = rng.sample(NAMES[: settings.names], rng.randint(settings.fewest_characters, settings.most_characters))
    looks = {name: random_look(rng) for name in cast}
    if settings.familiar > 0:
        looks = {n: random_look(random.Random(n)) if rng.random() < settings.familiar else x for n, x in looks.items()}
    if settings.plain > 0:
        looks = {n: x._replace(second=x.first) if rng.random() < settings.plain else x for n, x in looks.items()}
    shots: list[Shot] = []
    chunk = 0
    while chunk < settings.chunks:
        length = rng.randint(1, min(settings.longest_shot, settings.chunks - chunk))
        start, frames = chunk * settings.chunk_frames, length * settings.chunk_frames
        shots.append(random_shot(rng, rng.choice(cast), start, frames)._replace(pace=settings.pace))
        chunk += length
    return Film(looks, tuple(shots))


def _soft_step(distance: Tensor, width: float) -> Tensor:
    return torch.sigmoid(distance * (4.0 / width))


@cache
def _panorama(name: str, size: Size) -> Tensor:
    """A landscape that repeats after two screens: `[H, 2W, 3]`."""
    place = PLACES[name]
    y = torch.arange(size.height, dtype=torch.float32)[:, None] / size.scale
    angle = torch.arange(2 * size.width, dtype=torch.float32)[None] * (torch.pi / size.width)
    hills = place.horizon - 14.0 - 8.0 * torch.sin(angle * 2 + place.horizon) - 4.0 * torch.cos(angle * 5)
    colours = torch.tensor([place.sky, place.hill, place.ground])
    shade = 1.0 + 0.12 * (y / HEIGHT - 0.5) + 0.05 * torch.sin(angle * 3)
    hill = _soft_step(y - hills, 7.0)[..., None]
    ground = _soft_step(y - place.horizon - 2.0 * torch.sin(angle * 4), 7.0)[..., None]
    picture = colours[0] * (1 - hill) + colours[1] * hill
    picture = picture * (1 - ground) + colours[2] * ground
    return 0.15 + 0.7 * (picture * shade[..., None]).clamp(0, 1)


@cache
def _light(size: Size) -> Tensor:
    """What the sun adds everywhere, warm from the right and cool from the left, brighter above: `[H, W, 3]`.

    Rotary attention knows only distances: this light, the same in every film, is how a model can tell left from right.
    """
    x = torch.linspace(-1, 1, size.width).expand(size)
    y = torch.linspace(1, -1, size.height)[:, None].expand(size)
    return torch.stack([0.13 * x, 0.1 * y, -0.13 * x], dim=-1)


def _background(shot: Shot, seconds: Tensor, size: Size) -> Tensor:
    """The place of a shot, moved by the camera: `[F, H, W, 3]`."""
    panorama, light = _panorama(shot.place, size), _light(size)
    if CAMERAS[shot.camera] == 0.0:
        return (panorama[:, : size.width] + light)[None].repeat(len(seconds), 1, 1, 1)
    shift = (seconds * (FPS * CAMERAS[shot.camera] * shot.pace * size.scale)).remainder(2 * size.width)  # [F] pixels
    whole = shift.floor().long()
    part = (shift - whole)[:, None, None, None]
    columns = (whole[:, None] + torch.arange(size.width + 1)) % (2 * size.width)  # [F, W + 1]
    strip = panorama[:, columns].transpose(0, 1)  # [F, H, W + 1, 3]
    return strip[:, :, :-1].lerp(strip[:, :, 1:], part) + light


class Motion(NamedTuple):
    """Where a character is at each RGB frame, in pixels, and how far its head leans to the side."""

    x: Tensor
    y: Tensor
    lean: Tensor


def motion(shot: Shot, seconds: Tensor) -> Motion:
    """The way of the character through its shot; `seconds` count from the start of the shot: three `[F]`."""
    still = torch.zeros_like(seconds)
    turn = 2.0 * torch.pi * (seconds * shot.pace)
    x = still + POSITIONS[shot.position]
    y = still + _GROUND_Y
    if shot.action == "walks":
        return Motion(x + 10.0 * torch.sin(turn / 3.0), y, still)
    if shot.action == "jumps":
        return Motion(x, y - 10.0 * torch.sin(turn / 3.0).square(), still)
    if shot.action == "waves":
        return Motion(x, y, 6.0 * torch.sin(turn / 2.0))
    return Motion(x, y + torch.sin(turn / 3.0), still)


def _paint_character(frames: Tensor, look: Look, way: Motion, size: Size) -> Tensor:
    """Paint the character over `frames` `[F, H, W, 3]`, in place; only the columns it can reach are touched."""
    nearest, farthest, reach = way.x.min().item() - size.left, way.x.max().item() - size.left, _REACH * size.scale
    left = max(0, int(nearest * size.scale) - math.ceil(reach))
    right = min(size.width, int(farthest * size.scale) + math.ceil(reach))
    frames_near = frames[:, :, left:right]
    y = torch.arange(size.height, dtype=torch.float32) / size.scale
    y = y[None, :, None] - way.y[:, None, None]  # [F, H, 1]
    x = torch.arange(left, right, dtype=torch.float32) / size.scale + size.left
    x = x[None, None] - way.x[:, None, None]  # [F, 1, W']
    x = x + way.lean[:, None, None] * (y / _HALF_HEIGHT)  # [F, H, W]
    u, v = (x / _HALF_WIDTH), (y / _HALF_HEIGHT).expand_as(x)
    power = SHAPES[look.shape]
    radius = (u.abs().clamp_min(1e-4).pow(power) + v.abs().clamp_min(1e-4).pow(power)).pow(1.0 / power)
    body = _soft_step(1.0 - radius, 2 * _EDGE)[..., None]
    if look.pattern == "halves":
        share = _soft_step(v, 0.5)
    elif look.pattern == "sides":
        share = _soft_step(u, 0.7)
    elif look.pattern == "stripes":
        share = 0.5 + 0.5 * torch.sin(v * (_HALF_HEIGHT * 2.0 * torch.pi / _STRIPE_PERIOD))
    else:
        share = _soft_step(0.55 - radius, 0.5)
    first, second = torch.tensor(look.first), torch.tensor(look.second)
    paint = first + share[..., None] * (second - first)
    frames_near.lerp_(paint, body.expand_as(paint))
    return frames


def render_shot(shot: Shot, look: Look, frames: range | None = None, size: Size = OWN_SIZE) -> Tensor:
    """RGB frames of a shot (all, or those of `frames` counted in RGB frames of the film): `[F, H, W, 3]` in 0..1."""
    start = first_rgb_frame(shot.start)
    wanted = frames if frames is not None else range(start, first_rgb_frame(shot.start + shot.frames))
    seconds = (torch.tensor(list(wanted), dtype=torch.float32) - start) / FPS
    return _paint_character(_background(shot, seconds, size), look, motion(shot, seconds), size)


def render_film(film: Film, size: Size = OWN_SIZE) -> Tensor:
    """The whole film: `[4 (T - 1) + 1, H, W, 3]`, float32 in 0..1, for T latent frames."""
    return torch.cat([render_shot(shot, film.looks[shot.name], size=size) for shot in film.shots])


def character_box(shot: Shot, rgb_frame: int) -> tuple[int, int, int, int]:
    """The character's box at an RGB frame of the film, inside the picture: top, left, bottom, right (pixels)."""
    seconds = torch.tensor([(rgb_frame - first_rgb_frame(shot.start)) / FPS])
    way = motion(shot, seconds)
    top = round(way.y.item() - BOX_HEIGHT / 2)
    left = round(way.x.item() - BOX_WIDTH / 2)
    return max(0, top), max(0, left), min(HEIGHT, top + BOX_HEIGHT), min(WIDTH, left + BOX_WIDTH)


def prompts_by_frame(film: Film) -> list[str]:
    """The prompt of each latent frame."""
    return [shot.prompt for shot in film.shots for _ in range(shot.frames)]
