"""History in the token sequence of a bidirectional HunyuanVideo: official patches around each of its layers, for one call.

Double layers keep words and picture apart: the first one receives the tokens behind those of the frames being made. Single
layers have words, picture and history in one sequence, and behind the last one history is cut off again. Positions, the mask
and the modulation are told for the longer sequence. Whatever replaces a layer already is called with it.

Prompts of history's own stand behind the words of the frames being made. An attention override shares them out: every prompt and
its tokens read these words and all pictures, as the host's own words and pictures do.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...memory.encoded_history import History, Level, Stretch
from ...memory.encoder_spec import Modulation
from ...memory.history_session import HistorySession
from .history_family import check_alone
from .hunyuan_video import HunyuanVideoAdapter
from .keys import HISTORY, OVERRIDE

DOUBLE, SINGLE = "double_block", "single_block"
"""The host's names for layers of HunyuanVideo in `patches_replace`."""
OTHER_TOKENS = {
    "ref_latent": "a reference latent",
    "guiding_frame_index": "an image-to-video guide",
    "control": "a ControlNet",
    "txt_byt5": "words of a second text encoder",
    "clip_fea": "a picture for the prompt",
}
TRAINED_FRAMES = 33
"""Latent frames of the clips that HunyuanVideo was trained on: 129 pictures."""
_TIME_VALUES = 256

Dims = list[tuple[int, int, int]]
"""The host's way of telling stretches of tokens their modulation: first, end, and which of the vectors."""


class HunyuanHistory:
    """HunyuanVideo text-to-video reads history."""

    name = "HunyuanVideo text-to-video"
    shows_pictures = False
    reads_once = False
    reads_hidden = False

    def knows(self, model: ModelPatcher) -> bool:
        """Whether it is the text-to-video model, which its variants are not."""
        return HunyuanVideoAdapter().refusal(model) is None

    def shape(self, network: Any) -> tuple[int, int]:
        """Width and channels."""
        return network.hidden_size, network.in_channels

    def layers(self, network: Any) -> int:
        """Double and single ones."""
        return len(network.double_blocks) + len(network.single_blocks)

    def embed(self, network: Any, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """The host computes this embedding as everything else."""
        embedded: Tensor = network.img_in.proj(latents.to(dtype))
        return embedded

    @staticmethod
    def with_tokens(
        executor: Callable[..., Any],
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        txt_byt5: Any = None,
        clip_fea: Any = None,
        guidance: Tensor | None = None,
        attention_mask: Any = None,
        guiding_frame_index: Any = None,
        ref_latent: Any = None,
        disable_time_r: bool = False,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """DIFFUSION_MODEL: history joins the sequence of this call; without any the call stays as it is."""
        options = {} if transformer_options is None else transformer_options
        session: HistorySession | None = options.get(HISTORY)
        if session is not None:
            given = {"ref_latent": ref_latent, "guiding_frame_index": guiding_frame_index, "control": control}
            check_alone({**given, "txt_byt5": txt_byt5, "clip_fea": clip_fea}, OTHER_TOKENS)
            if session.history.current is not None:
                network = executor.class_obj  # type: ignore[attr-defined]
                history = anchored(session.history.current, x.shape[2])
                options = with_history(network, history, options, Call(timestep, y, guidance))
        return executor(
            x,
            timestep,
            context,
            y,
            txt_byt5,
            clip_fea,
            guidance,
            attention_mask,
            guiding_frame_index,
            ref_latent,
            disable_time_r,
            control,
            options,
            **kwargs,
        )


class Call(NamedTuple):
    """What a call of the model is given beside latents and words: `timesteps` `[B]`, one vector for all words `pooled`
    `[B, 768]`, and the strength of distilled `guidance` `[B]`."""

    timesteps: Tensor
    pooled: Tensor | None = None
    guidance: Tensor | None = None


def anchored(history: History, frames: int) -> History:
    """`history` and `frames` being made at the times of a clip that the model knows.

    Words stand at time 0, where a clip begins, so there history begins, too: but the frames being made never end farther from the
    words than in a clip of the trained length, and what is older than fits lies before 0. Where they have times of their own these are
    kept apart from each other and from history as they are.
    """
    made = torch.arange(frames, dtype=torch.float32) if history.target_frames is None else history.target_frames
    first, last = float(made.min()), float(made.max())
    oldest = float(history.positions[..., 0].min())
    shift = min(math.ceil(first - oldest), max(0, TRAINED_FRAMES - 1 - int(last - first))) - first
    later = torch.tensor([shift, 0.0, 0.0])
    return history._replace(positions=history.positions + later, target_frames=made + shift)


def with_history(network: Any, history: History, options: dict[str, Any], call: Call) -> dict[str, Any]:
    """`transformer_options` under which one `call` of the host's HunyuanVideo `network` reads `history`.

    `history` has prompts for one film at most: those of a batch share it.
    """
    join = _Join(network, history, call)
    patches = options.get("patches_replace", {})
    layers = dict(patches.get("dit", {}))
    for layer in range(len(network.double_blocks)):
        layers[(DOUBLE, layer)] = _DoubleLayer(join, layer == 0, layers.get((DOUBLE, layer)))
    last = len(network.single_blocks) - 1
    for layer in range(last + 1):
        layers[(SINGLE, layer)] = _SingleLayer(join, layer == last, layers.get((SINGLE, layer)))
    return {**options, "patches_replace": {**patches, "dit": layers}}


class _Join:
    """The sequence of one call: words, picture, history; what is told of it is made at the first layer for all of them."""

    def __init__(self, network: Any, history: History, call: Call) -> None:
        self._network, self._history, self._call = network, history, call
        self.words, self.own_words, self.own_tokens = 0, 0, 0
        self._shares: list[tuple[Tensor, Tensor]] = []
        self._positions: Tensor | None = None
        self._mask: Tensor | None = None
        self._lengths: dict[int, int] = {}
        self._told: tuple[Tensor, Dims | None] | None = None

    def enter(self, args: dict[str, Any]) -> dict[str, Any]:
        """Picture `[B, L, C]` to `[B, L + M, C]`, and words `[B, W, C]` with those of history's own prompts behind them."""
        img, txt, history = args["img"], args["txt"], self._history
        self.own_words, self.own_tokens = txt.shape[1], img.shape[1]
        if history.prompts:
            (read,) = history.prompts
            prompts = {id(prompt): prompt for _, prompt, _ in read if prompt is not None}
            refined = {key: self._refined(prompt, args) for key, prompt in prompts.items()}
            txt = torch.cat([txt, *refined.values()], dim=1)
            self._lengths = {key: words.shape[1] for key, words in refined.items()}
            self._shares = self._shared_out(read, txt)
        self.words = txt.shape[1]
        return {"img": torch.cat([img, history.tokens.to(img).expand(img.shape[0], -1, -1)], dim=1), "txt": txt}

    def _refined(self, prompt: Tensor, args: dict[str, Any]) -> Tensor:
        """A prompt `[w, C]` as the host refines it for the frames being made."""
        batch = args["txt"].shape[0]
        theirs = prompt.to(args["txt"]).expand(batch, -1, -1)
        refined: Tensor = self._network.txt_in(
            theirs, self._call.timesteps.expand(batch), None, transformer_options=args["transformer_options"]
        )
        return refined

    def _shared_out(self, read: Sequence[Stretch], like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Who reads what: pairs of rows and columns of attention, first of the frames being made, then of each prompt."""
        everything = torch.arange(like.shape[1] + self.own_tokens + self._history.tokens.shape[1], device=like.device)
        pictures = everything[like.shape[1] :]
        rows: dict[int | None, list[Tensor]] = {None: [everything[: self.own_words], pictures[: self.own_tokens]]}
        word, token = self.own_words, self.own_tokens
        for key, length in self._lengths.items():
            rows[key] = [everything[word : word + length]]
            word += length
        for count, prompt, _ in read:
            rows[None if prompt is None else id(prompt)].append(pictures[token : token + count])
            token += count
        return [(torch.cat(readers), torch.cat([readers[0], pictures])) for readers in rows.values()]

    def options(self, own: dict[str, Any]) -> dict[str, Any]:
        """`transformer_options` of a layer, under which every token reads the words that are its own."""
        return {**own, OVERRIDE: partial(self._attend, own.get(OVERRIDE))} if self._shares else own

    def _attend(
        self,
        before: Any,
        attention: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        heads: int,
        mask: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """An attention override around whatever was there `before`; q, k and v are `[B, H, N, D]`."""
        call = partial(attention if before is None else partial(before, attention), heads=heads, **settings)
        made = q.new_empty(q.shape[0], q.shape[2], heads * q.shape[3])
        for rows, columns in self._shares:
            told = None if mask is None else mask[..., columns]
            made[:, rows] = call(q[:, :, rows], k[:, :, columns], v[:, :, columns], mask=told)
        return made

    def positions(self, own: Tensor) -> Tensor:
        """Rotary table `[B, 1, W + L + M, D / 2, 2, 2]` for the host's table `own` of words and frames being made."""
        if self._positions is None:
            words, pictures = own[:, :, : self.own_words], own[:, :, self.own_words :]
            if self._history.target_frames is not None:
                pictures = self._at_times(pictures, self._history.target_frames)
            # All words are at place 0 of everything.
            theirs, history = (
                self._rope(places, own).expand(own.shape[0], -1, -1, -1, -1, -1)
                for places in (torch.zeros(self.words - self.own_words, 3), self._history.positions)
            )
            self._positions = torch.cat([words, theirs, pictures, history], dim=2)
        return self._positions

    def mask(self, own: Tensor | None, like: Tensor) -> Tensor | None:
        """What is added to attention's logits, `[1, 1, W + L + M]`, for the host's mask of words; None is nothing.

        Under it a token of history counts as often as it should: proportional attention (ToMe, Bolya et al. 2023).
        """
        counts = self._history.counts
        if own is None and counts is None:
            return None
        if self._mask is None:
            before = self.words + self.own_tokens
            self._mask = like.new_zeros(1, 1, before + self._history.tokens.shape[1])
            if own is not None:
                self._mask[..., : self.own_words] = own[..., : self.own_words]
            if counts is not None:
                self._mask[..., before:] = counts.log().to(self._mask)
        return self._mask

    def modulation(self, vec: Tensor) -> tuple[Tensor, Dims | None]:
        """The host's `vec` `[B, C]` as it is where it is for all tokens, or beside others `[B, N, C]`, and which stretches of words,
        picture and history, one behind the other, read which.

        Prompts of history's own have one vector for all words, too, if they bring one: it is told to them and to their tokens.
        """
        if self._told is None:
            self._told = self._vectors(vec)
        return self._told

    def _vectors(self, vec: Tensor) -> tuple[Tensor, Dims | None]:
        read = self._history.prompts[0] if self._history.prompts else (Stretch(self._history.tokens.shape[1], None),)
        own: tuple[Modulation, Tensor | None] = (Modulation.TARGET, None)
        pooled = {id(prompt): vector for _, prompt, vector in read if prompt is not None}
        parts = [(self.own_words, own)]
        parts += [(length, (Modulation.TARGET, pooled[key])) for key, length in self._lengths.items()]
        parts.append((self.own_tokens, own))
        parts += [(count, (modulation, vector)) for count, modulation, vector in _crossed(self._history.levels, read)]
        vectors = {(Modulation.TARGET, id(None)): vec}
        dims: Dims = []
        first = 0
        for count, (modulation, vector) in parts:
            key = (modulation, id(vector))
            if key not in vectors:
                vectors[key] = self._vector(modulation, vector, vec)
            dims.append((first, first + count, list(vectors).index(key)))
            first += count
        return (vec, None) if len(vectors) == 1 else (torch.stack([*vectors.values()], dim=1), dims)

    def _vector(self, modulation: Modulation, pooled: Tensor | None, like: Tensor) -> Tensor:
        """The host's vector `[B, C]` at a noise level and for a prompt; None is that of the frames being made."""
        network, call = self._network, self._call
        times = call.timesteps if modulation is Modulation.TARGET else torch.zeros_like(call.timesteps)
        vec: Tensor = network.time_in(timestep_embedding(times, _TIME_VALUES, time_factor=1.0).to(like))
        words = call.pooled if pooled is None else pooled[None].to(like)
        if words is not None:
            vec = vec + network.vector_in(words[:, : network.params.vec_in_dim])
        if network.params.guidance_embed and call.guidance is not None:
            vec = vec + network.guidance_in(timestep_embedding(call.guidance, _TIME_VALUES).to(like))
        return vec.expand(len(like), -1)

    def _at_times(self, own: Tensor, frames: Tensor) -> Tensor:
        """The host's table of pictures with the time of each frame replaced."""
        still = torch.zeros(len(frames), 3)
        still[:, 0] = frames
        turned = self._rope(still, own)[:, :, :, None]  # [1, 1, T, 1, D / 2, 2, 2]
        pairs = self._network.params.axes_dim[0] // 2
        table: Tensor = own.unflatten(2, (len(frames), -1)).clone()
        table[..., :pairs, :, :] = turned[..., :pairs, :, :]
        return table.flatten(2, 3)

    def _rope(self, positions: Tensor, like: Tensor) -> Tensor:
        """Never rounded to the model's type, as the host rounds its own."""
        places = positions if positions.ndim == 3 else positions[None]
        tables: Tensor = self._network.pe_embedder(places.to(device=like.device, dtype=torch.float32))
        return tables.mean(dim=0, keepdim=True).to(like.dtype)


def _crossed(levels: Sequence[Level], read: Sequence[Stretch]) -> Iterator[tuple[int, Modulation, Tensor | None]]:
    """Stretches of tokens that have both a noise level and one vector for all words."""
    level_ends = [*accumulate(level.tokens for level in levels)]
    read_ends = [*accumulate(stretch.tokens for stretch in read)]
    for first, end in pairwise(sorted({0, *level_ends, *read_ends})):
        level, stretch = levels[bisect_right(level_ends, first)], read[bisect_right(read_ends, first)]
        yield end - first, level.modulation, stretch.pooled


class _DoubleLayer:
    """Stands around a layer that keeps words and picture apart, and around whatever replaced it before."""

    def __init__(self, join: _Join, first: bool, replaced: Callable[..., dict[str, Any]] | None) -> None:
        self._join, self._first, self._replaced = join, first, replaced

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The host's `args` of a layer, to its output."""
        join = self._join
        entered = {**args, **join.enter(args)} if self._first else args
        words = join.words
        vec, dims = join.modulation(args["vec"])
        longer = {
            **entered,
            "vec": vec,
            "pe": join.positions(args["pe"]),
            "attention_mask": join.mask(args["attention_mask"], args["img"]),
            "modulation_dims_img": None
            if dims is None
            else [(a - words, b - words, at) for a, b, at in dims if a >= words],
            "modulation_dims_txt": None if dims is None else [part for part in dims if part[0] < words],
            "transformer_options": join.options(args["transformer_options"]),
        }
        return extra["original_block"](longer) if self._replaced is None else self._replaced(longer, extra)


class _SingleLayer:
    """Stands around a layer of the joined sequence, and around whatever replaced it before."""

    def __init__(self, join: _Join, last: bool, replaced: Callable[..., dict[str, Any]] | None) -> None:
        self._join, self._last, self._replaced = join, last, replaced

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The host's `args` of a layer, to its output."""
        join = self._join
        before = join.words + join.own_tokens
        vec, dims = join.modulation(args["vec"])
        longer = {
            **args,
            "vec": vec,
            "pe": join.positions(args["pe"]),
            "attention_mask": join.mask(args["attention_mask"], args["img"]),
            "modulation_dims": dims,
            "transformer_options": join.options(args["transformer_options"]),
        }
        out = extra["original_block"](longer) if self._replaced is None else self._replaced(longer, extra)
        return {**out, "img": out["img"][:, :before]} if self._last else out
