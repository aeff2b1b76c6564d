"""FramePack's memory: the newest seconds of a film through three embeddings of patches, coarser the older they are.

After FramePack-F1 (arXiv 2504.12626): the newest frame through a kernel of the model's own size, two before it through one twice
as large each way, sixteen before these through one four times as large; what is older is not told. A picture that fills no whole
number of kernels is filled up with its edge. A token is turned by the mean of the rotations of what it joins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from .encoder_file import odd_weight
from .encoder_spec import LARGEST_STAGE, LARGEST_WIDTH, PATCH, EncoderSpec, Modulation
from .whole_file import explained

PREFIX = "clean_x_embedder."
KERNELS = {"proj_4x": 4, "proj_2x": 2, "proj": 1}
"""Embeddings by the name of their weights, and how many of the model's tokens they join each way and in time."""
REACH = 19
"""Frames that are told."""
PLACES = 4
"""Places along each axis that a token's rotation is the mean of: the largest factor."""


class Group(NamedTuple):
    """Frames that are joined into one frame of tokens: those from `first` on, counted from now, and the kernel's factor."""

    factor: int
    first: int

    def tokens(self, height: int, width: int) -> int:
        """How many they become, of this size in latents."""
        return -(-height // (PATCH * self.factor)) * -(-width // (PATCH * self.factor))

    def told(self, frames: int) -> bool:
        """Whether any of them is there in a film of so many frames."""
        return self.first + self.factor > -frames

    def positions(self, height: int, width: int) -> Tensor:
        """Frames, rows and columns of the model's own that every token joins `[4, n, 3]`, the smaller factors' repeated."""

        def joined(count: int) -> Tensor:
            steps = -(-count // self.factor)
            places = torch.arange(steps * self.factor).clamp(max=count - 1).view(steps, self.factor).float()
            return places.repeat_interleave(PLACES // self.factor, dim=1).T

        times = joined(self.factor) + self.first
        axes = zip(times, joined(height // PATCH), joined(width // PATCH), strict=True)
        return torch.stack([torch.cartesian_prod(*places) for places in axes])


GROUPS = (*(Group(4, first) for first in range(-REACH, -3, 4)), Group(2, -3), Group(1, -1))
"""All frames that are told, oldest first."""


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """Three embeddings of FramePack's for a model of this `width`. Raises ValueError when a number makes no sense."""

    width: int
    channels: int = 16

    modulation: ClassVar[Modulation] = Modulation.TARGET
    own_prompts: ClassVar[bool] = False
    proportional: ClassVar[bool] = False
    fits_any: ClassVar[bool] = False
    looks_at_pictures: ClassVar[bool] = False
    least_size: ClassVar[int] = PATCH
    cross_layers: ClassVar[int] = 0
    hidden_width: ClassVar[int] = 0
    base: ClassVar[str] = ""
    kind: ClassVar[str] = "of FramePack's kind"
    in_words: ClassVar[str] = "the newest frame whole, 2 before it as 2x2x2, 16 before these as 4x4x4"
    trained: ClassVar[Mapping[str, str | int | float]] = {}

    def __post_init__(self) -> None:
        if not (1 <= self.width <= LARGEST_WIDTH and 1 <= self.channels <= LARGEST_STAGE):
            raise ValueError(
                f"Embeddings of FramePack's kind need a width of 1 to {LARGEST_WIDTH} and 1 to {LARGEST_STAGE} channels, got "
                f"{self.width} and {self.channels}."
            )

    def reach(self, longest_frames: int | None) -> int | None:
        """Frames that are told where the user asks for so many; None is all of them."""
        return REACH if longest_frames is None else min(REACH, longest_frames)

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens that tell so many frames, of this size in latents."""
        return sum(group.tokens(height, width) for group in GROUPS if group.told(frames))

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps({"kind": self.kind, **asdict(self)}, sort_keys=True)


TokenSpec = EncoderSpec | PackedSpec
"""What may tell a film in tokens."""


class PackedEncoder(nn.Module):
    """Latents `[B, C, 19, H, W]`, the newest last, to tokens `[B, M, width]`, the oldest first.

    `operations` gives the layers, as for `MemoryEncoder`.
    """

    def __init__(self, spec: PackedSpec, operations: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.embeddings: list[Any] = []
        for name, factor in KERNELS.items():
            size = (factor, PATCH * factor, PATCH * factor)
            self.embeddings.append(operations.Conv3d(spec.channels, spec.width, size, stride=size, **factory))
            self.add_module(name, self.embeddings[-1])

    def forward(self, latents: Tensor) -> Tensor:
        """Frame by frame, row by row."""
        made = []
        for embedding, factor in zip(self.embeddings, KERNELS.values(), strict=True):
            firsts = [REACH + group.first for group in GROUPS if group.factor == factor]
            frames = latents[:, :, firsts[0] : firsts[-1] + factor].to(embedding.weight.dtype)
            rows, columns = (-length % (PATCH * factor) for length in frames.shape[3:])
            filled = functional.pad(frames, (0, columns, 0, rows, 0, 0), mode="replicate")
            made.append(embedding(filled).flatten(2).transpose(1, 2))
        return torch.cat(made, dim=1)


def is_packed(path: Path) -> bool:
    """Whether a file has any of FramePack's embeddings, alone or among the weights of a model."""
    try:
        with explained(f"read {path}"), safe_open(path, framework="pt") as file:
            return any(name.startswith(PREFIX) for name in file.keys())  # noqa: SIM118
    except SafetensorError:
        return False


def read_packed(path: Path) -> tuple[PackedSpec, dict[str, Tensor]]:
    """The embeddings in a file, whatever else it holds. Raises ValueError unless all are there, fitting and finite."""
    needed = [f"{name}.{kind}" for name in KERNELS for kind in ("weight", "bias")]
    with explained(f"read {path}"), safe_open(path, framework="pt") as file:
        missing = {f"{PREFIX}{name}" for name in needed} - set(file.keys())
        if missing:
            raise ValueError(
                f"{path.name} needs the {len(needed)} weights of FramePack's three embeddings, got none called "
                f"{min(missing)}. A model in several files has them all in one: take that one."
            )
        found = file.get_slice(f"{PREFIX}proj.weight").get_shape()
        if len(found) < 2:
            raise ValueError(
                f"{path.name} needs embeddings as filters of frames, got {found}. Take FramePack's own file."
            )
        spec = PackedSpec(*found[:2])
        with torch.device("meta"):
            shapes = {name: list(tensor.shape) for name, tensor in PackedEncoder(spec).state_dict().items()}
        for name in needed:
            found = file.get_slice(f"{PREFIX}{name}").get_shape()
            if found != shapes[name]:
                raise ValueError(
                    f"{path.name} needs {PREFIX}{name} in the shape {shapes[name]}, got {found}. Take FramePack's own file."
                )
        weights = {name: file.get_tensor(f"{PREFIX}{name}") for name in needed}
    if odd := odd_weight(weights):
        raise ValueError(
            f"The weights of {path.name} need to be finite numbers, but {PREFIX}{odd} has others: the file is damaged. Fetch it again."
        )
    return spec, weights
