"""History that is committed to a Wan: its tokens go through the network alone, once in a film, as if they were a clean video.

The host's own network makes them at noise level 0 under the prompt of their shot; around its layers stand official patches that put
the tokens in the place of a picture of one token, and an attention override that reads what was committed before and keeps what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...memory.committed_history import Commits, KeptLayers, Segment
from ...memory.encoded_history import History
from ...memory.encoder_spec import PATCH, Modulation
from .kept_history import LAYER, next_attention, reading
from .keys import OVERRIDE
from .wan_history import LAYER as BLOCK
from .wan_history import rope_table, with_history


def commit_waiting(
    call: Callable[..., Any], network: Any, commits: Commits, like: Tensor, options: dict[str, Any]
) -> None:
    """Commit what waits. `call` is the rest of the host's call of `network` for latents `like` `[B, C, T, H, W]` with these
    `transformer_options`. Raises ValueError where another pack leaves out a layer or its attention."""
    while commits.waiting:
        segment = commits.waiting[0]
        kept: KeptLayers = {}
        own = None if segment.counts is None else segment.counts[: segment.tokens.shape[1]]
        older = None if segment.counts is None else segment.counts[segment.tokens.shape[1] :]
        reads = reading(options, older, commits.read(segment.older)) if segment.older else options
        keeps = {**reads, OVERRIDE: partial(_keep, own, kept, reads.get(OVERRIDE))}
        picture = like.new_zeros(1, like.shape[1], 1, PATCH, PATCH)
        prompt = segment.prompt[None].to(like)
        call(picture, like.new_zeros(1), prompt, None, None, _alone(network, segment, keeps))
        if len(kept) < len(network.blocks):
            raise ValueError(
                f"History that is read once a film needs every layer of the model, but it came through {len(kept)} of "
                f"{len(network.blocks)}: another node skips the others, or has an attention of its own there. Remove it from the model's "
                "wire, or set 'reading' of the Memory Encoder Loader to 'every step'."
            )
        commits.keep(segment, kept)


def at_film_time(network: Any, film: int, like: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """`transformer_options` under which the frames being made `like` `[B, C, T, H, W]` stand behind `film` others."""
    nothing = History(
        like.new_zeros(1, 0, network.dim),
        torch.zeros(0, 3),
        Modulation.TARGET,
        target_frames=torch.arange(film, film + like.shape[2], dtype=torch.float32),
    )
    return with_history(network, nothing, options)


def _keep(
    counts: Tensor | None,
    kept: KeptLayers,
    before: Any,
    attention: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """An attention override around whatever was there `before`: in every layer the first attention is that among the tokens."""
    layer = settings["transformer_options"][LAYER]
    if layer not in kept:
        kept[layer] = [(k, v)]
        if counts is not None:
            bias = counts.log().to(q).expand(1, 1, 1, -1)
            mask = bias if mask is None else mask + bias
    return next_attention(before, attention)(q, k, v, *args, mask=mask, **settings)


def _alone(network: Any, segment: Segment, options: dict[str, Any]) -> dict[str, Any]:
    """`transformer_options` under which the tokens of a segment take the place of a picture of one token.

    They are one row under one prompt, and what another pack adds to a picture behind each layer has no picture here.
    """
    place = _Place(network, segment, options.get("rope_options") or {})
    replaced = options.get("patches_replace", {})
    layers = dict(replaced.get("dit", {}))
    count = len(network.blocks)
    for layer in range(count):
        layers[(BLOCK, layer)] = partial(place.around, layer == 0, layer == count - 1, layers.get((BLOCK, layer)))
    return {
        **options,
        "patches_replace": {**replaced, "dit": layers},
        "patches": {kind: patches for kind, patches in options.get("patches", {}).items() if kind != BLOCK},
        "cond_or_uncond": [0],
        "uuids": options.get("uuids", [])[:1],
    }


class _Place:
    """Stands around every layer, and around whatever replaced it before, of one call."""

    def __init__(self, network: Any, segment: Segment, rope_options: dict[str, float]) -> None:
        self._network, self._segment, self._rope_options = network, segment, rope_options
        self._picture: Tensor | None = None
        self._positions: Tensor | None = None

    def around(
        self,
        first: bool,
        last: bool,
        replaced: Callable[..., dict[str, Any]] | None,
        args: dict[str, Any],
        extra: dict[str, Any],
    ) -> dict[str, Any]:
        """The host's `args` of a layer, to its output."""
        if first:
            self._picture = args["img"]
            args = {**args, "img": self._segment.tokens.to(args["img"])}
        if self._positions is None:
            self._positions = rope_table(self._network, self._rope_options, self._segment.positions, args["pe"])
        told = {**args, "pe": self._positions}
        out = extra["original_block"](told) if replaced is None else replaced(told, extra)
        return {**out, "img": self._picture} if last else out
