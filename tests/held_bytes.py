"""What a long film holds in memory while it is made, counted on the tensors themselves."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch
from film import LATENT_CHANNELS, prompt
from tensors_held import bytes_of, tensors_of
from torch import Tensor

from longreel.memory.chunks import plan_frames
from longreel.memory.config import MemoryConfig
from longreel.memory.rollout import FinishedChunk
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.film_sampler import FilmSampler, SeededNoise
from longreel.nodes.host.guider import FilmGuider
from longreel.nodes.host.keys import SESSION

FRAMES_PER_SECOND = 4  # 16 pictures
FIRST_LOOK_SECONDS = 20
LOOKS = 6


@dataclass(frozen=True)
class Held:
    """Bytes after a chunk: in the memory of the run, and in the whole process; what the memory announced."""

    memory: int
    process: int
    announced: int


def living_tensors() -> list[Tensor]:
    """Every tensor of the process."""
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]


def held_bytes(seconds: int) -> list[Held]:
    """Looks at the memory of a tiny film of this length (window + sink), the first one after 20 seconds."""
    model = build_tiny_wan(TinyWanSpec(width=128, layers=1, ffn=128, seed=3))
    plan = plan_frames(seconds * FRAMES_PER_SECOND, 3)
    first, last = FIRST_LOOK_SECONDS * FRAMES_PER_SECOND // 3, len(plan.chunks) - 1
    looks = {first + (last - first) * look // (LOOKS - 1) for look in range(LOOKS)}
    held: list[Held] = []

    def finished(done: FinishedChunk, guider: FilmGuider) -> None:
        if done.chunk.index in looks:
            memory = guider.model_options["transformer_options"][SESSION].memory
            held.append(Held(bytes_of(tensors_of(memory)), bytes_of(living_tensors()), memory.peak_bytes))

    guider = FilmGuider(attach_memory(model, MemoryConfig()), (prompt(0, words=1),), prompt(99, words=1), cfg=1.0)
    sampler = FilmSampler(plan, SeededNoise((1,)), frozenset(), (2, 2), None, None, lambda index: None, finished)
    chunk = torch.zeros(1, LATENT_CHANNELS, plan.longest_chunk, 2, 2)
    with torch.inference_mode():
        guider.sample(chunk, chunk, sampler, torch.tensor((1.0, 0.0)), disable_pbar=True, seed=1)
    return held
