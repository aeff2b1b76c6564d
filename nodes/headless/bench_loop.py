"""The chunk loop against the host's `sample_ar_video`, same model, noise, steps and reads. Import it after `boot_host`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...kernels.bench.measure import source_commit
from ...memory.chunks import Chunk, Plan, plan_frames
from ...memory.config import BankConfig, MemoryConfig
from ...memory.prompt_bank import PromptBankConfig
from ...memory.rollout import FinishedChunk
from ...memory.trace_lines import told_reads
from ..host.attach import attach_memory
from ..host.build import TinyWanSpec, build_tiny_wan
from ..host.film_sampler import FilmSampler, Noise, SeededNoise
from ..host.guider import FilmGuider
from .bench_trace import TraceCost, measure_trace
from .machine import machine

SIGMAS = (1.0, 0.9375, 0.8333, 0.625, 0.0)
ONE_STEP = (1.0, 0.0)
CHUNK_FRAMES = 3
LATENT_SIZE = (12, 20)  # 60 tokens a frame
CHANNELS, TEXT_WIDTH, WORDS = 16, 4096, 32
EARLY, LATE, AROUND = 20, 200, 5


@dataclass(frozen=True, slots=True)
class LoopBench:
    """What is measured."""

    runs: int
    chunks: int
    long_chunks: int
    width: int
    layers: int = 2
    ffn: int = 8960

    def __post_init__(self) -> None:
        if self.runs < 1 or self.chunks < 1:
            raise ValueError(f"The bench needs at least 1 run and 1 chunk, got {self.runs} and {self.chunks}.")


@dataclass(frozen=True, slots=True)
class LoopResult:
    """Seconds of each run, in the order they were made, and of the chunks of a long film."""

    bench: LoopBench
    machine: dict[str, str]
    host_seconds: list[float]
    our_seconds: list[float]
    error: float
    chunk_seconds: list[float]
    bank_seconds: list[float]
    equal_seconds: list[float]
    trace: TraceCost

    @property
    def ratio(self) -> float:
        """Our time over the host's: the median of the ratios of runs made one after the other."""
        pairs = zip(self.our_seconds, self.host_seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def bank_over_window(self) -> float:
        """Time of a chunk whose prompt brings 3 frames back over one that reads equally many through a larger window."""
        pairs = zip(self.bank_seconds, self.equal_seconds, strict=True)
        return statistics.median(bank / window for bank, window in pairs)

    @property
    def late_over_early(self) -> float | None:
        """Median time of the chunks around 200 over those around 20; None when the film was too short."""
        if len(self.chunk_seconds) <= LATE + AROUND:
            return None
        early, late = (self.chunk_seconds[at - AROUND : at + AROUND + 1] for at in (EARLY, LATE))
        return statistics.median(late) / statistics.median(early)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **asdict(self),
            "ratio": self.ratio,
            "late_over_early": self.late_over_early,
            "bank_over_window": self.bank_over_window,
            "trace": self.trace.to_dict(),
        }

    def table(self) -> str:
        """The result for people, in Markdown."""
        late = self.late_over_early
        rows = [
            ("loop", "median seconds", "ratio"),
            ("---", "---", "---"),
            ("host, sample_ar_video", f"{statistics.median(self.host_seconds):.3f}", "1"),
            ("LongReel, full memory", f"{statistics.median(self.our_seconds):.3f}", f"{self.ratio:.3f}"),
        ]
        if late is not None:
            rows.append((f"window + sink, chunk {LATE} over chunk {EARLY}", "", f"{late:.3f}"))
        bank, window = (statistics.median(seconds) for seconds in (self.bank_seconds, self.equal_seconds))
        rows.append(("a chunk of one step, 3 frames in the window instead of a bank", f"{window:.3f}", "1"))
        rows.append(
            ("a chunk of one step, 3 frames brought back by the prompt", f"{bank:.3f}", f"{self.bank_over_window:.3f}")
        )
        rows += self.trace.rows()
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([*lines, f"same film to {self.error:.1e}; {self.machine}"])


def measure_loop(bench: LoopBench, host_version: str) -> LoopResult:
    """Correctness first, then interleaved runs, one long film, and films with and without a bank.

    Raises RuntimeError when both sides do not make the same film.
    """
    model = build_tiny_wan(TinyWanSpec(width=bench.width, layers=bench.layers, ffn=bench.ffn), causal=True)
    frames = bench.chunks * CHUNK_FRAMES
    full = attach_memory(model, MemoryConfig(window_frames=None, sink_frames=0))
    error = _difference(_host_film(model, frames), _our_film(full, plan_frames(frames, CHUNK_FRAMES)))
    if not error < MAX_ERROR:
        raise RuntimeError(f"The two loops make different films (error {error:.1e}): nothing is measured.")
    sides: tuple[Callable[[], Tensor], ...] = (
        lambda: _host_film(model, frames),
        lambda: _our_film(full, plan_frames(frames, CHUNK_FRAMES)),
    )
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(bench.runs):
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            seconds[side].append(_timed(sides[side]))
    chunk_seconds = _chunk_seconds(attach_memory(model, LONGLIVE), bench.long_chunks)
    remembering = [attach_memory(model, config) for config in (WITH_BANK, WITHOUT_BANK)]
    steady: tuple[list[float], list[float]] = ([], [])
    for run in range(bench.runs):
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            chunks = _chunk_seconds(remembering[side], BANK_CHUNKS)
            steady[side].append(statistics.median(chunks[BANK_STEADY:]))
    facts = {**machine(host_version), "commit": source_commit()}
    searching = attach_memory(model, SEARCHING)
    trace = measure_trace(bench.runs, lambda tallied: _chunk_seconds(searching, BANK_CHUNKS, tallied), BANK_STEADY)
    return LoopResult(bench, facts, *seconds, error, chunk_seconds, *steady, trace)


LONGLIVE = MemoryConfig(window_frames=9, sink_frames=3)
# Both read 12 older frames.
WITH_BANK = replace(LONGLIVE, prompt_bank=PromptBankConfig(frames=3))
SEARCHING = MemoryConfig(window_frames=9, sink_frames=3, bank=BankConfig())
WITHOUT_BANK = MemoryConfig(window_frames=12, sink_frames=3)
BANK_CHUNKS, BANK_STEADY = 16, 8
MAX_ERROR = 1e-4  # float32 rounding through a rollout
SEED = 7


@dataclass(frozen=True, slots=True)
class HostNoise:
    """What the host's loop draws for a film of noise `film` `[1, C, T, H, W]`, so that both make the same one."""

    film: Tensor
    film_seed: int

    def __call__(self, chunk: Chunk, step: int, shape: Sequence[int]) -> Tensor:
        """First the film's noise, then the host's own seeds."""
        if step == 0:
            return self.film[:, :, chunk.frames.start : chunk.frames.stop]
        generator = torch.Generator().manual_seed(self.seed(chunk, "") + step - 1)
        return torch.randn(tuple(shape), generator=generator)

    def seed(self, chunk: Chunk, label: str) -> int:
        """The seed that the host counts up from in a chunk."""
        return self.film_seed + chunk.index * 1000


def _film_noise(frames: int) -> Tensor:
    """Noise `[1, C, T, H, W]`, drawn frame by frame so that it does not depend on the length."""
    draws = [
        torch.randn(1, CHANNELS, 1, *LATENT_SIZE, generator=torch.Generator().manual_seed(frame))
        for frame in range(frames)
    ]
    return torch.cat(draws, dim=2)


def _prompt() -> list[Any]:
    return [[torch.randn(1, WORDS, TEXT_WIDTH, generator=torch.Generator().manual_seed(1)), {}]]


def _host_film(model: ModelPatcher, frames: int) -> Tensor:
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(_prompt(), _prompt())
    noise = _film_noise(frames)
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": CHUNK_FRAMES})
    out: Tensor = guider.sample(
        noise, torch.zeros_like(noise), sampler, torch.tensor(SIGMAS), disable_pbar=True, seed=SEED
    )
    return model.model.process_latent_in(out)  # type: ignore[no-any-return]


def _our_film(
    model: ModelPatcher,
    plan: Plan,
    sigmas: tuple[float, ...] = SIGMAS,
    on_chunk: Callable[[FinishedChunk], None] = lambda done: None,
    tallied: bool = False,
) -> Tensor:
    chunks: list[Tensor] = []

    def finished(done: FinishedChunk, guider: FilmGuider) -> None:
        chunks.append(done.latents)
        on_chunk(done)

    noise: Noise = SeededNoise((SEED,))
    if sigmas is SIGMAS:
        noise = HostNoise(_film_noise(plan.total_frames), SEED)
    sampler = FilmSampler(
        plan=plan,
        noise=noise,
        recache_shots=frozenset(),
        latent_size=LATENT_SIZE,
        inner=None,
        start=None,
        load=lambda index: None,
        finished=finished,
        tallied=tallied,
    )
    guider = FilmGuider(model, [_prompt()], _prompt(), 1.0)
    template = torch.zeros(1, CHANNELS, CHUNK_FRAMES, *LATENT_SIZE)
    guider.sample(template, template, sampler, torch.tensor(sigmas), disable_pbar=True, seed=SEED)
    return torch.cat(chunks, dim=2).cpu()


def _chunk_seconds(remembering: ModelPatcher, chunks: int, tallied: bool = False) -> list[float]:
    """Seconds of each chunk of a film, one step a chunk; with `tallied` what it reads is counted and written down."""
    ticks = [time.perf_counter()]

    def tick(done: FinishedChunk) -> None:
        if done.bank_reads is not None:
            json.dumps(told_reads(done.bank_reads))
        _wait()
        ticks.append(time.perf_counter())

    if chunks:
        _our_film(remembering, plan_frames(chunks * CHUNK_FRAMES, CHUNK_FRAMES), ONE_STEP, tick, tallied)
    return [after - before for before, after in pairwise(ticks)]


def _timed(run: Callable[[], Tensor]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """Until the device has done what it was given."""
    comfy.model_management.synchronize()


def _difference(expected: Tensor, made: Tensor) -> float:
    return float((made - expected).abs().max() / expected.abs().max())
