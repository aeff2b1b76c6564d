"""What the kernels cost, against dense attention, a sliding window, and everybody who reads the same lists."""

from __future__ import annotations

from .run import KernelBench, run_kernel_bench

__all__ = ["KernelBench", "run_kernel_bench"]
