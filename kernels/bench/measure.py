"""Times that can be believed: one process, interleaved, warm and cold caches told apart, ceilings of the same machine."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from ..dispatch import architecture, triton_version

FLUSH_BYTES = 256 * 2**20  # more than the second-level cache of any GPU


@dataclass(frozen=True, slots=True)
class Effort:
    """How often everything is run: untimed first, then timed."""

    warm_ups: int
    rounds: int


EFFORTS = {
    ("smoke", "cpu"): Effort(1, 3),
    ("smoke", "cuda"): Effort(2, 5),
    ("full", "cpu"): Effort(0, 3),
    ("full", "cuda"): Effort(20, 50),
}


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds: median and tenths with a cold cache; the median with a warm one on a GPU."""

    milliseconds: float
    p10: float
    p90: float
    warm_milliseconds: float | None


def measure(runs: Mapping[str, Callable[[], object]], effort: Effort, device: torch.device) -> dict[str, Times]:
    """Times of each, taken in rounds so that all of them meet the same machine."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
    cold: dict[str, list[float]] = {name: [] for name in runs}
    warm: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(effort.warm_ups):
            run()
    for number in range(effort.rounds):
        for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
            if flush is not None:
                flush.zero_()
            cold[name].append(milliseconds(runs[name], device))
            if flush is not None:
                warm[name].append(milliseconds(runs[name], device))
    return {name: times(cold[name], warm[name]) for name in runs}


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one run."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def times(cold: list[float], warm: list[float]) -> Times:
    """Median and tenths."""
    ordered = sorted(cold)
    tenth = (len(ordered) - 1) // 10
    return Times(
        statistics.median(ordered), ordered[tenth], ordered[-1 - tenth], statistics.median(warm) if warm else None
    )


def describe_machine(device: torch.device, small: bool) -> dict[str, str | float]:
    """What ran, and the ceilings of this very machine: a large matrix product, and a copy."""
    version, absence = triton_version()
    processor = f"{torch.get_num_threads()} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    facts: dict[str, str | float] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {processor}",
        "architecture": architecture(device),
        "system": platform.platform(terse=True),
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "commit": source_commit(),
        "torch": torch.__version__,
        "triton": ".".join(map(str, version)) if version else absence,
        "python": platform.python_version(),
        **ceilings(device, small),
    }
    if hasattr(os, "getloadavg"):
        facts["load average"] = os.getloadavg()[0]
    tool = shutil.which("nvidia-smi")
    if device.type == "cuda" and tool:
        query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,pstate"
        command = [tool, f"--query-gpu={query}", "--format=csv,noheader"]
        facts[query] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return facts


def source_commit() -> str:
    """The commit of this code, with a mark where files were changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"


def ceilings(device: torch.device, small: bool) -> dict[str, float]:
    """TFLOP/s of a matrix product and GB/s of a copy, on random data."""
    size = 512 if small else 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    source = torch.empty(2**22 if small else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def product() -> Tensor:
        return a @ a

    found = measure({"product": product, "copy": lambda: target.copy_(source)}, Effort(2, 5), device)
    flops, copied = 2 * size**3, 2 * source.numel()
    return {
        "matmul_tflops": flops / found["product"].milliseconds / 1e9,
        "copy_gb_per_second": copied / found["copy"].milliseconds / 1e6,
    }
