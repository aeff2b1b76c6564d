"""What holds for every run: nothing is left behind, bits repeat, longer films start with shorter ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from film import FOUR_STEPS, FULL, LATENT_CHANNELS, TINY_SIZE, prompt, render
from torch import Tensor

from longreel.memory.chunks import Chunk, plan_chunks, plan_frames
from longreel.memory.config import MemoryConfig
from longreel.memory.positions import PositionPolicy
from longreel.memory.rollout import FinishedChunk
from longreel.memory.storyboard_parser import read_storyboard
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.film_sampler import SeededNoise
from longreel.nodes.planned_storyboard import plan_storyboard

SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
SMALL = TinyWanSpec(width=128, layers=1, ffn=256, seed=3)
SMALL_SIZE = (4, 4)
WINDOW_AND_SINK = MemoryConfig(window_frames=6, sink_frames=3)
TWENTY_SECONDS = """
[0s-5s] a beach
[5s-12s, recache] a town
[12s-16s, seed 5] a forest
[16s-20s] a meadow
"""
TWENTY_MORE = """
[20s-31s, recache] a desert
[31s-40s] a mountain
"""
Run = Callable[[ModelPatcher], None]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "causal"])
def model(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "causal"])
def small(host: object, request: pytest.FixtureRequest) -> ModelPatcher:
    return build_tiny_wan(SMALL, causal=request.param)


def unpatched_output(model: ModelPatcher, steps: int = 4) -> Tensor:
    """What the host's own Euler sampler makes of the model, without us."""
    noise = SeededNoise((7,))(Chunk(0, range(3), 0), 0, (1, LATENT_CHANNELS, 3, *TINY_SIZE))
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(prompt(0), prompt(99, words=3))
    sigmas = torch.tensor(FOUR_STEPS[-steps - 1 :])
    sampler = comfy.samplers.ksampler("euler")
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=7)


def test_a_memory_with_nothing_to_read_leaves_the_first_chunk_as_the_unpatched_model_makes_it(
    model: ModelPatcher,
) -> None:
    film = render(model, plan_frames(3, 3), prompts=(prompt(0),), inner=comfy.samplers.ksampler("euler"))
    mine = model.model.process_latent_out(film.latents)
    assert torch.equal(mine, unpatched_output(model))


def finished_run(model: ModelPatcher) -> None:
    render(model)


def cancelled_run(model: ModelPatcher) -> None:
    def cancel(finished: FinishedChunk) -> None:
        comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        render(model, on_chunk=cancel)


def failed_run(model: ModelPatcher) -> None:
    def fail(finished: FinishedChunk) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        render(model, on_chunk=fail)


def run_of_another_sampler(model: ModelPatcher) -> None:
    unpatched_output(attach_memory(model, FULL))


@pytest.mark.parametrize("run", [finished_run, cancelled_run, failed_run, run_of_another_sampler])
def test_after_any_run_an_unpatched_clone_gives_the_bits_it_gave_before(model: ModelPatcher, run: Run) -> None:
    before = unpatched_output(model)
    run(model)
    assert torch.equal(unpatched_output(model), before)


def test_nothing_of_a_run_stays_in_the_options_of_the_model(model: ModelPatcher) -> None:
    remembering = attach_memory(model, FULL)
    before = repr(sorted(remembering.model_options["transformer_options"]))
    render(remembering, attached=True)
    assert repr(sorted(remembering.model_options["transformer_options"])) == before


def test_two_runs_give_the_same_bits(model: ModelPatcher) -> None:
    first, second = (render(model, config=WINDOW_AND_SINK) for _ in range(2))
    assert torch.equal(first.latents, second.latents)


def test_memory_attached_twice_is_the_memory_attached_last(model: ModelPatcher) -> None:
    twice = attach_memory(attach_memory(model, FULL), WINDOW_AND_SINK)
    film = render(twice, plan_frames(12, 3), attached=True)
    assert torch.equal(film.latents, render(model, plan_frames(12, 3), config=WINDOW_AND_SINK).latents)


def test_a_longer_film_starts_with_the_chunks_of_the_shorter_one(model: ModelPatcher) -> None:
    short = render(model, plan_chunks((3, 2), 3), config=WINDOW_AND_SINK)
    long = render(model, plan_chunks((3, 5), 3), config=WINDOW_AND_SINK)
    assert torch.equal(long.latents[:, :, : short.latents.shape[2]], short.latents)


def storyboard_film(text: str, model: ModelPatcher) -> Tensor:
    """Latents of a storyboard, one step a chunk."""
    board = read_storyboard(text)
    prompts = tuple(prompt(number) for number in range(len(board.shots)))
    planned = plan_storyboard(board, prompts, prompt(99), fps=16, frames_per_chunk=3)
    return render(
        model,
        planned.plan(),
        config=WINDOW_AND_SINK,
        prompts=prompts,
        noise=SeededNoise(planned.seeds(7)),
        recache_shots=planned.recache_shots,
        sigmas=(1.0, 0.0),
        size=SMALL_SIZE,
    ).latents


def test_a_film_of_40_s_starts_with_the_whole_chunks_of_the_one_of_20_s(small: ModelPatcher) -> None:
    short, long = (storyboard_film(text, small) for text in (TWENTY_SECONDS, TWENTY_SECONDS + TWENTY_MORE))
    assert (short.shape[2], long.shape[2]) == (27 * 3, 53 * 3)
    assert torch.equal(long[:, :, : short.shape[2]], short)


@pytest.mark.parametrize(
    ("positions", "inner", "cfg", "seeded_frames"),
    [
        ("absolute", None, 1.0, 0),
        ("absolute", None, 5.0, 0),
        ("absolute", None, 1.0, 1),
        ("absolute", "euler", 1.0, 0),
        ("contiguous", None, 1.0, 0),
        ("clamped", None, 1.0, 0),
        ("contiguous", "euler", 5.0, 1),
    ],
    ids=["few steps", "guided", "start image", "euler", "contiguous", "clamped", "all together"],
)
def test_a_resumed_film_has_the_bits_of_the_uninterrupted_one(
    small: ModelPatcher, positions: str, inner: str | None, cfg: float, seeded_frames: int
) -> None:
    policy = PositionPolicy(positions)
    start = torch.randn(1, LATENT_CHANNELS, 1, *SMALL_SIZE, generator=torch.Generator().manual_seed(5))
    settings: dict[str, Any] = {
        "config": MemoryConfig(window_frames=6, sink_frames=3, positions=policy, trained_frames=6),
        "inner": None if inner is None else comfy.samplers.ksampler(inner),
        "cfg": cfg,
        "start": start if seeded_frames else None,
        "recache_shots": frozenset({1}),
        "sigmas": (1.0, 0.8333, 0.0),
        "size": SMALL_SIZE,
    }
    plan = plan_chunks((3, 3), 3, seeded_frames)
    whole = render(small, plan, **settings)
    assert whole.chunks[3].recached_frames
    for kept in (2, 5):  # in the shot before the encoding anew, and in the one after
        saved = {finished.chunk.index: finished.latents for finished in whole.chunks[:kept]}
        resumed = render(small, plan, **settings, load=saved.get)
        assert [finished.replayed for finished in resumed.chunks] == [True] * kept + [False] * (6 - kept)
        assert torch.equal(resumed.latents, whole.latents)


def shot_two(model: ModelPatcher, first_prompt: Any, config: MemoryConfig, cfg: float, words: int) -> Tensor:
    prompts = (first_prompt, prompt(1, words=words))
    film = render(model, plan_chunks((2, 1), 3), config=config, prompts=prompts, negative=prompt(99, 3), cfg=cfg)
    return film.chunks[-1].latents


@pytest.mark.parametrize("words", [3, 11], ids=["one batch", "unequal text lengths"])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_shot_two_reads_the_pages_of_shot_one(model: ModelPatcher, cfg: float, words: int) -> None:
    forgetful = MemoryConfig(window_frames=3, sink_frames=0)
    with_memory = [shot_two(model, prompt(seed, 3), WINDOW_AND_SINK, cfg, words) for seed in (10, 11)]
    without = [shot_two(model, prompt(seed, 3), forgetful, cfg, words) for seed in (10, 11)]
    assert not torch.equal(*with_memory)
    assert torch.equal(*without)


def test_a_node_that_skips_the_finished_chunk_is_one_clear_error(model: ModelPatcher) -> None:
    def skip_clean(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Any:
        return x if float(timestep.max()) == 0 else executor(x, timestep, *args, **kwargs)

    caching = model.clone()
    caching.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "step cache", skip_clean)
    with pytest.raises(RuntimeError, match=r"2 were skipped.*Remove step caches"):
        render(caching)
