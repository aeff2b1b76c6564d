"""Films that are remembered through an encoder: what each chunk reads, in the real host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from encoders import ENCODER, SPEC, encoders_in
from film import FOUR_STEPS, LATENT_CHANNELS, prompt
from numerics import BF16_COMPUTE_ERROR, FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor

from longreel.memory.chunks import Chunk, Plan, plan_chunks
from longreel.memory.encoded_history import History, HistoryConfig, Level, Stretch
from longreel.memory.encoder import token_positions
from longreel.memory.encoder_spec import LowBranch, Modulation, Rate
from longreel.memory.history_session import Reading
from longreel.memory.rollout import FinishedChunk
from longreel.memory.transitions import Reach
from longreel.nodes.host.build import build_tiny_vae, build_tiny_wan
from longreel.nodes.host.encoder_model import LoadedEncoder, attach_encoder
from longreel.nodes.host.film_sampler import FilmSampler, SeededNoise
from longreel.nodes.host.guider import FilmGuider
from longreel.nodes.host.keys import HISTORY
from longreel.nodes.host.wan_history import with_history

SIZE = (8, 8)
PLAN = plan_chunks((2, 2), 3)


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    return encoders_in(tmp_path)


def render(
    model: ModelPatcher,
    encoder: LoadedEncoder,
    plan: Plan = PLAN,
    *,
    cfg: float = 1.0,
    inner: str | None = None,
    sigmas: tuple[float, ...] = (1.0, 0.8333, 0.0),
    start: Tensor | None = None,
    load: Callable[[int], Tensor | None] = lambda index: None,
    on_chunk: Callable[[FinishedChunk], None] = lambda finished: None,
    reaches: tuple[Reach, ...] = (),
    first_prompt: int = 0,
    vae: Any = None,
    attached: bool = False,
) -> list[FinishedChunk]:
    """Render a plan with an encoder through the host's guider."""
    chunks: list[FinishedChunk] = []

    def finished(chunk: FinishedChunk, guider: FilmGuider) -> None:
        chunks.append(chunk)
        on_chunk(chunk)

    reading = model if attached else attach_encoder(model, encoder, vae)
    guider = FilmGuider(reading, (prompt(first_prompt), prompt(1, words=5)), prompt(99, words=3), cfg)
    sampler = FilmSampler(
        plan=plan,
        noise=SeededNoise((7, 7)),
        recache_shots=frozenset(),
        latent_size=SIZE,
        inner=None if inner is None else comfy.samplers.ksampler(inner),
        start=start,
        load=load,
        finished=finished,
        reaches=reaches,
    )
    template = torch.zeros(1, LATENT_CHANNELS, plan.longest_chunk, *SIZE)
    guider.sample(template, template, sampler, torch.tensor(sigmas), disable_pbar=True, seed=7)
    return chunks


def latents(chunks: list[FinishedChunk]) -> Tensor:
    return torch.cat([chunk.latents for chunk in chunks], dim=2)


def unpatched_output(model: ModelPatcher, cfg: float = 1.0) -> Tensor:
    """The first chunk as the host's own Euler sampler makes it, without us."""
    noise = SeededNoise((7,))(Chunk(0, range(3), 0), 0, (1, LATENT_CHANNELS, 3, *SIZE))
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(prompt(0), prompt(99, words=3))
    guider.set_cfg(cfg)
    sampler = comfy.samplers.ksampler("euler")
    return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(FOUR_STEPS), disable_pbar=True, seed=7)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_with_an_empty_history_the_first_chunk_has_the_bits_of_the_unpatched_model(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], cfg: float
) -> None:
    film = render(model, loaded(), plan_chunks((1,), 3), inner="euler", sigmas=FOUR_STEPS, cfg=cfg)
    assert torch.equal(model.model.process_latent_out(film[0].latents), unpatched_output(model, cfg))


def test_a_chunk_is_what_the_model_makes_beside_the_encoded_film(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    """The same by hand: a window of 2 whole frames as the host itself joins them, without tokens of the encoder."""
    encoder = loaded(HistoryConfig(window_frames=2, longest_frames=1), modulation=Modulation.TARGET)
    film = render(model, encoder, plan_chunks((2,), 3), sigmas=(1.0, 0.0))
    network = model.model.diffusion_model
    noise = SeededNoise((7, 7))(Chunk(1, range(3, 6), 0), 0, (1, LATENT_CHANNELS, 3, *SIZE))
    # Distances alone count, so two frames before the chunk may stand first in a sequence of five.
    sequence = torch.cat([film[0].latents[:, :, 1:], noise], dim=2)
    with torch.no_grad():
        flow = network(sequence, torch.tensor([1000.0]), prompt(0)[0][0])[:, :, 2:]
    assert relative_error(film[1].latents, noise - flow) < FORWARD_ERROR


def test_a_chunk_reads_what_the_encoder_makes_of_all_frames_before_it(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    encoder = loaded(HistoryConfig(window_frames=0))
    film = render(model, encoder, plan_chunks((3,), 3), sigmas=(1.0, 0.0))
    network = model.model.diffusion_model
    noise = SeededNoise((7, 7))(Chunk(2, range(6, 9), 0), 0, (1, LATENT_CHANNELS, 3, *SIZE))
    with torch.no_grad():
        tokens = encoder.patcher.model(latents(film[:2]), network.patch_embedding)
        positions = token_positions(ENCODER, ENCODER.grid(6, *SIZE), first_frame=-6)
        options = with_history(network, History(tokens, positions, ENCODER.modulation), {})
        flow = network(noise, torch.tensor([1000.0]), prompt(0)[0][0], transformer_options=options)
    assert relative_error(film[2].latents, noise - flow) < FORWARD_ERROR


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_tokens_with_prompts_of_their_own_read_those_of_their_shots(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], cfg: float
) -> None:
    """By hand, with guidance as well: both rows of the batch read the film under the prompts that it was made under."""
    encoder = loaded(HistoryConfig(window_frames=1), own_prompts=True)
    film = render(model, encoder, plan_chunks((1, 2), 3), sigmas=(1.0, 0.0), cfg=cfg)
    network = model.model.diffusion_model
    noise = SeededNoise((7, 7))(Chunk(2, range(6, 9), 1), 0, (1, LATENT_CHANNELS, 3, *SIZE))
    first, second, negative = prompt(0)[0][0], prompt(1, words=5)[0][0], prompt(99, words=3)[0][0]
    with torch.no_grad():
        past = latents(film[:2])
        whole = network.patch_embedding(past[:, :, -1:]).flatten(2).transpose(1, 2)
        tokens = torch.cat([encoder.patcher.model(past, network.patch_embedding), whole], dim=1)
        places = torch.cartesian_prod(torch.tensor([-1.0]), torch.arange(4.0), torch.arange(4.0))
        positions = torch.cat([token_positions(ENCODER, ENCODER.grid(6, *SIZE), first_frame=-6), places])
        # Two of the three frames of tokens begin in the first shot.
        prompts = ((Stretch(8, first[0]), Stretch(4 + 16, second[0])),)
        history = History(tokens, positions, ENCODER.modulation, prompts=prompts)
        flow, away = (
            network(noise, torch.tensor([1000.0]), text, transformer_options=with_history(network, history, {}))
            for text in (second, negative)
        )
    assert relative_error(film[2].latents, noise - (away + cfg * (flow - away))) < FORWARD_ERROR
    plain = render(model, loaded(HistoryConfig(window_frames=1)), plan_chunks((1, 2), 3), sigmas=(1.0, 0.0), cfg=cfg)
    assert relative_error(plain[2].latents, film[2].latents) > NOT_ROUNDING


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_what_two_encoders_tell_is_read_as_one_history_that_was_joined_by_hand(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], cfg: float
) -> None:
    """Tokens that differ in all that can differ: reach, rate, noise level, prompts and how often they count."""
    fine = loaded(HistoryConfig(window_frames=0, longest_frames=2), rate=Rate(2, 2, 1), modulation=Modulation.TARGET)
    coarse = loaded(HistoryConfig(window_frames=3), own_prompts=True, proportional=True)
    film = render(model, replace(fine, beside=coarse), plan_chunks((1, 2), 3), sigmas=(1.0, 0.0), cfg=cfg)
    network = model.model.diffusion_model
    noise = SeededNoise((7, 7))(Chunk(2, range(6, 9), 1), 0, (1, LATENT_CHANNELS, 3, *SIZE))
    first, second, negative = prompt(0)[0][0], prompt(1, words=5)[0][0], prompt(99, words=3)[0][0]
    with torch.no_grad():
        past = latents(film[:2])
        newest = fine.patcher.model(past[:, :, 4:], network.patch_embedding)
        older = coarse.patcher.model(past, network.patch_embedding)
        positions = torch.cat(
            [
                token_positions(fine.spec, fine.spec.grid(2, *SIZE), first_frame=-2),
                token_positions(coarse.spec, coarse.spec.grid(6, *SIZE), first_frame=-6),
            ]
        )
        history = History(
            torch.cat([newest, older], dim=1),
            positions,
            (Level(8, Modulation.TARGET), Level(12, Modulation.CLEAN)),
            prompts=((Stretch(8, None), Stretch(8, first[0]), Stretch(4, second[0])),),
            counts=torch.tensor([1.0] * 8 + [8.0] * 12),
        )
        flow, away = (
            network(noise, torch.tensor([1000.0]), text, transformer_options=with_history(network, history, {}))
            for text in (second, negative)
        )
    assert relative_error(film[2].latents, noise - (away + cfg * (flow - away))) < FORWARD_ERROR
    alone = render(model, coarse, plan_chunks((1, 2), 3), sigmas=(1.0, 0.0), cfg=cfg)
    assert relative_error(alone[2].latents, film[2].latents) > NOT_ROUNDING


def test_what_is_read_is_told(model: ModelPatcher, loaded: Callable[..., LoadedEncoder]) -> None:
    film = render(model, loaded(HistoryConfig(window_frames=2)))
    assert [chunk.read_frames for chunk in film] == [(), (1, 2), (4, 5), (7, 8)]
    # 3, 6 and 9 frames are 1, 3 and 4 frames of tokens, each a quarter of the model's own; 2 frames come whole.
    assert [chunk.frames_worth for chunk in film] == [0, 2.25, 2.75, 3.0]


@pytest.mark.parametrize("window", [0, 2])
def test_a_later_shot_reads_the_first(model: ModelPatcher, loaded: Callable[..., LoadedEncoder], window: int) -> None:
    encoder = loaded(HistoryConfig(window_frames=window))
    films = [render(model, encoder, plan_chunks((1, 1), 3), first_prompt=seed) for seed in (0, 10)]
    assert relative_error(films[0][1].latents, films[1][1].latents) > NOT_ROUNDING


def test_a_history_that_is_too_short_forgets_the_first_shot(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    plan = plan_chunks((1, 3), 3)
    saved = {1: torch.zeros(1, LATENT_CHANNELS, 3, *SIZE), 2: torch.ones(1, LATENT_CHANNELS, 3, *SIZE)}
    for longest, forgets in ((6, True), (None, False)):
        encoder = loaded(HistoryConfig(window_frames=1, longest_frames=longest))
        films = [render(model, encoder, plan, first_prompt=seed, load=saved.get) for seed in (0, 10)]
        assert torch.equal(films[0][3].latents, films[1][3].latents) is forgets


def test_a_clean_cut_forgets_what_was_before_and_a_cut_the_window_alone(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    encoder = loaded()
    for reach, forgets in ((Reach(3, 3), True), (Reach(3, 0), False)):
        films = [
            render(model, encoder, plan_chunks((1, 1), 3), first_prompt=seed, reaches=(Reach(), reach))
            for seed in (0, 10)
        ]
        assert films[0][1].read_frames == ()
        assert torch.equal(films[0][1].latents, films[1][1].latents) is forgets


@pytest.mark.parametrize(
    ("inner", "cfg", "start", "rate", "low"),
    [
        (None, 1.0, False, "2x2x2", LowBranch.LATENTS),
        (None, 5.0, True, "2x2x4", LowBranch.LATENTS),
        ("euler", 5.0, False, "4x4x2", LowBranch.NONE),
        ("dpmpp_2m", 1.0, True, "2x2x1", LowBranch.LATENTS),
        (None, 1.0, False, "2x2x8", LowBranch.VIDEO),
    ],
)
def test_a_resumed_film_has_the_bits_of_the_uninterrupted_one(
    model: ModelPatcher,
    loaded: Callable[..., LoadedEncoder],
    inner: str | None,
    cfg: float,
    start: bool,
    rate: str,
    low: LowBranch,
) -> None:
    encoder = loaded(rate=Rate.parse(rate), low=low, own_prompts=start)
    first = torch.randn(1, LATENT_CHANNELS, 1, *SIZE, generator=torch.Generator().manual_seed(5))
    settings: dict[str, Any] = {"inner": inner, "cfg": cfg, "start": first if start else None}
    if low is LowBranch.VIDEO:
        settings["vae"] = build_tiny_vae()
    plan = plan_chunks((2, 2), 3, 1 if start else 0)
    whole = render(model, encoder, plan, **settings)
    assert torch.isfinite(latents(whole)).all()
    for kept in (1, 3):
        saved = {chunk.chunk.index: chunk.latents for chunk in whole[:kept]}
        resumed = render(model, encoder, plan, **settings, load=saved.get)
        assert [chunk.replayed for chunk in resumed] == [True] * kept + [False] * (4 - kept)
        assert torch.equal(latents(resumed), latents(whole))


def test_the_low_resolution_branch_alone_needs_no_weights(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    """The training-free entry; its first tokens are those of an encoder whose training has not begun."""
    alone = loaded(HistoryConfig(window_frames=0), high=False)
    film = render(model, alone, first_prompt=0)
    assert [chunk.frames_worth for chunk in film] == [0, 0.25, 0.75, 1.0]
    other = render(model, alone, first_prompt=10)
    assert relative_error(film[2].latents, other[2].latents) > NOT_ROUNDING


def test_a_start_image_is_remembered(model: ModelPatcher, loaded: Callable[..., LoadedEncoder]) -> None:
    images = (torch.zeros(1, LATENT_CHANNELS, 1, *SIZE), torch.ones(1, LATENT_CHANNELS, 1, *SIZE))
    films = [render(model, loaded(), plan_chunks((1,), 3, 1), start=image) for image in images]
    assert films[0][0].read_frames == (0,)
    assert not torch.equal(films[0][0].latents, films[1][0].latents)


def cancelled(finished: FinishedChunk) -> None:
    comfy.model_management.interrupt_current_processing()


def failed(finished: FinishedChunk) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("reading", Reading)
@pytest.mark.parametrize(
    ("on_chunk", "error"),
    [
        (lambda finished: None, None),
        (cancelled, comfy.model_management.InterruptProcessingException),
        (failed, OSError),
    ],
    ids=["finished", "cancelled", "failed"],
)
def test_after_any_run_an_unpatched_clone_gives_the_bits_it_gave_before_and_nothing_stays(
    model: ModelPatcher,
    loaded: Callable[..., LoadedEncoder],
    on_chunk: Any,
    error: type[BaseException] | None,
    reading: Reading,
) -> None:
    encoder = replace(loaded(own_prompts=True), reading=reading)
    before, patched = unpatched_output(model), attach_encoder(model, encoder)
    if error is None:
        render(patched, encoder, on_chunk=on_chunk, attached=True)
    else:
        with pytest.raises(error):
            render(patched, encoder, on_chunk=on_chunk, attached=True)
    assert HISTORY not in patched.model_options["transformer_options"]
    assert torch.equal(unpatched_output(model), before)
    assert torch.equal(unpatched_output(patched), before)


@pytest.mark.parametrize("reading", Reading)
def test_two_runs_give_the_same_bits_and_a_longer_film_starts_with_the_shorter(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], reading: Reading
) -> None:
    encoder = replace(loaded(own_prompts=True), reading=reading)
    long = latents(render(model, encoder))
    assert torch.equal(latents(render(model, encoder)), long)
    short = latents(render(model, encoder, plan_chunks((2, 1), 3)))
    assert torch.equal(long[:, :, : short.shape[2]], short)


def test_an_encoder_in_bf16_is_near_the_one_in_float32(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    exact, rounded = (latents(render(model, loaded(dtype=dtype))) for dtype in (torch.float32, torch.bfloat16))
    assert not torch.equal(exact, rounded)
    assert relative_error(rounded, exact) < BF16_COMPUTE_ERROR


def test_what_another_node_puts_around_a_layer_stays_there(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    lengths: list[int] = []

    def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        lengths.append(args["img"].shape[1])
        return extra["original_block"](args)

    watched = model.clone()
    watched.set_model_patch_replace(watch, "dit", "double_block", 1)
    encoder = loaded(HistoryConfig(window_frames=2))
    film = render(watched, encoder, plan_chunks((2,), 3), sigmas=(1.0, 0.0))
    own = 3 * SIZE[0] * SIZE[1] // 4
    assert lengths == [own, own + own * 2 // 3 + own // 12]
    assert torch.equal(latents(film), latents(render(model, encoder, plan_chunks((2,), 3), sigmas=(1.0, 0.0))))


@pytest.mark.parametrize("key", ["context_latents", "reference_latent"])
def test_tokens_that_another_node_adds_in_the_middle_are_refused(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], key: str
) -> None:
    def add(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x, t, *args, **{**kwargs, key: [x]})

    adding = model.clone()
    adding.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", add)
    with pytest.raises(ValueError, match="cannot be combined with"):
        render(adding, loaded())
