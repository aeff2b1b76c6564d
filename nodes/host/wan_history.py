"""History in the token sequence of a bidirectional Wan: official patches around each of its layers, for one call.

The first layer receives the tokens behind those of the frames being made, every layer the positions of both, and behind
the last layer they are cut off again, so the head and all else never know. Prompts of history's own stand behind the words
of the frames being made, and an attention override shares them out. Whatever replaces a layer already is
called with the longer sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy.ldm.wan.model import repeat_e, sinusoidal_embedding_1d
from torch import Tensor
from torch.nn import functional

from ...memory.encoded_history import History
from ...memory.encoder_spec import Modulation
from .keys import OVERRIDE

LAYER = "double_block"
"""The host's name for a layer of Wan in `patches_replace`."""
OTHER_TOKENS = {
    "context_latents": "context latents",
    "reference_latent": "a reference latent",
    "time_dim_concat": "frames joined in time",
}


def with_history(network: Any, history: History, options: dict[str, Any]) -> dict[str, Any]:
    """`transformer_options` under which one call of the host's Wan `network` reads `history`."""
    join = _Join(network, history, options.get("rope_options") or {})
    patches = options.get("patches_replace", {})
    layers = dict(patches.get("dit", {}))
    count = len(network.blocks)
    for layer in range(count):
        layers[(LAYER, layer)] = _Layer(join, layer, layer == count - 1, layers.get((LAYER, layer)))
    return {**options, "patches_replace": {**patches, "dit": layers}}


class _Join:
    """The sequence of one call: lengths, positions and modulation, made at the first layer for all of them."""

    def __init__(self, network: Any, history: History, rope_options: dict[str, float]) -> None:
        self.network, self.history, self.rope_options = network, history, rope_options
        self.own_tokens, self.own_words = 0, 0
        self._text: Tensor | None = None
        self._bias: Tensor | None = None
        self._positions: Tensor | None = None
        self._modulation: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """`[B, L, C]` to `[B, L + M, C]`."""
        self.own_tokens = x.shape[1]
        return torch.cat([x, self.history.tokens.to(x).expand(x.shape[0], -1, -1)], dim=1)

    def text(self, own: Tensor) -> Tensor:
        """Embedded words `[B, W, C]` of the frames being made, with those of history's own prompts behind them."""
        if not self.history.prompts:
            return own
        if self._text is None:
            self.own_words = own.shape[1]
            rows = [
                torch.cat([stretch.prompt for stretch in row if stretch.prompt is not None])
                for row in self.history.prompts
            ]
            words = max(len(row) for row in rows)
            # One more than needed where only the number of words tells cross-attention from self-attention.
            words += self.own_words + words == self.own_tokens + self.history.tokens.shape[1]
            theirs = torch.stack([functional.pad(row, (0, 0, 0, words - len(row))) for row in rows])
            embedded = self.network.text_embedding(theirs.to(own))
            self._text = torch.cat([own, embedded.expand(own.shape[0], -1, -1)], dim=1)
        return self._text

    def options(self, own: dict[str, Any]) -> dict[str, Any]:
        """`transformer_options` of a layer, under which every token reads the words that are its own."""
        ours = self.history.prompts or self.history.counts is not None
        return {**own, OVERRIDE: partial(self._attend, own.get(OVERRIDE))} if ours else own

    def _attend(
        self, before: Any, attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **settings: Any
    ) -> Tensor:
        """An attention override around whatever was there `before`."""
        call = partial(attention if before is None else partial(before, attention), heads=heads, **settings)
        if k.shape[1] == q.shape[1]:
            made: Tensor = call(q, k, v, **self._counted(q, settings.get("mask")))
            return made
        if not self.history.prompts:
            made = call(q, k, v)
            return made
        own, words = self.own_tokens, self.own_words
        prompts = self.history.prompts
        rows = [slice(None)] if len(prompts) == 1 else [slice(row, row + 1) for row in range(len(prompts))]
        theirs = []
        for row, found in zip(rows, prompts, strict=True):
            token, word, parts = own, words, []
            for stretch in found:
                to_token = token + stretch.tokens
                read = slice(0, words)
                if stretch.prompt is not None:
                    read = slice(word, word + len(stretch.prompt))
                    word = read.stop
                parts.append(call(q[row, token:to_token], k[row, read], v[row, read]))
                token = to_token
            theirs.append(torch.cat(parts, dim=1))
        return torch.cat([call(q[:, :own], k[:, :words], v[:, :words]), torch.cat(theirs)], dim=1)

    def _counted(self, q: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """A mask under which a token of history counts as often as it should: proportional attention (ToMe, Bolya et al. 2023).

        It has one row for all readers, as the host's own masks of words have: kernels that pad a mask would write out all rows.
        """
        if self.history.counts is None:
            return {}
        if self._bias is None:
            self._bias = q.new_zeros(1, 1, 1, q.shape[1])
            self._bias[..., self.own_tokens :] = self.history.counts.log().to(q)
        return {"mask": self._bias if mask is None else mask + self._bias}

    def crossed(self, layer: int, x: Tensor) -> Tensor:
        """What came out of a layer, where the frames being made read the encoder's hidden states behind it."""
        if self.history.cross is None:
            return x
        own, theirs = x[:, : self.own_tokens], x[:, self.own_tokens :]
        return torch.cat([own + self.history.cross(layer, own), theirs], dim=1)

    def positions(self, own: Tensor) -> Tensor:
        """Rotary table `[1, L + M, 1, D / 2, 2, 2]` for the host's table `own` of the frames being made."""
        if self._positions is None:
            if self.history.target_frames is not None:
                own = self._at_times(own, self.history.target_frames)
            theirs = rope_table(self.network, self.rope_options, self.history.positions, own)
            self._positions = torch.cat([own, theirs], dim=1)
        return self._positions

    def modulation(self, own: Tensor) -> Tensor:
        """Shifts, scales and gates `[B, N, 6, C]` for the host's `own`, each for an equal share of the L + M tokens, the last for what
        is left of one.

        One for all is left as it is. Where history has its own, they are told in the longest stretches that fit both: one for every
        token would take more of the card than all tokens do.
        """
        if own.shape[1] == 1 and self.history.modulation is Modulation.TARGET:
            return own
        if self._modulation is None:
            self._modulation = self._joined_modulation(own)
        return self._modulation

    def _joined_modulation(self, own: Tensor) -> Tensor:
        tokens, levels = self.own_tokens, self.history.levels
        if tokens % own.shape[1]:
            own = repeat_e(own, own.new_empty(1, tokens))
        common = math.gcd(tokens // own.shape[1], *(level.tokens for level in levels[:-1]))
        total = tokens + self.history.tokens.shape[1]
        stretch = next(size for size in range(common, 0, -1) if common % size == 0 and _repeated(total, size))
        own = own.repeat_interleave(tokens // own.shape[1] // stretch, dim=1)
        theirs = [
            (own[:, -1:] if modulation is Modulation.TARGET else self._clean(own)).expand(
                own.shape[0], -(-count // stretch), -1, -1
            )
            for count, modulation in levels
        ]
        return torch.cat([own, *theirs], dim=1)

    def _clean(self, like: Tensor) -> Tensor:
        network = self.network
        still = sinusoidal_embedding_1d(network.freq_dim, torch.zeros(1, device=like.device)).to(like.dtype)
        made: Tensor = network.time_projection(network.time_embedding(still)).unflatten(1, (6, network.dim))
        return made[None]  # [1, 1, 6, C]

    def _at_times(self, own: Tensor, frames: Tensor) -> Tensor:
        """The host's table with the time of each frame replaced."""
        still = torch.zeros(len(frames), 3, device=own.device)
        still[:, 0] = frames.to(own.device)
        turned = rope_table(self.network, self.rope_options, still, own)[:, :, None]  # [1, T, 1, 1, D / 2, 2, 2]
        pairs = self.network.rope_embedder.axes_dim[0] // 2
        table: Tensor = own.unflatten(1, (len(frames), -1)).clone()
        table[..., :pairs, :, :] = turned[..., :pairs, :, :]
        return table.flatten(1, 2)


def rope_table(network: Any, rope_options: dict[str, float], positions: Tensor, like: Tensor) -> Tensor:
    """Rotations `[1, M, 1, D / 2, 2, 2]` of `positions` `[M, 3]`, as the host has them `like` its own.

    Positions are scaled and shifted as the host does it with its own, but never rounded to the model's type. Of several for each
    token `[n, M, 3]` it is the mean.
    """
    scale, shift = (
        torch.tensor([float(rope_options.get(f"{what}_{axis}", none)) for axis in "tyx"], device=like.device)
        for what, none in (("scale", 1.0), ("shift", 0.0))
    )
    places = positions.to(device=like.device, dtype=torch.float32) * scale + shift
    tables: Tensor = network.rope_embedder(places if places.ndim == 3 else places[None])
    return tables.mean(dim=0, keepdim=True).movedim(1, 2).to(like.dtype)


def _repeated(tokens: int, stretch: int) -> bool:
    """Whether the host's `repeat_e` gives each of so few modulations a stretch of this size, the last one cut short."""
    count = -(-tokens // stretch)
    return stretch == -(-tokens // count)


class _Layer:
    """Stands around one layer, and around whatever replaced it before."""

    def __init__(self, join: _Join, number: int, last: bool, replaced: Callable[..., dict[str, Any]] | None) -> None:
        self._join, self._number, self._last, self._replaced = join, number, last, replaced

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The host's `args` of a layer, to its output."""
        join = self._join
        img = join.enter(args["img"]) if self._number == 0 else args["img"]
        longer = {
            **args,
            "img": img,
            "txt": join.text(args["txt"]),
            "pe": join.positions(args["pe"]),
            "vec": join.modulation(args["vec"]),
            "transformer_options": join.options(args["transformer_options"]),
        }
        whole = partial(self._crossed, extra["original_block"])
        out = whole(longer) if self._replaced is None else self._replaced(longer, {**extra, "original_block": whole})
        return {**out, "img": out["img"][:, : join.own_tokens]} if self._last else out

    def _crossed(self, original: Callable[..., dict[str, Any]], args: dict[str, Any]) -> dict[str, Any]:
        """The layer itself, of which reading hidden states is the end."""
        out = original(args)
        return {**out, "img": self._join.crossed(self._number, out["img"])}
