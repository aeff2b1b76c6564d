"""The film so far as an encoder tells it: every new stretch is encoded once and appended, the newest frames stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .committed_history import WINDOW, Commits, PartKey, Segment
from .cross_attention import CrossReader, together
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
    attention; None is one each. `cross` is what every layer adds to the frames being made, or None.
    """

    tokens: Tensor
    positions: Tensor
    modulation: Modulation | tuple[Level, ...]
    target_frames: Tensor | None = None
    prompts: tuple[tuple[Stretch, ...], ...] = ()
    counts: Tensor | None = None
    cross: CrossReader | None = None

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


class FilmEncoder(NamedTuple):
    """An encoder as one film reads through it.

    `encode` turns latents `[1, C, n, H, W]` into tokens `[1, M, width + hidden_width]`: n is a multiple of the encoder's frames, or
    what FramePack's kind reaches. `cross` reads the hidden states `[1, M, hidden_width]` that lie behind them.
    """

    spec: TokenSpec
    longest_frames: int | None
    encode: Callable[[Tensor], Tensor]
    cross: Callable[[Tensor], CrossReader] | None = None


class _Part(NamedTuple):
    """Neighbouring tokens `[1, n, width]` of one encoder, their positions `[n, 3]` or several `[4, n, 3]`, the frame whose prompt they are to
    read, how many of the model's own tokens each stands for, the number of the encoder, and its hidden states `[1, n, hidden]`, if any."""

    spec: TokenSpec
    tokens: Tensor
    positions: Tensor
    frame: int
    stands_for: int
    number: int
    hidden: Tensor | None = None

    @property
    def key(self) -> PartKey:
        """Which part of the film's history it is."""
        return PartKey(self.number, self.frame)

    @property
    def counts(self) -> Tensor:
        """How often each token counts `[n]`."""
        return torch.full((self.tokens.shape[1],), float(self.stands_for if self.spec.proportional else 1))


class _Told:
    """The film as one encoder tells it: tokens of every stretch, oldest first, and the newest frames, too few for a token yet."""

    def __init__(self, encoder: FilmEncoder, spec: EncoderSpec, number: int) -> None:
        self.encoder, self._spec, self._number = encoder, spec, number
        self._encoded: list[tuple[int, Tensor]] = []  # first frame, and what `encode` made
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
            self._part(token_positions(spec, grid, first - film), first, told)
            for first, told in self._encoded
            if first >= oldest
        ]

    def _part(self, positions: Tensor, first: int, told: Tensor) -> _Part:
        spec = self._spec
        tokens, hidden = told.split([told.shape[-1] - spec.hidden_width, spec.hidden_width], dim=-1)
        stands_for = math.prod(spec.rate)
        return _Part(spec, tokens, positions, first, stands_for, self._number, hidden if spec.hidden_width else None)


class _Packed:
    """The film as embeddings of FramePack's kind tell it: its newest frames, anew whenever it goes on."""

    def __init__(self, encoder: FilmEncoder, number: int) -> None:
        self._encoder, self._number = encoder, number
        self._newest: Tensor | None = None

    def append(self, latents: Tensor, film: int) -> None:
        """The film goes on, and is `film` frames long now."""
        newest = latents if self._newest is None else torch.cat([self._newest, latents], dim=2)
        self._newest = newest[:, :, -REACH:]

    def read(self, film: int, size: tuple[int, int], bank_from: int) -> list[_Part]:
        """As `_Told.read`. Where a kernel's frames were not yet there FramePack knows zeros; what holds no frame is left out."""
        spec, longest, encode, _ = self._encoder
        known = min(film - bank_from, REACH if longest is None else longest, REACH)
        if self._newest is None or known < 1:
            return []
        newest = self._newest[:, :, -known:]
        tokens = encode(functional.pad(newest, (0, 0, 0, 0, REACH - newest.shape[2], 0)))
        parts = tokens.split([group.tokens(*size) for group in GROUPS], dim=1)
        return [
            _Part(spec, part, group.positions(*size), max(0, film + group.first), group.factor**3, self._number)
            for group, part in zip(GROUPS, parts, strict=True)
            if group.told(newest.shape[2])
        ]


class EncodedHistory:
    """What one film remembers through encoders, one or several at once. State of one run.

    The newest `window_frames` are read whole, behind all tokens, as the first encoder would have tokens read; `embed` turns them
    into the model's own `[1, M, width]`. Where there are `commits` all that is read is to be committed.
    """

    def __init__(
        self,
        encoders: Sequence[FilmEncoder],
        window_frames: int,
        embed: Callable[[Tensor], Tensor],
        commits: Commits | None = None,
    ) -> None:
        self.encoders, self.window_frames, self.commits = tuple(encoders), window_frames, commits
        self._told = [
            _Packed(encoder, number) if isinstance(encoder.spec, PackedSpec) else _Told(encoder, encoder.spec, number)
            for number, encoder in enumerate(encoders)
        ]
        self._reach = EVERYTHING
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
        reaches = [self._film if longest is None else longest for _, longest, *_ in self.encoders]
        return min(max(*reaches, self.window_frames), self._film)

    def most_tokens(self, film_frames: int, height: int, width: int) -> int:
        """Tokens that a film of this many latent frames, and of this size in latents, ever reads at once."""
        told = [(spec, longest) for spec, longest, *_ in self.encoders]
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
        parts = self._told_parts(reach)
        self.read_frames = self._whole_frames(reach)
        window = self._window_parts() if self.read_frames else []
        self.current = self._joined([*parts, *window]) if parts or window else None
        if self.commits is not None:
            self._commit(self.commits, parts, window)
        self._reach = reach

    def _told_parts(self, reach: Reach) -> list[_Part]:
        return [part for told in self._told for part in told.read(self._film, self._size, reach.bank_from)]

    def _commit(self, commits: Commits, read: Sequence[_Part], window: Sequence[_Part]) -> None:
        """New parts read what the frames that they tell could read of all tokens; no token reads the window."""
        told = self._told_parts(self._reach) if read or window else []
        older = [part for part in told if commits.knows(part.key)]
        for parts in ([part for part in told if not commits.knows(part.key)], window):
            new = sorted((part for part in parts if not commits.knows(part.key)), key=lambda part: part.frame)
            for _, same in groupby(new, lambda part: id(self._prompts[part.frame][0])):
                segment = list(same)
                commits.add(self._segment(segment, older))
                older += [] if parts is window else segment
        commits.current, commits.film = tuple(part.key for part in (*read, *window)), self._film
        commits.forget(part.key for part in (*told, *read, *window))

    def _segment(self, parts: Sequence[_Part], older: Sequence[_Part]) -> Segment:
        prompt, _ = self._prompt_of(parts[0])
        assert prompt is not None
        return Segment(
            tuple(part.key for part in parts),
            tuple(part.tokens.shape[1] for part in parts),
            torch.cat([part.tokens for part in parts], dim=1),
            torch.cat([part.positions for part in parts]) + torch.tensor([float(self._film), 0.0, 0.0]),
            prompt,
            tuple(part.key for part in older),
            _counts([*parts, *older]),
        )

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
                WINDOW,
            )
            for frame, part in zip(self.read_frames, tokens, strict=True)
        ]

    def _joined(self, parts: Sequence[_Part]) -> History:
        levels = [
            Level(sum(part.tokens.shape[1] for part in same), modulation)
            for modulation, same in groupby(parts, lambda part: part.spec.modulation)
        ]
        read = stretches(Stretch(part.tokens.shape[1], *self._prompt_of(part)) for part in parts)
        return History(
            torch.cat([part.tokens for part in parts], dim=1),
            _positions(parts),
            levels[0].modulation if len(levels) == 1 else tuple(levels),
            prompts=(read,) if any(stretch.prompt is not None for stretch in read) else (),
            counts=_counts(parts),
            cross=self._cross(parts),
        )

    def _cross(self, parts: Sequence[_Part]) -> CrossReader | None:
        readers = []
        for number, encoder in enumerate(self.encoders):
            hidden = [part.hidden for part in parts if part.number == number and part.hidden is not None]
            if encoder.cross is not None and hidden:
                readers.append(encoder.cross(torch.cat(hidden, dim=1)))
        return together(readers) if readers else None

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


def _counts(parts: Sequence[_Part]) -> Tensor | None:
    """How often each token counts; None is once."""
    return torch.cat([part.counts for part in parts]) if any(part.spec.proportional for part in parts) else None


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
