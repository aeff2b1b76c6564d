"""What a memory encoder is, as plain data: how much it compresses, how wide it is, what it was trained for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, NamedTuple

PATCH = 2
"""Rows and columns of latents that the model's own embedding joins into a token."""
LARGEST_WIDTH, LARGEST_STAGE, MOST_LAYERS, MOST_CROSS_LAYERS, LONGEST_TEXT = 16_384, 4_096, 16, 256, 65_536
"""Bounds of what a file may ask for; the widest model that is known has a width of 5,120."""


class Rate(NamedTuple):
    """How many tokens of the model, each way and in time, become one of memory."""

    rows: int
    columns: int
    frames: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.frames}"

    @classmethod
    def parse(cls, text: str) -> Rate:
        """The rate that is written like `4x4x2`; ValueError for one that encoders do not have."""
        for rate in RATES:
            if str(rate) == text:
                return rate
        raise ValueError(f"A memory encoder needs a rate of {', '.join(map(str, RATES))}, got {text!r}. Choose one.")


RATES = (Rate(4, 4, 2), Rate(2, 2, 2), Rate(2, 2, 1), Rate(2, 2, 4), Rate(2, 2, 8), Rate(4, 4, 4))
"""Those of TinyHistory, and the coarsest of FramePack's kernels; its middle one is 2x2x2."""
ANY = 0
"""The width and the channels of an encoder without weights: those of whatever model reads it."""


class LowBranch(Enum):
    """What the low-resolution branch looks at: the latents of a smaller video, smaller latents, or nothing."""

    VIDEO = "video"
    LATENTS = "latents"
    NONE = "none"


class Modulation(Enum):
    """Which noise level tokens of memory are told to have: that of the frames being made, or none."""

    TARGET = "target"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """A memory encoder for a model of this `width`; `stages` are the widths of the high-resolution branch.

    Without stages that branch is one large patchifier: a single convolution from latents to the model's width. `high` off leaves the
    low-resolution branch alone, which has no weights of its own and may be for `ANY` model. `own_prompts` lets every token read the
    prompt of its own shot, where the paper has all of them read that of the frames being made; `proportional` lets it count in
    attention as the tokens that it stands for do, where the paper counts it as one. `cross_layers` is how many layers the model has, where
    all of them read the encoder's last hidden states, too, or 0. `base` is the model that it was
    trained with and `trained` what is worth knowing of that training; both are told to the user and change nothing.
    Raises ValueError when a number makes no sense.
    """

    width: int
    rate: Rate = RATES[0]
    channels: int = 16
    stages: tuple[int, ...] = (64, 128, 256, 512)
    heads: int = 8
    attention_layers: int = 1
    high: bool = True
    low: LowBranch = LowBranch.LATENTS
    modulation: Modulation = Modulation.TARGET
    own_prompts: bool = False
    proportional: bool = False
    base: str = ""
    trained: Mapping[str, str | int | float] = field(default_factory=dict)
    cross_layers: int = 0

    def __post_init__(self) -> None:
        if not self.fits_any:
            _within("width", self.width, LARGEST_WIDTH)
            _within("number of channels", self.channels, LARGEST_STAGE)
        if len(self.stages) > MOST_LAYERS:
            raise ValueError(f"A memory encoder needs 0 to {MOST_LAYERS} stages, got {len(self.stages)}.")
        for stage in self.stages:
            _within("width of a stage", stage, LARGEST_STAGE)
        last = self.stages[-1] if self.stages else self.width
        _within("number of heads", self.heads, last)
        if not 0 <= self.attention_layers <= MOST_LAYERS:
            raise ValueError(
                f"A memory encoder needs 0 to {MOST_LAYERS} attention layers, got {self.attention_layers}."
            )
        if last % self.heads:
            raise ValueError(f"The last stage needs a width that {self.heads} heads can share, got {last}.")
        if not 0 <= self.cross_layers <= MOST_CROSS_LAYERS:
            raise ValueError(
                f"A model has 1 to {MOST_CROSS_LAYERS} layers with cross-attention, got {self.cross_layers}."
            )
        if self.cross_layers and not (self.high and self.stages):
            raise ValueError(
                "Cross-attention needs a high-resolution branch of several stages, whose last one it reads."
            )
        if not self.high and self.low is LowBranch.NONE:
            raise ValueError("A memory encoder needs a branch, got neither the high- nor the low-resolution one.")

    @property
    def fits_any(self) -> bool:
        """Whether it has no weights that a model would have to fit."""
        return not self.high and self.width == self.channels == ANY

    @property
    def hidden_width(self) -> int:
        """Width of the hidden states that the model's layers read, or 0."""
        return self.stages[-1] if self.cross_layers else 0

    @property
    def looks_at_pictures(self) -> bool:
        """Whether it needs the film's pictures, and so the VAE."""
        return self.low is LowBranch.VIDEO

    @property
    def least_size(self) -> int:
        """Latents that a picture needs each way."""
        return PATCH * max(self.rate.rows, self.rate.columns)

    @property
    def kind(self) -> str:
        """What sets it apart from others, in few letters."""
        return str(self.rate)

    @property
    def in_words(self) -> str:
        """How much it compresses, for an artist."""
        return f"{self.rate}: one token for {math.prod(self.rate)}"

    def reach(self, longest_frames: int | None) -> int | None:
        """Frames that are told where the user asks for so many; None is all of them."""
        return longest_frames

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens that tell so many frames, of this size in latents."""
        return math.prod(self.grid(frames, height, width))

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens for latents `[frames, height, width]`; what does not fill a token is left out."""
        rows, columns = height // PATCH // self.rate.rows, width // PATCH // self.rate.columns
        return frames // self.rate.frames, rows, columns

    def low_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, height and width of the latents that the low-resolution branch looks at."""
        return frames // self.rate.frames, height // self.rate.rows, width // self.rate.columns

    def to_json(self) -> str:
        """All of it as text, for a file."""
        plain = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        if not self.cross_layers:
            del plain["cross_layers"]  # so that files and films without it stay what they were
        return json.dumps(plain, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """What `to_json` wrote. Raises ValueError for anything else."""
        if len(text) > LONGEST_TEXT:
            raise ValueError(f"The description needs at most {LONGEST_TEXT} letters, got {len(text)}.")
        try:
            plain = json.loads(text)
        except RecursionError as error:
            raise ValueError("The description is nested without end.") from error
        if isinstance(plain, dict):
            plain = {"cross_layers": 0, **plain}
        if not isinstance(plain, dict) or set(plain) != {entry.name for entry in fields(cls)}:
            raise ValueError("The description needs exactly the entries of a memory encoder.")
        numbers = ("width", "channels", "heads", "attention_layers", "cross_layers")
        switches = ("high", "own_prompts", "proportional")
        known = all(type(plain[name]) is int for name in numbers) and all(
            type(plain[name]) is bool for name in switches
        )
        if not known:
            raise ValueError(
                f"The description needs whole numbers for {', '.join(numbers)}, and yes or no for {', '.join(switches)}."
            )
        stages, trained = plain["stages"], plain["trained"]
        if not isinstance(stages, list) or any(type(stage) is not int for stage in stages):
            raise ValueError("The description needs a list of whole numbers for stages.")
        facts = isinstance(trained, dict) and all(type(fact) in (str, int, float) for fact in trained.values())
        if not facts or not isinstance(plain["base"], str):
            raise ValueError("The description needs texts and numbers for what it was trained with.")
        return cls(
            **{name: plain[name] for name in (*numbers, *switches, "base", "trained")},
            rate=Rate.parse(plain["rate"]),
            stages=tuple(stages),
            low=LowBranch(plain["low"]),
            modulation=Modulation(plain["modulation"]),
        )


def smaller_frames(rate: Rate) -> EncoderSpec:
    """An encoder without weights: the film at a fraction of its size, through the model's own embedding.

    Nothing was trained to read it, so it has what helps a model that was not: tokens that are clean, read the prompt of their own
    shot and count as what they stand for.
    """
    return EncoderSpec(
        ANY,
        rate,
        channels=ANY,
        high=False,
        modulation=Modulation.CLEAN,
        own_prompts=True,
        proportional=True,
    )


def _within(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise ValueError(f"A memory encoder needs a {name} of 1 to {largest}, got {value}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Rate):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
