"""History that is read once for the frames being made: its keys and values are kept in the first call, and read by the others.

Tokens of history then look at history alone, so they are the same in every call. Both are attention overrides; in calls that read
what was kept no token of history joins the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...memory.committed_history import KeptLayers
from ...memory.encoded_history import History
from .keys import OVERRIDE

LAYER = "block_index"
"""The host's name for the number of a layer."""


def next_attention(before: Any, attention: Any) -> Callable[..., Tensor]:
    """What an attention override asks: whatever was there `before`, or the host's `attention`; told a mask only where there is one."""
    call = attention if before is None else partial(before, attention)

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, mask: Tensor | None = None, **settings: Any) -> Tensor:
        told = {} if mask is None else {"mask": mask}
        made: Tensor = call(q, k, v, *args, **told, **settings)
        return made

    return attend


def keeping(options: dict[str, Any], history: History, kept: KeptLayers) -> dict[str, Any]:
    """`transformer_options` under which a call that `history` joins fills `kept`."""
    return {**options, OVERRIDE: partial(_keep, history.tokens.shape[1], kept, options.get(OVERRIDE))}


def _keep(
    tokens: int,
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
    """An attention override around whatever was there `before`: `tokens` of history stand behind those of the frames being made."""
    call = next_attention(before, attention)
    layer = settings["transformer_options"][LAYER]
    if k.shape[1] != q.shape[1] or layer in kept:
        return call(q, k, v, *args, mask=mask, **settings)
    own = q.shape[1] - tokens
    first = behind = None
    if mask is not None:
        first, behind = (mask, mask) if mask.shape[-2] == 1 else (mask[..., :own, :], mask[..., own:, :])
        behind = behind[..., own:]
    kept[layer] = [(k[:1, own:].clone(), v[:1, own:].clone())]
    return torch.cat(
        [
            call(q[:, :own], k, v, *args, mask=first, **settings),
            call(q[:, own:], k[:, own:], v[:, own:], *args, mask=behind, **settings),
        ],
        dim=1,
    )


def reading(options: dict[str, Any], counts: Tensor | None, kept: KeptLayers) -> dict[str, Any]:
    """`transformer_options` under which one call without history reads what was `kept` of it; `counts` are those of its tokens."""
    return {**options, OVERRIDE: partial(_Reader(counts, kept).attend, options.get(OVERRIDE))}


class _Reader:
    """One call: in every layer the first attention is that among the frames being made."""

    def __init__(self, counts: Tensor | None, kept: KeptLayers) -> None:
        self._counts, self._left = counts, dict(kept)
        self._mask: Tensor | None = None

    def attend(
        self,
        before: Any,
        attention: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *args: Any,
        mask: Tensor | None = None,
        **settings: Any,
    ) -> Tensor:
        """An attention override around whatever was there `before`."""
        found = self._left.pop(settings["transformer_options"][LAYER], None)
        if found is not None:
            k, v = (
                torch.cat([own, *(piece.expand(len(own), -1, -1) for piece in theirs)], dim=1)
                for own, theirs in zip((k, v), zip(*found, strict=True), strict=True)
            )
            mask = self._told(q, k, mask)
        return next_attention(before, attention)(q, k, v, *args, mask=mask, **settings)

    def _told(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask of the frames being made, under which a token of history counts as often as it should."""
        counts = self._counts
        if counts is None:
            return None if mask is None else pad(mask, (0, k.shape[1] - q.shape[1]))
        if self._mask is None:
            own = q.new_zeros(1, 1, 1, q.shape[1])
            self._mask = torch.cat([own, counts.log().to(q).expand(1, 1, 1, -1)], dim=-1)
        return self._mask if mask is None else self._mask + pad(mask, (0, len(counts)))
