"""Memory encoders that are trained together: the first, and those beside it, tell one model of the same film.

They are read as a film reads several Memory Encoder Loaders in a chain (`../encoded_history.py`): one after the other, each
as far back as it reaches, and the newest frames whole behind all of them, as the first encoder would have tokens read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..cross_attention import CrossReader, together
from ..encoded_history import History, Level, Stretch, stretches
from ..encoder import Embed, MemoryEncoder, token_positions
from ..encoder_spec import EncoderSpec
from ..small_video import told_pieces
from .encoder_settings import EncoderTraining, trained_spec
from .small_video_codec import SmallVideoCodec

REACH, BESIDE = "newest latent frames", "trained beside"
"""Facts of a file whose encoder was trained together with others: how far back it told films, and what told them beside it."""


class Teller(NamedTuple):
    """An encoder, how many of the newest latent frames it tells (None is all), and what makes its smaller video, where it looks at one."""

    encoder: MemoryEncoder
    longest_frames: int | None = None
    small: SmallVideoCodec | None = None

    def first_frame(self, frames: int) -> int:
        """The first of a film's frames that it tells: no token stands for a frame beyond its reach."""
        step = self.encoder.spec.rate.frames
        return 0 if self.longest_frames is None else -(-max(0, frames - self.longest_frames) // step) * step


class Piece(NamedTuple):
    """Neighbouring tokens `[B, n, width]` at positions `[n, 3]`, each for so many of the model's own.

    They come from `frames` in equal shares, whose prompts they read where `spec` says so. `cross` reads the hidden states behind them.
    """

    spec: EncoderSpec
    tokens: Tensor
    positions: Tensor
    frames: Sequence[int]
    stands_for: int = 1
    cross: CrossReader | None = None


class EncoderChain(nn.Module):
    """One encoder or several as one module; `reaches` says how many of the newest latent frames each tells, None is all.

    `small` makes the smaller videos of those that look at one.
    """

    def __init__(
        self,
        encoders: Sequence[MemoryEncoder],
        reaches: Sequence[int | None],
        small: SmallVideoCodec | None = None,
    ) -> None:
        super().__init__()
        self.tellers = [Teller(*pair, small) for pair in zip(encoders, reaches, strict=True)]
        self.encoders = nn.ModuleList(encoders)


Encoders = MemoryEncoder | EncoderChain
"""What is trained beside a model."""


def tellers_of(encoders: Encoders) -> list[Teller]:
    """The encoders in the order in which a film reads them."""
    return [Teller(encoders)] if isinstance(encoders, MemoryEncoder) else encoders.tellers


def told_by(teller: Teller, history: Tensor, embed: Embed) -> Piece | None:
    """What an encoder tells of latents `[B, C, T, H, W]`, or None where they are too few for a token."""
    encoder, spec = teller.encoder, teller.encoder.spec
    _, _, frames, *size = history.shape
    first = teller.first_frame(frames)
    grid = spec.grid(frames - first, *size)
    if not grid[0]:
        return None
    told = _told(teller, history, first, embed)
    return Piece(
        spec,
        told[..., : spec.width or None],
        token_positions(spec, grid, first),
        range(first, first + grid[0] * spec.rate.frames, spec.rate.frames),
        math.prod(spec.rate),
        None if encoder.cross is None else encoder.cross.reader(told[..., spec.width :]),
    )


def _told(teller: Teller, history: Tensor, first: int, embed: Embed) -> Tensor:
    """Tokens of the frames from `first` on, hidden states behind them."""
    encoder, spec, small = teller.encoder, teller.encoder.spec, teller.small
    if not spec.looks_at_pictures or small is None:
        return encoder.told(history[:, :, first:], embed)
    parts = []
    for start, end in told_pieces(history.shape[2], small.chunk_frames, spec.rate.frames):
        if end > first:
            piece = history[:, :, start:end]
            told = encoder.told(piece, embed, small.encode(piece, spec))
            skipped = max(0, first - start) // spec.rate.frames
            parts.append(told.unflatten(1, ((end - start) // spec.rate.frames, -1))[:, skipped:].flatten(1, 2))
    return torch.cat(parts, dim=1)


def joined(pieces: Sequence[Piece], target_frames: Tensor, prompts: Sequence[Sequence[Tensor]]) -> History | None:
    """Pieces in their order as one history of frames at times `target_frames`, whose films had these `prompts`; None without any."""
    if not pieces:
        return None
    levels = [
        Level(sum(piece.tokens.shape[1] for piece in same), modulation)
        for modulation, same in groupby(pieces, lambda piece: piece.spec.modulation)
    ]
    own = any(piece.spec.own_prompts for piece in pieces)
    crossed = [piece.cross for piece in pieces if piece.cross is not None]
    return History(
        torch.cat([piece.tokens for piece in pieces], dim=1),
        torch.cat([piece.positions for piece in pieces]),
        levels[0].modulation if len(levels) == 1 else tuple(levels),
        target_frames,
        tuple(_prompts(pieces, film) for film in prompts) if own else (),
        _counts(pieces) if any(piece.spec.proportional for piece in pieces) else None,
        together(crossed) if crossed else None,
    )


def _prompts(pieces: Sequence[Piece], film: Sequence[Tensor]) -> tuple[Stretch, ...]:
    return stretches(
        Stretch(piece.tokens.shape[1] // len(piece.frames), film[frame] if piece.spec.own_prompts else None)
        for piece in pieces
        for frame in piece.frames
    )


def _counts(pieces: Sequence[Piece]) -> Tensor:
    each = [float(piece.stands_for if piece.spec.proportional else 1) for piece in pieces]
    return torch.cat([torch.full((piece.tokens.shape[1],), count) for piece, count in zip(pieces, each, strict=True)])


def trained_specs(encoders: Encoders, config: EncoderTraining) -> list[EncoderSpec]:
    """Their specs with what is worth knowing of this training added: how far back each told films, and what told them beside it."""
    tellers, specs = tellers_of(encoders), []
    for teller in tellers:
        spec = trained_spec(teller.encoder.spec, config)
        facts = {name: fact for name, fact in spec.trained.items() if name not in (REACH, BESIDE)}
        others = [beside_in_words(each.encoder.spec, each.longest_frames) for each in tellers if each is not teller]
        facts |= {BESIDE: ", ".join(others)} if others else {}
        facts |= {} if teller.longest_frames is None else {REACH: teller.longest_frames}
        specs.append(replace(spec, trained=facts))
    return specs


def beside_in_words(spec: EncoderSpec, longest_frames: int | None) -> str:
    """An encoder that is trained beside another, as settings and files name it."""
    told = "all frames" if longest_frames is None else f"the newest {longest_frames} frames"
    return f"{spec.rate} of {told}"
