"""What the kernels cost, against dense attention, a sliding window, and everybody who reads the same lists."""

from __future__ import annotations

from .cases import FilmLists, KernelCase
from .report import KernelBench
from .run import run_kernel_bench
from .tuning import NothingToTuneError, Tuning, tune

__all__ = ["FilmLists", "KernelBench", "KernelCase", "NothingToTuneError", "Tuning", "run_kernel_bench", "tune"]
