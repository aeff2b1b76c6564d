"""HunyuanVideo films that are remembered through an encoder: what each chunk reads, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from encoders import encoders_in
from film import film_on_disk, planned
from hunyuan_film import SPEC, lively_hunyuan, lively_network, words
from hunyuan_variants import load_hunyuan_variant
from numerics import BF16_COMPUTE_ERROR, FORWARD_ERROR, NOT_ROUNDING, relative_error
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from longreel.memory.encoded_history import History, HistoryConfig, Stretch
from longreel.memory.encoder import token_positions
from longreel.memory.encoder_spec import LowBranch, Modulation, Rate, smaller_frames
from longreel.memory.packed_encoder import GROUPS, PREFIX, REACH, PackedEncoder, PackedSpec
from longreel.memory.trace import read_trace
from longreel.nodes.film import Film
from longreel.nodes.host.build_hunyuan import build_tiny_hunyuan
from longreel.nodes.host.encoder_check import check_encoder, fits
from longreel.nodes.host.encoder_model import LoadedEncoder, encoder_of, load_encoder
from longreel.nodes.host.hunyuan_history import Call, anchored, with_history
from longreel.nodes.host.keys import HISTORY

WIDTH, TIMESTEP, GUIDANCE = SPEC.width, 1000.0, 6.0
PROMPTS = (words(0), words(1, 5), words(2, 4))
NEGATIVE = words(99, 3)


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return lively_hunyuan(SPEC)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    load = encoders_in(tmp_path)
    return lambda *args, **changes: load(*args, **{"width": WIDTH, **changes})


def film(model: ModelPatcher, encoder: LoadedEncoder, **changes: Any) -> Film:
    """Three shots of a chunk each, one step a chunk."""
    board = planned("[0.75s] a beach\n[0.75s] a town\n[0.75s] a forest", prompts=PROMPTS)
    return film_on_disk(model, replace(board, negative=NEGATIVE), encoder=encoder, **changes)


def chunks(model: ModelPatcher, latents: Tensor) -> list[Tensor]:
    """A film's latents as the model sees them, chunk by chunk."""
    return list(model.model.process_latent_in(latents).split(3, dim=2))


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_with_an_empty_history_the_first_chunk_has_the_bits_of_the_unpatched_model(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path, cfg: float
) -> None:
    levels, euler = torch.tensor([1.0, 0.8333, 0.0]), comfy.samplers.ksampler("euler")
    remembering = film(model, loaded(), cfg=cfg, sigmas=levels, sampler=euler)
    made = remembering.make(tmp_path / "films").latents[:, :, :3]
    noise = remembering.film_sampler(None, None).noise(remembering.plan.chunks[0], 0, made.shape)
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(PROMPTS[0], NEGATIVE)
    guider.set_cfg(cfg)
    alone = guider.sample(noise, torch.zeros_like(noise), euler, levels, disable_pbar=True, seed=7)
    assert torch.equal(made, alone)


@pytest.mark.parametrize("modulation", Modulation)
@pytest.mark.parametrize("own_prompts", [False, True])
def test_a_chunk_is_what_the_model_makes_beside_the_encoded_film(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path, modulation: Modulation, own_prompts: bool
) -> None:
    """By hand, with guidance: two frames of tokens in the first two shots, one that waits, and one whole frame, for both rows."""
    cfg = 5.0
    encoder = loaded(HistoryConfig(1), modulation=modulation, own_prompts=own_prompts, proportional=True)
    remembering = film(model, encoder, cfg=cfg)
    made = chunks(model, remembering.make(tmp_path / "films").latents)
    noise = remembering.film_sampler(None, None).noise(remembering.plan.chunks[2], 0, made[2].shape)
    network, past = model.model.diffusion_model, torch.cat(made[:2], dim=2)
    with torch.no_grad():
        whole = network.img_in.proj(past[:, :, -1:]).flatten(2).transpose(1, 2)
        tokens = torch.cat([encoder.patcher.model(past, network.img_in.proj), whole], dim=1)
        grid = encoder.spec.grid(6, 4, 8)
        places = torch.cartesian_prod(torch.tensor([-1.0]), torch.arange(2.0), torch.arange(4.0))
        positions = torch.cat([token_positions(encoder.spec, grid, first_frame=-6), places])
        assert grid == (3, 1, 2)
        counts = torch.tensor([8.0] * 6 + [1.0] * 8)
        # Two of the three frames of tokens begin in the first shot.
        read = [(prompt[0][0][0], prompt[0][1]["pooled_output"][0]) for prompt in PROMPTS[:2]]
        prompts = ((Stretch(4, *read[0]), Stretch(2 + 8, *read[1])),) if own_prompts else ()
        history = History(tokens, positions, modulation, prompts=prompts, counts=counts)
        flows = []
        for ((text, extras),) in (PROMPTS[2], NEGATIVE):
            call = Call(torch.tensor([TIMESTEP]), extras["pooled_output"], torch.tensor([GUIDANCE]))
            options = with_history(network, anchored(history, 3), {}, call)
            given = {"y": call.pooled, "guidance": call.guidance, "transformer_options": options}
            flows.append(network(noise, call.timesteps, text, **given))
    flow, away = flows
    assert relative_error(made[2], noise - (away + cfg * (flow - away))) < FORWARD_ERROR


def test_a_film_in_bf16_is_near_the_one_in_float32(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], packed: LoadedEncoder, tmp_path: Path
) -> None:
    rounded = build_tiny_hunyuan(weights=lively_network(SPEC).state_dict(), dtype=torch.bfloat16)
    clean = loaded(HistoryConfig(1), torch.bfloat16, own_prompts=True, proportional=True, modulation=Modulation.CLEAN)
    made = [
        film(each, replace(clean, beside=packed), project=name).make(tmp_path).latents
        for name, each in (("exact", model), ("rounded", rounded))
    ]
    assert not torch.equal(*made)
    assert relative_error(made[1], made[0]) < BF16_COMPUTE_ERROR


def test_smaller_frames_need_no_weights_and_any_width(model: ModelPatcher, tmp_path: Path) -> None:
    """Each shot's tokens read its own prompt; on disk they are a memory of their own."""
    films = [
        film(model, encoder_of(smaller_frames(rate), {}, HistoryConfig(0)), project=str(rate))
        for rate in (Rate(2, 2, 1), Rate(2, 2, 2))
    ]
    fine, coarse = (each.make(tmp_path) for each in films)
    assert relative_error(fine.latents[:, :, 3:], coarse.latents[:, :, 3:]) > NOT_ROUNDING
    assert [event["frames_worth"] for event in read_trace(fine.trace)[1]] == [0, 3 / 4, 6 / 4]
    assert films[0]._settings() != films[1]._settings()
    assert films[0].make(tmp_path).folder == fine.folder


@pytest.fixture
def packed(tmp_path: Path) -> LoadedEncoder:
    """FramePack's embeddings with random weights, through their file."""
    torch.manual_seed(0)
    module = PackedEncoder(PackedSpec(WIDTH))
    path = tmp_path / "framepack.safetensors"
    save_file({f"{PREFIX}{name}": tensor for name, tensor in module.state_dict().items()}, path)
    return load_encoder(path, HistoryConfig(0), torch.float32)


def test_tokens_of_framepacks_kind_are_turned_by_the_mean_of_the_hosts_rotations(model: ModelPatcher) -> None:
    """FramePack averages the table as it averages what it joins: rows, columns and frames alike, filled up with the edge."""
    network = model.model.diffusion_model
    rows, columns = 3, 6
    places = torch.cartesian_prod(torch.arange(REACH) + 0.0, torch.arange(rows) + 0.0, torch.arange(columns) + 0.0)
    table = network.pe_embedder(places[None])[0, 0].flatten(1).T.unflatten(1, (REACH, rows, columns))
    for group in GROUPS:
        frames = table[:, REACH + group.first :][:, : group.factor]
        filled = pad(frames, (0, -columns % group.factor, 0, -rows % group.factor, 0, 0), mode="replicate")
        pooled = avg_pool3d(filled, group.factor, stride=group.factor).flatten(1).T
        positions = group.positions(2 * rows, 2 * columns) + torch.tensor([REACH, 0, 0])
        history = History(torch.zeros(1, len(pooled), WIDTH), positions, Modulation.TARGET)
        seen = []

        def watch(
            q: Tensor, k: Tensor, v: Tensor, pe: Tensor, seen: list[Tensor] = seen, **rest: Any
        ) -> dict[str, Any]:
            seen.append(pe)
            return {}

        call = Call(torch.tensor([TIMESTEP]), PROMPTS[0][0][1]["pooled_output"], torch.tensor([GUIDANCE]))
        options = with_history(network, history, {"patches": {"attn1_patch": [watch]}}, call)
        given = {"y": call.pooled, "guidance": call.guidance, "transformer_options": options}
        with torch.no_grad():
            network(torch.zeros(1, 16, 1, 4, 8), call.timesteps, PROMPTS[0][0][0], **given)
        assert relative_error(seen[0][0, 0, -len(pooled) :].flatten(1), pooled) < FORWARD_ERROR


def test_a_chunk_reads_what_framepacks_embeddings_make_of_the_newest_frames(
    model: ModelPatcher, packed: LoadedEncoder, tmp_path: Path
) -> None:
    remembering = film(model, packed)
    result = remembering.make(tmp_path / "films")
    made = chunks(model, result.latents)
    noise = remembering.film_sampler(None, None).noise(remembering.plan.chunks[2], 0, made[2].shape)
    network, past = model.model.diffusion_model, torch.cat(made[:2], dim=2)
    with torch.no_grad():
        everything = packed.patcher.model(pad(past, (0, 0, 0, 0, REACH - 6, 0)))
        told = [group for group in GROUPS if group.told(6)]
        positions = torch.cat([group.positions(4, 8) for group in told], dim=1)
        history = History(everything[:, -positions.shape[1] :], positions, Modulation.TARGET)
        ((text, extras),) = PROMPTS[2]
        call = Call(torch.tensor([TIMESTEP]), extras["pooled_output"], torch.tensor([GUIDANCE]))
        given = {"y": call.pooled, "guidance": call.guidance}
        options = with_history(network, anchored(history, 3), {}, call)
        flow = network(noise, call.timesteps, text, **given, transformer_options=options)
    assert relative_error(made[2], noise - flow) < FORWARD_ERROR
    assert read_trace(result.trace)[0]["memory"].endswith(
        "the newest 19 frames through a memory encoder of FramePack's kind"
    )
    assert fits(packed).endswith("\nthe newest frame whole, 2 before it as 2x2x2, 16 before these as 4x4x4")
    coarse = replace(packed, beside=encoder_of(smaller_frames(Rate(2, 2, 2)), {}, HistoryConfig()))
    assert relative_error(film(model, coarse).make(tmp_path / "both").latents, result.latents) > NOT_ROUNDING


def test_a_later_shot_reads_the_first_and_a_short_history_forgets_it(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    for longest, forgets in ((None, False), (1, True)):
        encoder = loaded(HistoryConfig(0, longest))
        films = [film(model, encoder, seed=1, project=f"{longest}").make(tmp_path).latents]
        board = film(model, encoder).storyboard
        other = replace(board, conditionings=(words(10), *board.conditionings[1:]))
        films.append(replace(film(model, encoder, project=f"{longest} other"), storyboard=other).make(tmp_path).latents)
        assert relative_error(films[0][:, :, :3], films[1][:, :, :3]) > NOT_ROUNDING
        assert torch.equal(films[0][:, :, 3:], films[1][:, :, 3:]) is forgets


def test_a_stopped_film_goes_on_with_the_same_bits_says_what_it_read_and_leaves_nothing_behind(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    both = replace(loaded(HistoryConfig(1), own_prompts=True), beside=loaded(rate=Rate(2, 2, 1), proportional=True))
    before = plain_output(model)
    whole = film(model, both).make(tmp_path / "whole")
    header, events = read_trace(whole.trace)
    assert header["memory"].endswith(
        "the whole film through a memory encoder 2x2x2, and the whole film through a memory encoder 2x2x1"
    )
    assert [event["read_frames"] for event in events] == [[], [2], [5]]
    assert [event["frames_worth"] for event in events] == [0, 1 + 1 / 4 + 3 / 4, 1 + 3 / 4 + 6 / 4]

    def stop(text: str) -> None:
        if "chunk 2 of" in text:
            comfy.model_management.interrupt_current_processing()

    stopped = film(model, both)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        stopped.make(tmp_path / "resumed", stop)
    assert HISTORY not in stopped.remembering.model_options["transformer_options"]
    assert torch.equal(film(model, both).make(tmp_path / "resumed").latents, whole.latents)
    assert torch.equal(plain_output(model), before)


def plain_output(model: ModelPatcher) -> Tensor:
    guider = comfy.samplers.CFGGuider(model.clone())
    guider.set_conds(PROMPTS[0], NEGATIVE)
    noise = torch.randn(1, 16, 3, 4, 8, generator=torch.Generator().manual_seed(1))
    sampler, levels = comfy.samplers.ksampler("euler"), torch.tensor([1.0, 0.0])
    return guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=7)


def test_an_image_to_video_model_is_refused_by_name(host: object, loaded: Callable[..., LoadedEncoder]) -> None:
    with pytest.raises(ValueError, match="HunyuanVideoI2V"):
        check_encoder(load_hunyuan_variant("HunyuanVideoI2V"), loaded(), 9, (4, 8), has_vae=False)


def test_an_encoder_of_another_width_or_of_pictures_is_refused(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    for wrong, words_of_it in (
        (loaded(width=3072), "width 3072 with 16 channels.*got one of width 256 with 16"),
        (loaded(low=LowBranch.VIDEO), "VAE of HunyuanVideo.*Take an encoder that looks at latents"),
    ):
        with pytest.raises(ValueError, match=words_of_it):
            film(model, wrong).make(tmp_path / "films")
        assert not (tmp_path / "films").exists()


def test_a_controlnet_is_refused_before_the_film_is_begun(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """On the negative prompt as on any other."""
    plain = film(model, loaded())
    controlled = [[NEGATIVE[0][0], {**NEGATIVE[0][1], "control": comfy.controlnet.ControlBase()}]]
    wrong = replace(plain, storyboard=replace(plain.storyboard, negative=controlled))
    with pytest.raises(ValueError, match=r"cannot be combined with a ControlNet.*or disconnect the memory encoder"):
        wrong.make(tmp_path / "films")
    assert not (tmp_path / "films").exists()


def test_an_encoder_says_that_it_fits_hunyuanvideo(loaded: Callable[..., LoadedEncoder]) -> None:
    assert fits(loaded(width=3072)).startswith("fits HunyuanVideo\n")


def test_a_token_of_an_image_to_video_guide_is_refused_while_the_film_is_made(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    from comfy.patcher_extension import WrappersMP

    def add(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x, t, *args, **{**kwargs, "guiding_frame_index": torch.tensor([0.0])})

    adding = model.clone()
    adding.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", add)
    with pytest.raises(ValueError, match="cannot be combined with an image-to-video guide"):
        film(adding, loaded()).make(tmp_path)
