"""HunyuanVideo adds to its hidden states in place; gradients need them as they were."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class AddsApart(TorchFunctionMode):
    """`x += y` makes a new tensor; torch calls it `add_`, which no layer of these models uses in any other way.

    Torch's own switch for tensors that are written over (`allow_mutation_on_saved_tensors`) knows them by address: it may take one for
    another that lay there before.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's own door for every call that is made in here."""
        return args[0] + args[1] if func is Tensor.add_ else func(*args, **(kwargs or {}))
