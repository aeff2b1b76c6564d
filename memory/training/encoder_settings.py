"""How a memory encoder is trained, as plain data, and the spec of the encoder that such a training makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from ..encoder_spec import EncoderSpec, LowBranch, Modulation, Rate
from .encoder_family import Family
from .storyworld import OWN_SIZE, SIZE_STEP, USUAL_PACE, FilmSettings, Size

FINETUNE_SHIFT = 8.0
"""Only frames of much noise need history; a returning character is decided there."""
BASES: dict[Family, str] = {
    "wan": "the tiny model that comes with LongReel",
    "hunyuan": "the tiny HunyuanVideo that comes with LongReel",
}
"""The tiny model of each family, as an encoder's file names it."""
LONGEST_SHOT = 5
"""Latent frames of a cartoon's shot at most."""


class EncoderStage(Enum):
    """Stage I and stage II."""

    PRETRAIN = "pretrain"
    FINETUNE = "finetune"


class Branches(Enum):
    """Which branches an encoder has; the low-resolution one has no weights.

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
    times. `branches` are those that the encoder has, `modulation` the noise level that its tokens are told, `own_prompts` whether
    they read the prompts of their own shots, `proportional` whether they count as what they stand for. `start` names what
    training starts from, `films` what is seen; cartoons have shots of at most `longest_shot` frames and move at `pace` times the
    usual. `family` is that of the model, of `BASES`. `processes` train at once, each on `clips` films of its own a step. `cross_layers` is how many layers of the model read the
    encoder's hidden states, or 0. `model` names a large one, which computes in `dtype`; tiny ones have no name. `beside` says in words
    which encoder is trained beside this one, if any. `low` is what the low-resolution branch looks at: smaller latents, or the latents
    of a smaller video, for films that go on by `segment_frames`.
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
    processes: int = 1
    cross_layers: int = 0
    beside: str = ""
    low: str = LowBranch.LATENTS.value
    family: Family = "wan"
    model: str = ""
    dtype: str = "fp32"

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
        if not 0 < self.learning_rate <= 1:
            raise ValueError(
                f"Training an encoder needs a learning rate above 0 and of at most 1, got {self.learning_rate}. Take 0.0001."
            )
        if self.cross_layers and self.branches not in (Branches.BOTH.value, Branches.HIGH.value):
            raise ValueError(
                f"Cross-attention reads the high-resolution branch, got an encoder of branches {self.branches!r}. Train both, or "
                "leave cross-attention out."
            )
        if LowBranch(self.low) is LowBranch.NONE or (self.low == LowBranch.VIDEO.value and not self.has_low):
            raise ValueError(
                f"A low-resolution branch looks at {LowBranch.LATENTS.value} or {LowBranch.VIDEO.value}, got {self.low!r} for an "
                f"encoder of branches {self.branches!r}. Train both, or the low one."
            )
        if self.family not in BASES:
            raise ValueError(
                f"Training an encoder needs a family of {', '.join(BASES)}, got {self.family!r}. Name one."
            )
        if self.cross_layers and self.family != "wan":
            raise ValueError(
                "An encoder's hidden states are read by the layers of a Wan alone, got cross-attention for the family "
                f"{self.family}. Leave it out."
            )
        if self.low == LowBranch.VIDEO.value and (self.family != "wan" or self.model):
            raise ValueError(
                f"A smaller video is made by the VAE of the tiny Wan alone, got low {self.low!r} for {self.model or BASES[self.family]}. "
                "Take an encoder of smaller latents."
            )
        FilmSettings(longest_shot=self.longest_shot, pace=self.pace)  # refuses films that cannot be
        if self.history_frames < rate.frames or not 1 <= self.kept_frames <= self.history_frames:
            raise ValueError(
                f"Training a {rate} encoder needs films of at least {max(rate.frames, self.kept_frames)} frames, got "
                f"{self.history_frames}: {self.kept_frames} of them, 1 or more, have to come back. Make the films longer."
            )

    @property
    def has_low(self) -> bool:
        """Whether the encoder has a low-resolution branch."""
        return self.branches in (Branches.BOTH.value, Branches.LOW.value)

    @property
    def film_frames(self) -> int:
        """Latent frames of a film: the history, and in stage II what goes on with it."""
        return self.longest_film if self.stage == EncoderStage.FINETUNE.value else self.history_frames

    @property
    def longest_film(self) -> int:
        """Latent frames of a film of stage II: by it videos are divided in both stages, which so leave out the same."""
        return self.history_frames + self.segment_frames


def tiny_encoder_spec(config: EncoderTraining, width: int) -> EncoderSpec:
    """The encoder that this training makes."""
    branches = Branches(config.branches)
    return EncoderSpec(
        width=width,
        rate=Rate.parse(config.rate),
        stages=() if branches is Branches.PATCHIFIER else config.widths,
        heads=4,
        high=branches is not Branches.LOW,
        low=LowBranch(config.low) if config.has_low else LowBranch.NONE,
        modulation=Modulation(config.modulation),
        own_prompts=config.own_prompts,
        proportional=config.proportional,
        cross_layers=config.cross_layers,
        base=BASES[config.family],
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
        cross_layers=spec.cross_layers,
        low=(LowBranch.LATENTS if spec.low is LowBranch.NONE else spec.low).value,
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
