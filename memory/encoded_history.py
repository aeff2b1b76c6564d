"""The film so far as an encoder tells it: every new stretch is encoded once and appended, the newest frames stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .encoder import token_positions
from .encoder_spec import PATCH, EncoderSpec, Modulation
from .packed_encoder import GROUPS, PLACES, REACH, PackedSpec, TokenSpec
from .select import EVERYTHING
from .transitions import Reach


class Stretch(NamedTuple):
    """So many neighbouring tokens of one shot, and the prompt `[W, C]` that they read, before the model's own embedding.

    None is the prompt of the frames being made. `pooled` `[P]` is its one vector for all words, where the model reads one.
    """

    tokens: int
    prompt: Tensor | None
    pooled: Tensor | None = None


def stretches(parts: Iterable[tuple[int, Tensor | None] | Stretch]) -> tuple[Stretch, ...]:
    """Counts of tokens with their prompts, neighbours under the same one joined."""
    found: list[Stretch] = []
    for part in parts:
        one = Stretch(*part)
        if found and found[-1].prompt is one.prompt:
            found[-1] = one._replace(tokens=found[-1].tokens + one.tokens)
        else:
            found.append(one)
    return tuple(found)


class Level(NamedTuple):
    """So many neighbouring tokens that are told the same noise level."""

    tokens: int
    modulation: Modulation


class History(NamedTuple):
    """Tokens `[1 or B, M, width]` that join a model's own, and their positions `[M, 3]`: frame, row and column. `[n, M, 3]` are several
    for each: it is turned by the mean of their rotations.

    Frames count from the first of those being made, so history lies below 0; `target_frames` `[T]` are the times of those
    being made where they are not simply 0, 1, 2, ... `modulation` is the noise level that all tokens are told, or stretches of them.
    `prompts` are what each film of the batch reads token by token, one film's for all of them, or nothing, where history reads
    the prompt of the frames being made. `counts` `[M]` says how many of the model's own tokens each is to count as in
    attention; None is one each.
    """

    tokens: Tensor
    positions: Tensor
    modulation: Modulation | tuple[Level, ...]
    target_frames: Tensor | None = None
    prompts: tuple[tuple[Stretch, ...], ...] = ()
    counts: Tensor | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """Noise levels of all tokens, in their order."""
        if isinstance(self.modulation, Modulation):
            return (Level(self.tokens.shape[1], self.modulation),)
        return self.modulation


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """How much of the film is read, in latent frames: `window_frames` of the newest whole, `longest_frames` through the
    encoder (None is all of it). Raises ValueError when a count makes no sense."""

    window_frames: int = 3
    longest_frames: int | None = None

    def __post_init__(self) -> None:
        if self.window_frames < 0:
            raise ValueError(f"The window of a memory encoder needs 0 or more frames, got {self.window_frames}.")
        if self.longest_frames is not None and self.longest_frames < 1:
            raise ValueError(f"The history of a memory encoder needs at least 1 frame, got {self.longest_frames}.")


def token_counts(spec: EncoderSpec, parts: Sequence[int], window: bool) -> Tensor | None:
    """What tokens count as, for `parts` of so many tokens, the last of them whole frames where there is a `window`."""
    if not spec.proportional:
        return None
    counts = torch.full((sum(parts),), float(math.prod(spec.rate)))
    if window:
        counts[-parts[-1] :] = 1.0
    return counts


class FilmEncoder(NamedTuple):
    """An encoder as one film reads through it.

    `encode` turns latents `[1, C, n, H, W]` into tokens `[1, M, width]`: n is a multiple of the encoder's frames, or what
    FramePack's kind reaches.
    """

    spec: TokenSpec
    longest_frames: int | None
    encode: Callable[[Tensor], Tensor]


class _Part(NamedTuple):
    """Neighbouring tokens `[1, n, width]` of one encoder, their positions `[n, 3]` or several `[4, n, 3]`, the frame whose prompt they are to
    read, and how many of the model's own tokens each stands for."""

    spec: TokenSpec
    tokens: Tensor
    positions: Tensor
    frame: int
    stands_for: int


class _Told:
    """The film as one encoder tells it: tokens of every stretch, oldest first, and the newest frames, too few for a token yet."""

    def __init__(self, encoder: FilmEncoder, spec: EncoderSpec) -> None:
        self.encoder, self._spec = encoder, spec
        self._encoded: list[tuple[int, Tensor]] = []  # first frame and tokens
        self._waiting: Tensor | None = None

    def append(self, latents: Tensor, film: int) -> None:
        """The film goes on, and is `film` frames long now."""
        waiting = latents if self._waiting is None else torch.cat([self._waiting, latents], dim=2)
        step = self._spec.rate.frames
        whole = waiting.shape[2] // step * step
        if whole:
            first = film - waiting.shape[2]
            tokens = self.encoder.encode(waiting[:, :, :whole]).unflatten(1, (whole // step, -1))
            self._encoded += [(first + index * step, part) for index, part in enumerate(tokens.unbind(1))]
        self._waiting = waiting[:, :, whole:]

    def read(self, film: int, size: tuple[int, int], bank_from: int) -> list[_Part]:
        """What the frames behind `film` others read, of none before `bank_from` and no farther back than this encoder reaches."""
        spec, longest = self._spec, self.encoder.longest_frames
        oldest = bank_from if longest is None else max(bank_from, film - longest)
        grid = spec.grid(spec.rate.frames, *size)
        return [
            _Part(spec, tokens, token_positions(spec, grid, first - film), first, math.prod(spec.rate))
            for first, tokens in self._encoded
            if first >= oldest
        ]


class _Packed:
    """The film as embeddings of FramePack's kind tell it: its newest frames, anew whenever it goes on."""

    def __init__(self, encoder: FilmEncoder) -> None:
        self._encoder = encoder
        self._newest: Tensor | None = None

    def append(self, latents: Tensor, film: int) -> None:
        """The film goes on, and is `film` frames long now."""
        newest = latents if self._newest is None else torch.cat([self._newest, latents], dim=2)
        self._newest = newest[:, :, -REACH:]

    def read(self, film: int, size: tuple[int, int], bank_from: int) -> list[_Part]:
        """As `_Told.read`. Where a kernel's frames were not yet there FramePack knows zeros; what holds no frame is left out."""
        spec, longest, encode = self._encoder
        known = min(film - bank_from, REACH if longest is None else longest, REACH)
        if self._newest is None or known < 1:
            return []
        newest = self._newest[:, :, -known:]
        tokens = encode(functional.pad(newest, (0, 0, 0, 0, REACH - newest.shape[2], 0)))
        parts = tokens.split([group.tokens(*size) for group in GROUPS], dim=1)
        return [
            _Part(spec, part, group.positions(*size), max(0, film + group.first), group.factor**3)
            for group, part in zip(GROUPS, parts, strict=True)
            if group.told(newest.shape[2])
        ]


class EncodedHistory:
    """What one film remembers through encoders, one or several at once. State of one run.

    The newest `window_frames` are read whole, behind all tokens, as the first encoder would have tokens read; `embed` turns them
    into the model's own `[1, M, width]`.
    """

    def __init__(self, encoders: Sequence[FilmEncoder], window_frames: int, embed: Callable[[Tensor], Tensor]) -> None:
        self.encoders, self.window_frames = tuple(encoders), window_frames
        self._told = [
            _Packed(encoder) if isinstance(encoder.spec, PackedSpec) else _Told(encoder, encoder.spec)
            for encoder in encoders
        ]
        self._embed = embed
        self._window: Tensor | None = None
        self._prompts: list[tuple[Tensor | None, Tensor | None]] = []  # words, and one vector for them, of each frame
        self._film = 0
        self._size = (0, 0)
        self.current: History | None = None
        self.read_frames: tuple[int, ...] = ()

    @property
    def frames_worth(self) -> float:
        """What is read now, in tokens of a whole frame."""
        if self.current is None:
            return 0.0
        return self.current.tokens.shape[1] / (self._size[0] // PATCH * (self._size[1] // PATCH))

    @property
    def remembered(self) -> int:
        """Frames that the next ones can read: the whole film, or the longest history and the window."""
        reaches = [self._film if longest is None else longest for _, longest, _ in self.encoders]
        return min(max(*reaches, self.window_frames), self._film)

    def most_tokens(self, film_frames: int, height: int, width: int) -> int:
        """Tokens that a film of this many latent frames, and of this size in latents, ever reads at once."""
        told = [(spec, longest) for spec, longest, _ in self.encoders]
        return most_tokens(told, self.window_frames, film_frames, height, width)

    def append(self, latents: Tensor, prompt: Tensor | None = None, pooled: Tensor | None = None) -> None:
        """The film goes on with clean latents `[1, C, T, H, W]`. Frames that fill no token wait for the next ones.

        `prompt` `[W, C]` is what they were made under, `pooled` `[P]` one vector for all of it where the model reads one; encoders
        whose tokens read prompts of their own need them.
        """
        self._prompts += [(prompt, pooled)] * latents.shape[2]
        self._film += latents.shape[2]
        self._size = (latents.shape[3], latents.shape[4])
        for told in self._told:
            told.append(latents, self._film)
        newest = latents if self._window is None else torch.cat([self._window, latents], dim=2)
        self._window = newest[:, :, max(0, newest.shape[2] - self.window_frames) :]

    def begin(self, reach: Reach = EVERYTHING) -> None:
        """Lay out what the next frames read, `current`: nothing of the bank or window that `reach` closes."""
        parts = [part for told in self._told for part in told.read(self._film, self._size, reach.bank_from)]
        self.read_frames = self._whole_frames(reach)
        if self.read_frames:
            parts += self._window_parts()
        self.current = self._joined(parts) if parts else None

    def _window_parts(self) -> list[_Part]:
        assert self._window is not None
        count = len(self.read_frames)
        tokens = self._embed(self._window[:, :, -count:]).unflatten(1, (count, -1)).unbind(1)
        rows, columns = (torch.arange(length // PATCH, dtype=torch.float32) for length in self._size)
        return [
            _Part(
                self.encoders[0].spec,
                part,
                torch.cartesian_prod(torch.tensor([float(frame - self._film)]), rows, columns),
                frame,
                1,
            )
            for frame, part in zip(self.read_frames, tokens, strict=True)
        ]

    def _joined(self, parts: Sequence[_Part]) -> History:
        levels = [
            Level(sum(part.tokens.shape[1] for part in same), modulation)
            for modulation, same in groupby(parts, lambda part: part.spec.modulation)
        ]
        read = stretches(Stretch(part.tokens.shape[1], *self._prompt_of(part)) for part in parts)
        counts = [
            torch.full((part.tokens.shape[1],), float(part.stands_for if part.spec.proportional else 1))
            for part in parts
        ]
        return History(
            torch.cat([part.tokens for part in parts], dim=1),
            _positions(parts),
            levels[0].modulation if len(levels) == 1 else tuple(levels),
            prompts=(read,) if any(stretch.prompt is not None for stretch in read) else (),
            counts=torch.cat(counts) if any(part.spec.proportional for part in parts) else None,
        )

    def _prompt_of(self, part: _Part) -> tuple[Tensor | None, Tensor | None]:
        if not part.spec.own_prompts:
            return None, None
        prompt, pooled = self._prompts[part.frame]
        if prompt is None:
            raise ValueError(
                "A memory encoder whose tokens read prompts of their own needs that of every frame, got none for frame "
                f"{part.frame}."
            )
        return prompt, pooled

    def _whole_frames(self, reach: Reach) -> tuple[int, ...]:
        kept = 0 if self._window is None else self._window.shape[2]
        return tuple(range(max(self._film - kept, reach.window_from), self._film))


def _positions(parts: Sequence[_Part]) -> Tensor:
    """One for each token, or several for all where any has several."""
    if all(part.positions.ndim == 2 for part in parts):
        return torch.cat([part.positions for part in parts])
    return torch.cat([part.positions.expand(PLACES, -1, -1) for part in parts], dim=1)


def most_tokens(
    told: Iterable[tuple[TokenSpec, int | None]], window_frames: int, film_frames: int, height: int, width: int
) -> int:
    """Tokens that a film of this many latent frames, and of this size in latents, ever reads at once.

    `told` are its encoders, and how many frames each tells at most; None is all of them.
    """
    total = min(window_frames, film_frames) * (height // PATCH) * (width // PATCH)
    for spec, longest in told:
        total += spec.tokens(film_frames if longest is None else min(longest, film_frames), height, width)
    return total


def history_bytes(tokens: int, width: int, dtype: torch.dtype, kept_layers: int) -> int:
    """Bytes on the card: tokens are in pieces and joined once for the frames being made, beside what is kept of layers."""
    return 2 * (1 + kept_layers) * tokens * width * dtype.itemsize


KeptLayers = dict[int, tuple[Tensor, Tensor]]
"""Keys and values `[1, M, width]` of history's tokens in every layer, by its number."""


@dataclass(slots=True)
class HistorySession:
    """State of one run: the history, the most tokens that it reads at once and their width, and the tokens of a frame being made.

    `kept_layers` is 0, or of how many layers keys and values are kept from the first call for the frames being made to the others.
    """

    history: EncodedHistory
    tokens: int
    width: int
    frame_tokens: int
    dtype: torch.dtype
    kept_layers: int = 0
    host_bytes: int = 0
    tier: str = "card"
    _kept: KeptLayers = field(default_factory=dict)
    _kept_of: History | None = None

    @property
    def peak_bytes(self) -> int:
        """Bytes on the card."""
        return history_bytes(self.tokens, self.width, self.dtype, self.kept_layers)

    def kept(self, history: History) -> KeptLayers:
        """What calls before this one kept of `history`; what was kept of another is forgotten."""
        if history is not self._kept_of:
            self._kept, self._kept_of = {}, history
        return self._kept

    def forget(self) -> None:
        """Let go of what was kept: the next call keeps it anew."""
        self._kept, self._kept_of = {}, None

    def room(self, device: torch.device) -> Tensor:
        """As many bytes on the device as the run may need, held as long as this is."""
        return torch.empty(self.peak_bytes, dtype=torch.uint8, device=device)
