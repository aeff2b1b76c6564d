"""A film on disk: what a stopped render leaves, and how it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from film import FOUR_STEPS, film_on_disk

from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.film import read_pictures
from longreel.memory.project import Project, ProjectError
from longreel.memory.storyboard_parser import read_storyboard
from longreel.memory.trace import read_trace
from longreel.nodes.film import Film, FilmResult
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan
from longreel.nodes.host.demo_text import build_demo_clip
from longreel.nodes.planned_storyboard import PlannedStoryboard, plan_storyboard
from longreel.nodes.recorder import Recorder

BOARD = """
@anna: a girl in a red coat
[1.5s] @anna walks
[1.5s, recache, seed 5] an empty beach
[0.75s] @anna sits
"""


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(TinyWanSpec(width=128, layers=2, ffn=256, seed=3))


@pytest.fixture(scope="module")
def vae(host: object) -> comfy.sd.VAE:
    return build_tiny_vae(dim=8)


def storyboard(text: str = BOARD, chunk: int = 3) -> PlannedStoryboard:
    clip = build_demo_clip()
    board = read_storyboard(text)

    def encode(prompt: str) -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))

    return plan_storyboard(board, tuple(encode(shot.prompt) for shot in board.shots), encode(""), 16.0, chunk)


@pytest.fixture(scope="module")
def film(model: ModelPatcher, vae: comfy.sd.VAE) -> Film:
    return film_on_disk(model, storyboard(), sigmas=torch.tensor([1.0, 0.8, 0.0]), vae=vae)


def changed(film: Film, **changes: Any) -> Film:
    return dataclasses.replace(film, **changes)


def digests(folder: Path) -> dict[str, str]:
    """Hashes of the latents and videos of a film."""
    files = [*folder.glob("chunks/*"), *folder.glob("segments/*"), folder / "film.mp4"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same_film(folder: Path, other: Path) -> None:
    """Hold latents, pictures and bytes against each other, in this order: which of them differs says where it comes from."""
    found, wanted = digests(folder), digests(other)
    assert found.keys() == wanted.keys()
    for name in sorted(wanted):
        if name.endswith(".mp4") and found[name] != wanted[name]:
            for index, (mine, theirs) in enumerate(
                zip(read_pictures(folder / name), read_pictures(other / name), strict=True)
            ):
                far = np.abs(mine.astype(int) - theirs)
                assert not far.any(), (
                    f"{name}: picture {index} differs in {np.count_nonzero(far)} values by up to {far.max()}"
                )
        assert found[name] == wanted[name], name


def stop_after(film: Film, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press cancel when this many chunks are finished."""
    finished = Recorder.finished

    def cancelling(self: Recorder, done: Any, guider: Any) -> None:
        finished(self, done, guider)
        if done.chunk.index == chunks - 1:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(Recorder, "finished", cancelling)


@pytest.fixture(scope="module")
def made(film: Film, tmp_path_factory: pytest.TempPathFactory) -> FilmResult:
    return film.make(tmp_path_factory.mktemp("whole"))


def test_a_film_has_all_its_pictures_latents_and_trace(film: Film, made: FilmResult) -> None:
    assert made.video is not None
    assert made.latents.shape == (1, 16, film.plan.total_frames, 4, 8)
    assert sum(1 for _ in read_pictures(made.video)) == film.plan.pixel_frames
    header, events = read_trace(made.trace)
    assert header["prompts"][1] == "an empty beach"
    assert [event["chunk"] for event in events] == list(range(len(film.plan.chunks)))
    switch = events[film.plan.shots()[1][0].index]
    assert switch["recached_frames"] == [frame for frame in switch["read_frames"] if frame >= 3]


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_a_cancelled_film_goes_on_with_the_bits_of_the_uninterrupted_one(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(film, chunks, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path)
    kept = digests(tmp_path / "film")
    assert sum(name.startswith("chunks") for name in kept) == chunks
    assert sum(1 for _ in read_pictures(tmp_path / "film" / "film.mp4")) > 0
    resumed = film.make(tmp_path)
    assert torch.equal(resumed.latents, made.latents)
    assert_same_film(resumed.folder, made.folder)
    assert [event["chunk"] for event in read_trace(resumed.trace)[1]] == list(range(len(film.plan.chunks)))


def test_a_damaged_chunk_is_made_again(film: Film, made: FilmResult, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "film")
    damaged = tmp_path / "film" / "chunks" / "00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    again = film.make(tmp_path)
    assert_same_film(again.folder, made.folder)


def test_videos_that_were_lost_are_decoded_again_without_sampling(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder, tmp_path / "film")
    (tmp_path / "film" / "segments" / "00003.mp4").unlink()
    monkeypatch.setattr(Film, "_run", lambda *args: pytest.fail("sampled again"))
    assert_same_film(film.make(tmp_path).folder, made.folder)


def test_a_film_made_without_a_vae_is_decoded_later_without_sampling(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(film, vae=None).make(tmp_path).video is None
    monkeypatch.setattr(Film, "_run", lambda *args: pytest.fail("sampled again"))
    assert_same_film(film.make(tmp_path).folder, made.folder)


def test_another_vae_makes_the_pictures_again_and_keeps_the_latents(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder, tmp_path / "film")
    monkeypatch.setattr(Film, "_run", lambda *args: pytest.fail("sampled again"))
    other = digests(changed(film, vae=build_tiny_vae(dim=8, seed=5)).make(tmp_path).folder)
    before = digests(made.folder)
    assert {name for name in before if before[name] == other[name]} == {n for n in before if n.startswith("chunks")}


def test_the_storyboard_lies_beside_the_film_and_can_be_read_again(film: Film, made: FilmResult) -> None:
    text = (made.folder / "storyboard.json").read_text(encoding="utf-8")
    assert read_storyboard(text) == film.storyboard.board
    assert json.loads(text)["plan"]["shots"][-1]["end_seconds"] == film.plan.pixel_frames / 16


def test_a_finished_film_is_not_made_again(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder, tmp_path / "film")
    monkeypatch.setattr(Film, "_run", lambda *args: pytest.fail("sampled again"))
    assert torch.equal(film.make(tmp_path).latents, made.latents)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"sigmas": torch.tensor([1.0, 0.0])}],
    ids=["seed", "sigmas"],
)
def test_a_film_with_other_settings_leaves_the_earlier_one_beside_it(
    film: Film, made: FilmResult, tmp_path: Path, changes: dict[str, Any]
) -> None:
    shutil.copytree(made.folder, tmp_path / "film")
    changed(film, **changes).make(tmp_path)
    assert_same_film(tmp_path / "film.1", made.folder)


def test_whatever_changes_the_film_is_another_setting(film: Film, model: ModelPatcher) -> None:
    lora = model.clone()
    key = "diffusion_model.blocks.0.ffn.0.weight"
    lora.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))}, 0.5)
    shifted = set_shift(model, 3.0)
    overridden = model.clone()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = overridden_attention
    variants = [
        film,
        changed(film, model=shifted),
        changed(film, model=set_shift(model, 4.0)),
        changed(film, model=overridden),
        changed(film, model=lora),
        changed(film, model=attach_memory(model, MemoryConfig(window_frames=6))),
        changed(film, storyboard=storyboard(BOARD.replace("beach", "forest"))),
        changed(film, storyboard=storyboard(BOARD.replace("recache, ", ""))),
        changed(film, seed=2),
        changed(film, cfg=1.5),
        changed(film, width=80),
        changed(film, sampler=comfy.samplers.ksampler("euler")),
        changed(film, sampler=comfy.samplers.ksampler("lcm")),
        changed(film, sampler=comfy.samplers.KSAMPLER(sampler_of_another_pack(0.5))),
        changed(film, sampler=comfy.samplers.KSAMPLER(sampler_of_another_pack(0.7))),
    ]
    settings = {json.dumps(variant._settings(), sort_keys=True) for variant in variants}
    assert len(settings) == len(variants)


def sampler_of_another_pack(strength: float) -> Any:
    def sample(model: Any, x: torch.Tensor, sigmas: torch.Tensor, **settings: Any) -> torch.Tensor:
        return x * strength

    return sample


def overridden_attention(attention: Any, *args: Any, **kwargs: Any) -> Any:
    return attention(*args, **kwargs)


def set_shift(model: ModelPatcher, shift: float) -> ModelPatcher:
    """The same model at another flow shift, as Model Sampling SD3 gives it."""
    return ModelSamplingSD3().patch(model, shift)[0]


def test_settings_do_not_depend_on_whether_the_model_is_loaded(film: Film, tmp_path: Path) -> None:
    before = film._settings()
    film.make(tmp_path)
    assert film._settings() == before


def test_a_start_image_is_the_first_frame_and_is_remembered(film: Film, vae: comfy.sd.VAE, tmp_path: Path) -> None:
    image = torch.rand(1, 32, 64, 3, generator=torch.Generator().manual_seed(0))
    start = vae.encode(image)
    filmed = changed(film, start=start).make(tmp_path)
    assert torch.equal(filmed.latents[:, :, :1], start.to(filmed.latents))
    assert filmed.latents.shape[2] == film.plan.total_frames + 1
    _, events = read_trace(filmed.trace)
    assert events[0]["read_frames"] == [0]
    assert filmed.video is not None
    assert sum(1 for _ in read_pictures(filmed.video)) == changed(film, start=start).plan.pixel_frames


def test_a_start_image_changes_the_film(film: Film, vae: comfy.sd.VAE, tmp_path: Path) -> None:
    images = (torch.zeros(1, 32, 64, 3), torch.ones(1, 32, 64, 3))
    films = (changed(film, start=vae.encode(image), project=f"{i}", vae=None) for i, image in enumerate(images))
    first, second = films
    assert not torch.equal(first.make(tmp_path).latents[:, :, 1:], second.make(tmp_path).latents[:, :, 1:])


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "lcm", "dpmpp_sde"])
def test_an_ordinary_sampler_makes_each_chunk_and_repeats_its_bits(film: Film, tmp_path: Path, name: str) -> None:
    sampled = changed(film, sampler=comfy.samplers.ksampler(name), sigmas=torch.tensor(FOUR_STEPS), vae=None)
    first, second = (changed(sampled, project=project).make(tmp_path) for project in ("one", "two"))
    assert torch.equal(first.latents, second.latents)


def test_a_full_disk_is_one_clear_error_and_keeps_what_is_finished(
    film: Film, made: FilmResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "00002" in self.name:
            raise OSError(28, "No space left on device")
        return write_bytes(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ProjectError, match=r"No space left on device.*Make room"):
            film.make(tmp_path)
    with Project.open(tmp_path, "film", film._settings()) as project:
        assert project.finished == 2
    assert_same_film(film.make(tmp_path).folder, made.folder)


def test_a_film_that_searches_its_history_goes_on_with_the_same_bits_and_says_what_it_read(
    model: ModelPatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = attach_memory(model, MemoryConfig(3, 1, bank=BankConfig(frames_worth=1.0, shortlist=4, index_frames=3)))
    film = film_on_disk(searching, storyboard())
    said: list[str] = []
    whole = film.make(tmp_path / "whole", said.append)
    assert any("1 older frames read, and 1.0 frames' worth of the others (" in text for text in said)
    assert read_trace(whole.trace)[1][-1]["frames_worth"] == 2.0
    with monkeypatch.context() as patch:
        stop_after(film, 3, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path / "resumed")
    assert torch.equal(film.make(tmp_path / "resumed").latents, whole.latents)
