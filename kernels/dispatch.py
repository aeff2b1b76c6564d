"""Which implementation of an operation runs: what each needs is data, and a refusal names every one with its reason."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

INTERPRETER = "interpreter"  # the device of a CPU tensor where Triton interprets instead of compiling
OLDEST_TRITON = (3, 6)
HALVES = (torch.float16, torch.bfloat16)
FLOATS = (*HALVES, torch.float32)
INTERPRETED = (torch.float32, torch.float16)


@dataclass(frozen=True, slots=True)
class Facts:
    """What an implementation may ask about a call."""

    device: str
    arch: str
    dtype: torch.dtype
    head_dim: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What an implementation needs; an empty tuple takes everything."""

    devices: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    head_dims: tuple[int, ...] = ()
    triton: tuple[int, int] | None = None

    def refusal(self, facts: Facts) -> str | None:
        """Why a call cannot be served, or None when it can."""
        for name, allowed, got in (
            ("device", self.devices, facts.device),
            ("architecture", self.archs, facts.arch),
            ("dtype", self.dtypes, facts.dtype),
            ("head size", self.head_dims, facts.head_dim),
        ):
            if allowed and got not in allowed:
                return f"needs {name} {' or '.join(map(str, allowed))}, got {got}"
        if self.triton is None:
            return None
        version, absence = triton_version()
        if version is None:
            return absence
        if version < self.triton:
            return f"needs Triton {self.triton[0]}.{self.triton[1]} or newer, got {version[0]}.{version[1]}"
        return None


@dataclass(frozen=True, slots=True)
class Implementation:
    """A function of the operation's name in `module`, imported when it is first chosen."""

    name: str
    module: str
    needs: Needs


def implementations(package: str, head_dims: tuple[int, ...] = ()) -> tuple[Implementation, ...]:
    """The usual three of an operation: Triton's, torch's, and Triton's as interpreted in tests."""
    kernel = f"{package}.triton_kernel"
    return (
        Implementation("triton", kernel, Needs(("cuda",), (), HALVES, head_dims, OLDEST_TRITON)),
        Implementation("torch", f"{package}.torch_path", Needs(dtypes=FLOATS)),
        # After torch, so that it runs only when it is asked for by name. It computes bfloat16 wrongly.
        Implementation("interpreted", kernel, Needs((INTERPRETER,), (), INTERPRETED, head_dims, OLDEST_TRITON)),
    )


class NoImplementationError(RuntimeError):
    """No implementation can serve a call."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Implementations of one operation, the preferred one first."""

    name: str
    implementations: tuple[Implementation, ...]

    def choose(self, facts: Facts, wanted: str | None = None) -> Callable[..., Any]:
        """The first implementation that can serve the call, or the one that is wanted.

        Raises NoImplementationError with the reason of every implementation that was passed over.
        """
        reasons = []
        for implementation in self.implementations:
            asked = wanted in (None, implementation.name)
            reason = implementation.needs.refusal(facts) if asked else f"{wanted} was asked for"
            if reason is None:
                function: Callable[..., Any] = getattr(importlib.import_module(implementation.module), self.name)
                return function
            reasons.append(f"  {implementation.name}: {reason}")
        raise NoImplementationError(f"Nothing can run {self.name} here:\n" + "\n".join(reasons))


def facts_of(tensor: torch.Tensor) -> Facts:
    """Facts of a call from a tensor `[..., D]` that takes part in it."""
    device = tensor.device.type
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        device = INTERPRETER
    return Facts(device, architecture(tensor.device), tensor.dtype, tensor.shape[-1])


@cache
def architecture(device: torch.device) -> str:
    """Name of a device's architecture: sm89, gfx1100, or its type where that says enough."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip is not None:
        name: str = torch.cuda.get_device_properties(device).gcnArchName
        return name.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


@cache
def triton_version() -> tuple[tuple[int, int] | None, str]:
    """Version of Triton, or None and why there is none."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError as error:
        return None, f"needs Triton, which cannot be imported: {error}"
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)), ""
