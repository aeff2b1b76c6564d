"""A second way from a memory encoder into the model: every layer reads the encoder's last hidden states by cross-attention.

TinyHistory (arXiv 2512.23851) has it as an option and shows it in a figure only, so this is the smallest that can be: keys and values
are made once for all layers, each layer has its query and its way back. What is read carries no position: the tokens, which are
read beside it, say where everything was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

CrossReader = Callable[[int, Tensor], Tensor]
"""What a layer, by its number, adds to the frames being made `[B, L, width]`."""


def together(readers: Sequence[CrossReader]) -> CrossReader:
    """What several encoders add, one or more."""
    first, *others = readers
    return lambda layer, x: sum((read(layer, x) for read in others), first(layer, x))


class CrossAttention(nn.Module):
    """`layers` layers of a model of this `width` read hidden states of another, `hidden`; a way back of zeros is where training starts."""

    def __init__(self, width: int, hidden: int, heads: int, layers: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.told = operations.Linear(hidden, 2 * hidden, **factory)
        self.norm = operations.LayerNorm(width, elementwise_affine=False, **factory)
        self.layers: list[CrossLayer] = []
        for number in range(layers):
            self.layers.append(CrossLayer(width, hidden, operations, **factory))
            self.add_module(str(number), self.layers[-1])

    def reader(self, hidden: Tensor) -> CrossReader:
        """Of hidden states `[1 or B, M, hidden]`."""
        keys, values = self.told(hidden).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, M, D] each

        def read(layer: int, x: Tensor) -> Tensor:
            q = self.layers[layer].query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = (part.to(x).expand(len(x), -1, -1, -1) for part in (keys, values))
            found = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            added: Tensor = self.layers[layer].project(found)
            return added

        return read


class CrossLayer(nn.Module):
    """What one layer asks, and what it makes of the answer."""

    def __init__(self, width: int, hidden: int, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.query = operations.Linear(width, hidden, **factory)
        self.project = operations.Linear(hidden, width, **factory)
