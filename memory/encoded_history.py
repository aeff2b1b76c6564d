"""The film so far as an encoder tells it: every new stretch is encoded once and appended, the newest frames stay whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .encoder import token_positions
from .encoder_spec import PATCH, EncoderSpec, Modulation
from .select import EVERYTHING
from .transitions import Reach


class Stretch(NamedTuple):
    """So many neighbouring tokens of one shot, and the prompt `[W, C]` that they read, before the model's own embedding."""

    tokens: int
    prompt: Tensor


def stretches(parts: Iterable[tuple[int, Tensor]]) -> tuple[Stretch, ...]:
    """Counts of tokens with their prompts, neighbours under the same one joined."""
    found: list[Stretch] = []
    for tokens, prompt in parts:
        if found and found[-1].prompt is prompt:
            found[-1] = Stretch(found[-1].tokens + tokens, prompt)
        else:
            found.append(Stretch(tokens, prompt))
    return tuple(found)


class History(NamedTuple):
    """Tokens `[1 or B, M, width]` that join a model's own, and their positions `[M, 3]`: frame, row and column.

    Frames count from the first of those being made, so history lies below 0; `target_frames` `[T]` are the times of those
    being made where they are not simply 0, 1, 2, ... `prompts` are what each film of the batch reads token by token, one
    film's for all of them, or nothing, where history reads the prompt of the frames being made. `counts` `[M]` says how many of
    the model's own tokens each is to count as in attention; None is one each.
    """

    tokens: Tensor
    positions: Tensor
    modulation: Modulation
    target_frames: Tensor | None = None
    prompts: tuple[tuple[Stretch, ...], ...] = ()
    counts: Tensor | None = None


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


class EncodedHistory:
    """What one film remembers through an encoder. State of one run.

    `encode` turns latents `[1, C, n, H, W]`, n a multiple of the encoder's frames, into tokens, `embed` whole frames into
    the model's own: both `[1, M, width]`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        config: HistoryConfig,
        encode: Callable[[Tensor], Tensor],
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        self.spec, self.config = spec, config
        self._encode, self._embed = encode, embed
        self._encoded: list[tuple[int, Tensor]] = []  # first frame and tokens of every encoded stretch, oldest first
        self._waiting: Tensor | None = None  # newest latents, too few for a token
        self._window: Tensor | None = None
        self._prompts: list[Tensor | None] = []  # one for each frame
        self._film = 0
        self._size = (0, 0)
        self.current: History | None = None
        self.read_frames: tuple[int, ...] = ()

    @property
    def frames_worth(self) -> float:
        """What is read now, in tokens of a whole frame."""
        if self.current is None:
            return 0.0
        return len(self.current.positions) / (self._size[0] // PATCH * (self._size[1] // PATCH))

    @property
    def remembered(self) -> int:
        """Frames that the next ones can read: the whole film, or the longest history and the window."""
        config = self.config
        longest = None if config.longest_frames is None else max(config.longest_frames, config.window_frames)
        return self._film if longest is None else min(longest, self._film)

    def append(self, latents: Tensor, prompt: Tensor | None = None) -> None:
        """The film goes on with clean latents `[1, C, T, H, W]`. Frames that fill no token wait for the next ones.

        `prompt` `[W, C]` is what they were made under; encoders whose tokens read prompts of their own need it.
        """
        self._prompts += [prompt] * latents.shape[2]
        self._film += latents.shape[2]
        self._size = (latents.shape[3], latents.shape[4])
        waiting = latents if self._waiting is None else torch.cat([self._waiting, latents], dim=2)
        step = self.spec.rate.frames
        whole = waiting.shape[2] // step * step
        if whole:
            first = self._film - waiting.shape[2]
            tokens = self._encode(waiting[:, :, :whole]).unflatten(1, (whole // step, -1))
            self._encoded += [(first + index * step, part) for index, part in enumerate(tokens.unbind(1))]
        self._waiting = waiting[:, :, whole:]
        newest = latents if self._window is None else torch.cat([self._window, latents], dim=2)
        self._window = newest[:, :, max(0, newest.shape[2] - self.config.window_frames) :]

    def begin(self, reach: Reach = EVERYTHING) -> None:
        """Lay out what the next frames read, `current`: nothing of the bank or window that `reach` closes."""
        config, step = self.config, self.spec.rate.frames
        oldest = (
            reach.bank_from
            if config.longest_frames is None
            else max(reach.bank_from, self._film - config.longest_frames)
        )
        encoded = [(first, tokens) for first, tokens in self._encoded if first >= oldest]
        tokens, positions = [part for _, part in encoded], []
        for first, _ in encoded:
            positions.append(token_positions(self.spec, self.spec.grid(step, *self._size), first - self._film))
        parts = [(part.shape[1], first) for first, part in encoded]  # tokens, and the frame whose prompt they read
        self.read_frames = self._whole_frames(reach)
        if self.read_frames:
            assert self._window is not None
            tokens.append(self._embed(self._window[:, :, -len(self.read_frames) :]))
            rows, columns = (torch.arange(count // PATCH, dtype=torch.float32) for count in self._size)
            times = torch.tensor(self.read_frames, dtype=torch.float32) - self._film
            positions.append(torch.cartesian_prod(times, rows, columns))
            parts += [(len(rows) * len(columns), frame) for frame in self.read_frames]
        self.current = None
        if tokens:
            own = self.spec.own_prompts
            prompts = (stretches((count, self._prompt_of(frame)) for count, frame in parts),) if own else ()
            self.current = History(
                torch.cat(tokens, dim=1),
                torch.cat(positions),
                self.spec.modulation,
                prompts=prompts,
                counts=token_counts(self.spec, [len(places) for places in positions], bool(self.read_frames)),
            )

    def _prompt_of(self, frame: int) -> Tensor:
        prompt = self._prompts[frame]
        if prompt is None:
            raise ValueError(
                f"A memory encoder whose tokens read prompts of their own needs that of every frame, got none for frame {frame}."
            )
        return prompt

    def _whole_frames(self, reach: Reach) -> tuple[int, ...]:
        kept = 0 if self._window is None else self._window.shape[2]
        return tuple(range(max(self._film - kept, reach.window_from), self._film))


@dataclass(slots=True)
class HistorySession:
    """State of one run: the history, the most tokens that it reads at once, and the tokens of a frame being made."""

    history: EncodedHistory
    tokens: int
    frame_tokens: int
    dtype: torch.dtype
    host_bytes: int = 0
    tier: str = "card"

    @property
    def peak_bytes(self) -> int:
        """Bytes on the card: tokens are kept in pieces and joined once for the frames being made."""
        return 2 * self.tokens * self.history.spec.width * self.dtype.itemsize


def most_tokens(spec: EncoderSpec, config: HistoryConfig, film_frames: int, height: int, width: int) -> int:
    """Tokens that a film of this many latent frames, and of this size in latents, ever reads at once."""
    encoded = film_frames if config.longest_frames is None else min(config.longest_frames, film_frames)
    frames, rows, columns = spec.grid(encoded, height, width)
    return frames * rows * columns + min(config.window_frames, film_frames) * (height // PATCH) * (width // PATCH)
