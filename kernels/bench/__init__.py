"""What the kernels cost, against dense attention, a sliding window, and everybody who reads the same lists."""

from __future__ import annotations

from .report import KernelBench
from .run import run_kernel_bench
from .tuning import NothingToTuneError, Tuning, tune

__all__ = ["KernelBench", "NothingToTuneError", "Tuning", "run_kernel_bench", "tune"]
