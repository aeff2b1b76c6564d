"""Makes a plain host `HunyuanVideo` causal over chunks while it is trained, through the host's attention patch.

Every chunk is a row of the batch with its own text and noise level, as when a film is made; what it reads of older chunks are
the pictures of its clip's first copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...kernels.page_copy import time_rotation
from .adds_apart import AddsApart
from .causal import TRAIN_TIMESTEPS, ReadingLesson
from .clips import ClipBatch
from .words import pooled_words

TIME_CHANNELS, THETA = 16, 256.0


def turned(x: Tensor, table: Tensor) -> Tensor:
    """`x` `[..., D]` turned by a rotary `table` `[..., D / 2, 2, 2]`."""
    out: Tensor = (table @ x.unflatten(-1, (-1, 2))[..., None]).flatten(-3)
    return out


class JoinedChunks:
    """The attention of rows `[B, copies, C]`: `patch` lengthens keys by older pictures, `attend` hides what is not read."""

    def __init__(self, batch: ClipBatch, copies: int, lesson: ReadingLesson | None) -> None:
        self.copies, self.lesson, self.frames = copies, lesson, batch.chunk_frames
        live = batch.text_mask.repeat_interleave(copies, dim=0).flatten(0, 1)  # [R, W]
        self.rows, self.words = live.shape
        self.chunks = batch.text_mask.shape[1]
        self.word_bias = torch.zeros(live.shape).masked_fill(~live, -torch.inf)[:, None, None]  # [R, 1, 1, W]
        time = time_rotation([*range(self.chunks * self.frames)], TIME_CHANNELS, THETA, torch.device("cpu"))
        self.time = time.view(self.chunks, self.frames, *time.shape[1:]).repeat(self.rows // self.chunks, 1, 1, 1, 1)

    def patch(
        self, q: Tensor, k: Tensor, v: Tensor, pe: Tensor, attn_mask: Tensor | None, extra_options: dict[str, Any]
    ) -> dict[str, Any]:
        """The host's `attn1_patch`: q, k, v are `[R, H, W + n, D]` and come back turned to the time of their chunk."""
        table = self._own_times(pe)
        q, k = turned(q, table), turned(k, table)
        q_picture, k_picture, v_picture = (
            x[:, :, self.words :].unflatten(0, (-1, self.copies, self.chunks)) for x in (q, k, v)
        )  # [B, copies, C, H, n, D]
        if self.lesson is not None and self.lesson.begin_layer():
            self._teach(self.lesson, q_picture, k_picture)
        k_read, v_read = (
            torch.cat([own, _older(picture, self.copies, self.chunks)], dim=2)
            for own, picture in ((k, k_picture), (v, v_picture))
        )
        return {"q": q, "k": k_read, "v": v_read, "pe": None}

    def attend(self, _host: object, q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
        """The host's attention override: `[R, L, H x D]`; the token refiner has words alone."""
        bias = self.word_bias.to(q)
        if k.shape[2] > self.words:
            picture = q.shape[2] - self.words
            older = torch.full((self.chunks, self.chunks), -torch.inf).triu()  # 0 where the column's chunk is older
            past = older.repeat_interleave(picture, dim=1).repeat(self.rows // self.chunks, 1)[:, None, None].to(q)
            bias = torch.cat([bias, bias.new_zeros(self.rows, 1, 1, picture), past], dim=-1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).flatten(2)

    def _own_times(self, pe: Tensor) -> Tensor:
        table = pe.expand(self.rows, *pe.shape[1:]).clone()  # [R, 1, W + n, D / 2, 2, 2]
        of_frames = table[:, 0, self.words :].unflatten(1, (self.frames, -1))
        of_frames[..., : TIME_CHANNELS // 2, :, :] = self.time[:, :, None].to(table)
        return table

    def _teach(self, lesson: ReadingLesson, q: Tensor, k: Tensor) -> None:
        for chunk in range(1, self.chunks):
            past = k[:, :1, :chunk].transpose(2, 3).flatten(3, 4).expand(-1, self.copies, -1, -1, -1)
            keys = torch.cat([past, k[:, :, chunk]], dim=3)  # [B, copies, H, past + n, D]
            lesson.listen(chunk, q[:, 1:, chunk], keys[:, 1:])


def _older(pictures: Tensor, copies: int, chunks: int) -> Tensor:
    """Pictures `[B, copies, C, H, n, D]` of the first copy, for every row: `[R, H, C x n, D]`."""
    first = pictures[:, 0].transpose(1, 2).flatten(2, 3)  # [B, H, C x n, D]
    return first[:, None].expand(-1, copies * chunks, -1, -1, -1).flatten(0, 1)


def predict_joined_flow(
    model: nn.Module, latents: Tensor, sigmas: Tensor, batch: ClipBatch, lesson: ReadingLesson | None = None
) -> Tensor:
    """The model's flow (noise minus picture) for `latents` `[B * copies, 16, T, h, w]` at `sigmas` `[B * copies, T]`.

    As `causal.predict_flow`, for a model that joins text and picture. Padded words are hidden from attention; the mean of
    all words modulates the host's token refiner, so they are given that mean.
    """
    copies, frames = len(latents) // len(batch.text), batch.chunk_frames
    joined = JoinedChunks(batch, copies, lesson)
    rows = latents.unflatten(2, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [R, 16, f, h, w]
    levels = sigmas[:, ::frames].flatten()
    text = batch.text.unflatten(1, (joined.chunks, -1)).repeat_interleave(copies, dim=0).flatten(0, 1).to(latents)
    live = batch.text_mask.repeat_interleave(copies, dim=0).flatten(0, 1)[..., None].to(text)  # [R, W, 1]
    counts = live.sum(1)
    said = text * live
    with AddsApart():
        flow: Tensor = model(
            rows,
            levels * TRAIN_TIMESTEPS,
            said + (1 - live) * (said.sum(1) / counts)[:, None],
            y=pooled_words(said, counts),
            transformer_options={
                "patches": {"attn1_patch": [joined.patch]},
                "optimized_attention_override": joined.attend,
            },
        )
    films: Tensor = flow.unflatten(0, (-1, joined.chunks)).transpose(1, 2).flatten(2, 3)
    return films
