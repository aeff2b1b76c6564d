"""Tensors that objects hold, and their bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from types import FunctionType, ModuleType

from torch import Tensor


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take, memory that they share counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_of(thing: object) -> list[Tensor]:
    """Every tensor that an object holds, however deep."""
    found, waiting, seen = [], [thing], set()
    while waiting:
        held = waiting.pop()
        if id(held) in seen or isinstance(held, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            found.append(held)
        else:
            waiting.extend(gc.get_referents(held))
    return found
