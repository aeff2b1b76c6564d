"""Training clips: Storyworld films as normalised latents, one prompt a chunk, and where the character is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .storyworld import BOX_HEIGHT, BOX_WIDTH, OWN_SIZE, Film, Size, first_rgb_frame, motion, render_film
from .words import TEXT_WIDTH, embed_text

TILE = 8  # pixels
ROWS, COLUMNS = OWN_SIZE.height // TILE, OWN_SIZE.width // TILE
TILE_NUMBERS = 4 * TILE * TILE * 3
PROBE_RIDGE = 1e-4


class TileCodec(NamedTuple):
    """The linear encoder of the tiny VAE as one matrix, from 8x8x4 tiles to normalised latents, and back."""

    encode: Tensor  # [768, 16]
    encode_offset: Tensor  # [16]
    decode: Tensor  # [16, 768]
    decode_offset: Tensor  # [768]


def tiles_of(video: Tensor) -> Tensor:
    """`[F, H, W, 3]` in 0..1 as `[T, H / 8, W / 8, 768]` in -1..1; the first frame counts four times."""
    video = torch.cat([video[:1].expand(3, -1, -1, -1), video]) * 2 - 1
    frames, height, width, _ = video.shape
    tiles = video.view(frames // 4, 4, height // TILE, TILE, width // TILE, TILE, 3)
    return tiles.permute(0, 2, 4, 1, 3, 5, 6).reshape(frames // 4, height // TILE, width // TILE, TILE_NUMBERS)


def video_of(tiles: Tensor) -> Tensor:
    """The inverse of `tiles_of`: `[T, h, w, 768]` to `[4 (T - 1) + 1, H, W, 3]`, clamped to 0..1."""
    frames, rows, columns, _ = tiles.shape
    video = tiles.view(frames, rows, columns, 4, TILE, TILE, 3).permute(0, 3, 1, 4, 2, 5, 6)
    return ((video.reshape(frames * 4, rows * TILE, columns * TILE, 3)[3:] + 1) / 2).clamp(0, 1)


@torch.no_grad()
def probe_codec(vae: Any, films: list[Film], mean: Tensor, std: Tensor) -> TileCodec:
    """The matrices nearest to what `vae.encode` does on `films` and to its inverse.

    The tiny VAE's encoder is linear to about 1 % and looks at one tile at a time, so a matrix renders it 50x faster.
    """
    tiles, latents = [], []
    for film in films:
        video = render_film(film)
        made = (vae.encode((video * 2 - 1).permute(3, 0, 1, 2)[None]) - mean) / std
        latents.append(made[0].permute(1, 2, 3, 0).reshape(-1, made.shape[1]))
        tiles.append(tiles_of(video).reshape(-1, TILE_NUMBERS))
    x, z = torch.cat(tiles), torch.cat(latents)
    return TileCodec(*_fit(x, z), *_fit(z, x))


def _fit(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    inputs, outputs = inputs.double(), outputs.double()
    x_mean, y_mean = inputs.mean(0), outputs.mean(0)
    x, y = inputs - x_mean, outputs - y_mean
    moments = x.T @ x / len(x)
    ridge = PROBE_RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    matrix = torch.linalg.solve(moments + ridge, x.T @ y / len(x))
    return matrix.float(), (y_mean - x_mean @ matrix).float()


def encode_film(film: Film, codec: TileCodec, size: Size = OWN_SIZE) -> Tensor:
    """The film as normalised latents `[16, T, H / 8, W / 8]`."""
    latents = tiles_of(render_film(film, size)) @ codec.encode + codec.encode_offset
    return latents.permute(3, 0, 1, 2)


def decode_latents(latents: Tensor, codec: TileCodec) -> Tensor:
    """Normalised latents `[16, T, h, w]` as RGB `[4 (T - 1) + 1, 8 h, 8 w, 3]` by the matrix, not by the VAE."""
    return video_of(latents.permute(1, 2, 3, 0) @ codec.decode + codec.decode_offset)


def character_mask(film: Film, size: Size = OWN_SIZE) -> Tensor:
    """1 where the middle of a latent tile lies in the character's box, `[T, H / 8, W / 8]`."""
    rows, columns = size.height // TILE, size.width // TILE
    mask = torch.zeros(film.frames, rows, columns)
    y = (torch.arange(rows) * TILE + TILE / 2) / size.scale
    x = (torch.arange(columns) * TILE + TILE / 2) / size.scale + size.left
    for shot in film.shots:
        frames = range(shot.start, shot.start + shot.frames)
        seconds = torch.tensor([(first_rgb_frame(frame) - first_rgb_frame(shot.start)) / 16 for frame in frames])
        way = motion(shot, seconds)
        inside_y = (y[None] - way.y[:, None]).abs() <= BOX_HEIGHT / 2
        inside_x = (x[None] - way.x[:, None]).abs() <= BOX_WIDTH / 2
        mask[shot.start : shot.start + shot.frames] = (inside_y[:, :, None] & inside_x[:, None]).float()
    return mask


class FilmClips(NamedTuple):
    """Films as the model sees them: latents, where the character is, the last shot's prompt, that of every frame, and none."""

    latents: Tensor  # [B, 16, T, h, w]
    mask: Tensor  # [B, T, h, w]
    text: Tensor  # [B, W, 4096]
    prompts: list[list[Tensor]]  # B lists of T, each [W, 4096]; frames of a shot share theirs
    no_prompt: Tensor | None = None  # [W, 4096], or None for that of the tiny model

    def later(self, first: int) -> FilmClips:
        """The films without their frames before `first`."""
        prompts = [film[first:] for film in self.prompts]
        return self._replace(latents=self.latents[:, :, first:], mask=self.mask[:, first:], prompts=prompts)


def film_clips(films: list[Film], codec: TileCodec, size: Size = OWN_SIZE) -> FilmClips:
    """Films of equal length, whose last prompts have equally many words."""
    latents = torch.stack([encode_film(film, codec, size) for film in films])
    mask = torch.stack([character_mask(film, size) for film in films])
    prompts = [[words for shot in film.shots for words in [embed_text(shot.prompt)[0]] * shot.frames] for film in films]
    return FilmClips(latents, mask, torch.stack([film[-1] for film in prompts]), prompts)


class ClipBatch(NamedTuple):
    """Clips that share their chunks: B clips of C chunks of `chunk_frames` frames."""

    latents: Tensor  # [B, 16, T, 12, 16]
    mask: Tensor  # [B, T, 12, 16]
    text: Tensor  # [B, C * W, 4096], W words a chunk, zero-padded
    text_mask: Tensor  # [B, C, W], true where a word is
    returns: Tensor  # [B, C, C], true where a chunk (row) shows the character of an earlier one (column)
    chunk_frames: int


def text_batch(prompts: list[list[str]]) -> tuple[Tensor, Tensor]:
    """Prompts (B lists of C) as `[B, C * W, 4096]` and a mask `[B, C, W]`."""
    embedded = [[embed_text(prompt)[0] for prompt in clip] for clip in prompts]
    words = max(len(vectors) for clip in embedded for vectors in clip)
    text = torch.zeros(len(prompts), len(prompts[0]), words, TEXT_WIDTH)
    mask = torch.zeros(len(prompts), len(prompts[0]), words, dtype=torch.bool)
    for b, clip in enumerate(embedded):
        for c, vectors in enumerate(clip):
            text[b, c, : len(vectors)] = vectors
            mask[b, c, : len(vectors)] = True
    return text.flatten(1, 2), mask


def clip_batch(films: list[Film], codec: TileCodec, chunk_frames: int) -> ClipBatch:
    """Films of equal length as one batch; every shot is a whole number of chunks."""
    prompts = [[shot.prompt for shot in film.shots for _ in range(shot.frames // chunk_frames)] for film in films]
    text, text_mask = text_batch(prompts)
    latents = torch.stack([encode_film(film, codec) for film in films])
    mask = torch.stack([character_mask(film) for film in films])
    names = [[shot.name for shot in film.shots for _ in range(shot.frames // chunk_frames)] for film in films]
    returns = torch.tensor([[[name == earlier for earlier in clip] for name in clip] for clip in names]).tril(-1)
    return ClipBatch(latents, mask, text, text_mask, returns, chunk_frames)


def word_bias(text_mask: Tensor) -> Tensor:
    """The attention bias that hides padded words: `[B * C, 1, 1, W]`, 0 or -inf."""
    bias = torch.zeros(text_mask.shape).masked_fill(~text_mask, float("-inf"))
    return bias.flatten(0, 1)[:, None, None]
