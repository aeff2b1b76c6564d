"""Bad input gives one clear error before anything is loaded, sampled or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.hooks
import comfy.model_management
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import LazyCacheNode
from film import film_on_disk, planned, prompt
from hunyuan_variants import load_hunyuan_variant
from wan_variants import SPEC, VARIANTS, load_variant, load_wan, other_wan_models, patches

from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.positions import PositionPolicy
from longreel.memory.project import ProjectError
from longreel.memory.prompt_bank import PromptBankConfig
from longreel.nodes.chunk_sampler import ChunkedARSampler
from longreel.nodes.film import Film
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import build_tiny_vae, build_tiny_wan
from longreel.nodes.host.demo_text import build_demo_clip
from longreel.nodes.host.film_sampler import FilmSampler
from longreel.nodes.prompt_bank import PromptRetrievedMemoryBank
from longreel.nodes.storyboard import StoryboardNode

Change = Callable[[Film], Film]


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC)


@pytest.fixture(scope="module")
def clip(host: object) -> comfy.sd.CLIP:
    return build_demo_clip()


@pytest.fixture
def film(model: ModelPatcher) -> Film:
    return film_on_disk(model, planned())


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for films, in which sampling, loading and writing fail the test."""

    def touched(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("a model was loaded or sampled")

    monkeypatch.setattr(FilmSampler, "sample", touched)
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", touched)
    return tmp_path / "films"


def refuse(film: Film, root: Path, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as refused:
        film.make(root)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert not root.exists() or not list(root.rglob("*"))


# Models


def refuse_model(film: Film, root: Path, other: ModelPatcher, named: str) -> None:
    refuse(dataclasses.replace(film, model=other), root, ValueError, named, "Load a Wan text-to-video checkpoint")
    with pytest.raises(ValueError, match=named):
        attach_memory(other, MemoryConfig())


@pytest.mark.parametrize("name", other_wan_models())
def test_a_wan_variant_that_memory_does_not_know_is_refused_by_name(film: Film, untouched: Path, name: str) -> None:
    refuse_model(film, untouched, load_variant(name), VARIANTS[name].named)


OTHER_MODELS: dict[str, tuple[Callable[[], ModelPatcher], str]] = {
    "another family": (lambda: load_hunyuan_variant("HunyuanVideo15"), "HunyuanVideo15"),
    "an image as channels": (lambda: load_wan(patches("patch_embedding", 36)), "type t2v, 36 input channels"),
    "control as channels": (lambda: load_wan(patches("patch_embedding", 32)), "type t2v, 32 input channels"),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_model_of_another_kind_is_refused_by_name(film: Film, untouched: Path, name: str) -> None:
    load, named = OTHER_MODELS[name]
    refuse_model(film, untouched, load(), named)


def test_a_model_of_another_family_is_named_before_all_that_follows_from_it(film: Film, untouched: Path) -> None:
    wrong = dataclasses.replace(
        film, model=load_hunyuan_variant("HunyuanVideo15"), width=70, sigmas=torch.tensor([14.6, 0.0])
    )
    refuse(wrong, untouched, ValueError, "HunyuanVideo15", "Load a Wan text-to-video checkpoint")


@pytest.mark.parametrize("place", ["blocks.0.self_attn.forward", "blocks.0.self_attn", "blocks.0"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_attention_slot_that_another_pack_holds_is_refused_by_name(
    film: Film, untouched: Path, place: str, order: str
) -> None:
    key = f"diffusion_model.{place}"
    other = film.model.clone() if order == "before" else attach_memory(film.model, MemoryConfig())
    other.add_object_patch(key, torch.nn.Identity())
    refuse(
        dataclasses.replace(film, model=other), untouched, ValueError, f"holds {key} ", "Identity", "Remove that node"
    )


def with_lazy_cache(film: Film) -> Film:
    return dataclasses.replace(film, model=LazyCacheNode.execute(film.model, 0.2, 0.15, 0.95, False).result[0])


def with_context_windows(film: Film) -> Film:
    model = film.model.clone()
    model.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=3,
        dim=2,
    )
    return dataclasses.replace(film, model=model)


# Films


def changed(**changes: Any) -> Change:
    return lambda film: dataclasses.replace(film, **changes)


def remembering(**settings: Any) -> Change:
    return lambda film: dataclasses.replace(film, model=attach_memory(film.model, MemoryConfig(**settings)))


def carrying(**extras: Any) -> Change:
    """A film whose second shot has a conditioning with more in it than a prompt."""
    vectors = prompt(1)[0][0]
    board = planned("[1.5s] a beach\n[1.5s] a wood", prompts=(prompt(0), [[vectors, extras]]))
    return changed(storyboard=board)


def scheduled_lora() -> comfy.hooks.HookGroup:
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 0.0)
    for strength, start in ((1.0, 0.0), (0.5, 0.5)):
        hooks.hooks[0].hook_keyframe.add(comfy.hooks.HookKeyframe(strength, start))
    return hooks


LATENT = torch.zeros(1, 16, 1, 4, 8)
BAD_FILMS: dict[str, tuple[Change, tuple[str, ...]]] = {
    "a name that leaves the folder": (changed(project="../x"), ("project name", "'../x'", "it contains /")),
    "a name with folders": (changed(project="a/b"), ("'a/b'", "it contains /")),
    "no name": (changed(project=""), ("project name", "it is empty")),
    "a width that is no multiple": (changed(width=70), ("width", "multiple of 16", "got 70", "Use 64")),
    "a height that is no multiple": (changed(height=40), ("height", "multiple of 16", "got 40")),
    "a start image without time": (changed(start=LATENT[:, :, 0]), ("[1, 16, 1, 4, 8]", "got [1, 16, 4, 8]")),
    "a start image of another size": (
        changed(start=torch.zeros(1, 16, 1, 8, 8)),
        ("got [1, 16, 1, 8, 8]", "Scale one image to 64x32"),
    ),
    "a start video": (changed(start=torch.zeros(1, 16, 2, 4, 8)), ("one frame", "got [1, 16, 2, 4, 8]")),
    "several start images": (changed(start=torch.zeros(2, 16, 1, 4, 8)), ("one frame", "got [2, 16, 1, 4, 8]")),
    "a start image of another model": (changed(start=torch.zeros(1, 4, 1, 4, 8)), ("[1, 16, 1, 4, 8]",)),
    "sigmas that do not end": (changed(sigmas=torch.tensor([1.0, 0.5])), ("Sigmas", "[1.0, 0.5]", "Basic Scheduler")),
    "sigmas that rise": (changed(sigmas=torch.tensor([0.5, 1.0, 0.0])), ("Sigmas", "[0.5, 1.0, 0.0]")),
    "no sigmas": (changed(sigmas=torch.tensor([])), ("Sigmas", "got []")),
    "sigmas that are no numbers": (changed(sigmas=torch.tensor([float("nan"), 0.0])), ("Sigmas", "nan")),
    "sigmas of another model": (changed(sigmas=torch.tensor([14.6, 0.0])), ("from 1 to 0", "14.6", "with this model")),
    "sigmas of a denoise below 1": (changed(sigmas=torch.tensor([0.6, 0.0])), ("from 1 to 0", "0.6", "denoise 1")),
    "a memory larger than the device": (
        lambda film: changed(width=16_384, height=16_384, storyboard=planned("[60s] a beach"))(
            remembering(window_frames=4096)(film)
        ),
        ("GiB, but the device has", "window + sink"),
    ),
    "a bank larger than the device": (
        lambda film: changed(width=16_384, height=16_384, storyboard=planned("pin: 1s\n[60s] a beach"))(
            remembering(window_frames=3, prompt_bank=PromptBankConfig(frames=256))(film)
        ),
        (
            "GiB, but the device has",
            "the 'bank' of the Prompt-Retrieved Memory Bank down",
            "the 1 pinned latent frames",
        ),
    ),
    "a pin behind the film": (
        changed(storyboard=planned("pin: 9s\n[1.5s] a beach")),
        ("'pin' of the Storyboard: '9s' lies behind the film", "Choose an earlier time"),
    ),
    "a moment pinned and vetoed": (
        changed(storyboard=planned("pin: 1s\nveto: shot 1\n[1.5s] a beach")),
        ("pinned and vetoed", "Take them out of one list"),
    ),
    "a memory larger than RAM and disk": (
        lambda film: changed(width=16_384, height=16_384, storyboard=planned("[600s] a beach"))(
            remembering(window_frames=3, sink_frames=0, bank=BankConfig(shortlist=1))(film)
        ),
        ("GiB beside the card, but", "of ComfyUI's temporary folder are free", "Turn 'look_back'"),
    ),
    "a sampler of whole films": (
        lambda film: changed(sampler=comfy.samplers.ksampler("ar_video"))(film),
        ("Sampler AR Video", "Leave the input empty"),
    ),
    "a chunk longer than the window": (
        remembering(window_frames=2),
        ("chunk of 3 frames", "window of 2", "Set 'window' of Sparse KV Memory to 3"),
    ),
    "no trained length beyond the chunk": (
        remembering(positions=PositionPolicy.CLAMPED, trained_frames=3),
        ("trained length above the chunk's 3", "got 3"),
    ),
    "a step cache of the sampler": (with_lazy_cache, ("LazyCache", "Remove the LazyCache node", "EasyCache works")),
    "context windows": (with_context_windows, ("Context windows and memory", "Remove the Context Windows node")),
    "two prompts in a shot": (
        changed(storyboard=planned("[1.5s] a beach\n[1.5s] a wood", prompts=(prompt(0), prompt(1) + prompt(2)))),
        ("Shot 2", "one prompt", "got 2"),
    ),
    "a negative of two prompts": (
        changed(storyboard=dataclasses.replace(planned(), negative=prompt(1) + prompt(2))),
        ("The negative prompt", "got 2"),
    ),
    "reference latents": (carrying(reference_latents=[LATENT]), ("Shot 2", "reference latents", "Remove the node")),
    "context latents": (carrying(context_latents=[LATENT]), ("Shot 2", "context latents")),
    "frames joined in time": (carrying(time_dim_concat=LATENT), ("Shot 2", "frames joined in time")),
    "a prompt for some steps": (carrying(start_percent=0.0, end_percent=0.5), ("Shot 2", "a range of steps")),
    "a LoRA that changes from step to step": (
        lambda film: carrying(hooks=scheduled_lora())(film),
        ("Shot 2", "a LoRA schedule", "Remove the node"),
    ),
    "a prompt of another text encoder": (
        changed(storyboard=planned(prompts=([[torch.zeros(1, 77, 768), {}]],))),
        ("Shot 1", "4096 numbers a word, got 768", "umt5", "Load CLIP"),
    ),
    "a negative of another text encoder": (
        changed(storyboard=dataclasses.replace(planned(), negative=[[torch.zeros(1, 77, 768), {}]])),
        ("The negative prompt", "got 768"),
    ),
    "a prompt for a part of the frame": (carrying(area=(2, 2, 0, 0)), ("Shot 2", "an area")),
}


@pytest.mark.parametrize("name", BAD_FILMS)
def test_a_film_that_cannot_be_made_is_refused_before_anything_happens(film: Film, untouched: Path, name: str) -> None:
    change, words = BAD_FILMS[name]
    refuse(change(film), untouched, ValueError, *words)


def test_a_vae_of_another_model_is_refused(film: Film, untouched: Path) -> None:
    other = build_tiny_vae(dim=8)
    other.first_stage_model = torch.nn.Identity()
    refuse(dataclasses.replace(film, vae=other), untouched, ValueError, "VAE of Wan", "Identity", "wan_2.1_vae")


def test_a_folder_that_cannot_be_written_is_refused_and_stays_as_it_is(film: Film, untouched: Path) -> None:
    untouched.write_text("a file where the folder should be")
    with pytest.raises(ProjectError, match="Pick an output folder"):
        film.make(untouched)
    assert untouched.read_text() == "a file where the folder should be"


def test_a_project_that_is_a_file_is_refused_and_stays_as_it_is(film: Film, untouched: Path) -> None:
    untouched.mkdir()
    (untouched / "film").write_text("a file where the project should be")
    with pytest.raises(ProjectError):
        film.make(untouched)
    assert (untouched / "film").read_text() == "a file where the project should be"


def test_the_film_that_the_bad_ones_were_made_from_is_good(film: Film, tmp_path: Path) -> None:
    assert film.make(tmp_path).latents.isfinite().all()


# Storyboards

BAD_STORYBOARDS: dict[str, tuple[str, float, int, tuple[str, ...]]] = {
    "empty": ("", 16.0, 3, ("at least one shot", "[0s-5s]")),
    "a style alone": ("style: soft", 16.0, 3, ("at least one shot",)),
    "a shot of no seconds": ("[0s] a beach", 16.0, 3, ("line 1", "more than 0s")),
    "a shot shorter than a chunk": ("[5s] a beach\n[0.1s] a wood", 16.0, 3, ("shot 2 is too short", "0.75 s")),
    "no frame rate": ("[5s] a beach", 0.0, 3, ("1 to 120 fps", "got 0", "Use 16")),
    "an absurd frame rate": ("[5s] a beach", 1e12, 3, ("1 to 120 fps", "got 1e+12")),
    "a frame rate that is no number": ("[5s] a beach", float("nan"), 3, ("1 to 120 fps", "got nan")),
    "chunks of no frames": ("[5s] a beach", 16.0, 0, ("at least 1 frame", "got 0")),
}


@pytest.mark.parametrize("name", BAD_STORYBOARDS)
def test_a_storyboard_that_cannot_be_planned_is_refused_before_text_is_encoded(
    clip: comfy.sd.CLIP, untouched: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text, fps, chunk, words = BAD_STORYBOARDS[name]
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda tokens: pytest.fail("text was encoded"))
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        StoryboardNode.execute(text, clip, "", fps, chunk)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_a_mistake_in_a_text_or_a_project_name_is_told_when_the_workflow_is_queued() -> None:
    assert "more than 0s" in str(StoryboardNode.validate_inputs(text="[0s] a beach"))
    assert StoryboardNode.validate_inputs(text="[5s] a beach") is True
    assert "'soon' needs to be a time" in str(PromptRetrievedMemoryBank.validate_inputs(pin="1s, soon", veto="shot 2"))
    assert PromptRetrievedMemoryBank.validate_inputs(pin="1s, shot 3", veto="") is True
    assert "it contains /" in str(ChunkedARSampler.validate_inputs(project="../x"))
    assert ChunkedARSampler.validate_inputs(project="film") is True


def test_linked_inputs_are_not_checked_when_the_workflow_is_queued() -> None:
    assert StoryboardNode.validate_inputs() is True
    assert PromptRetrievedMemoryBank.validate_inputs() is True
    assert ChunkedARSampler.validate_inputs() is True
