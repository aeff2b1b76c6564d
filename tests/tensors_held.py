"""Tensors that objects hold, and their bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

import torch
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


@contextmanager
def nan_memory() -> Iterator[None]:
    """Every byte that was not written reads as NaN."""
    empty = torch.empty
    torch.empty = lambda *args, **kwargs: _worst(empty(*args, **kwargs))
    try:
        yield
    finally:
        torch.empty = empty


def _worst(tensor: Tensor) -> Tensor:
    return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
