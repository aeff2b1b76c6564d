"""What an artist sees while a film is made: ComfyUI's own preview walks through the newest chunk, and its progress runs on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import pytest
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.model_patcher import ModelPatcher
from film import FOUR_STEPS, film_on_disk, planned
from PIL import Image
from torch import Tensor

from longreel.nodes.film import Film
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.recorder import Recorder

CHUNKS, CHUNK_FRAMES = 4, 3
STEPS = len(FOUR_STEPS) - 1
BOARD = "[1.5s] a beach\n[1.5s, recache] a wood"


class Screen:
    """The host's progress hook: what its server would send to the browser."""

    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.pictures: list[Image.Image] = []

    def __call__(self, value: int, total: int, preview: Any, node_id: str | None = None) -> None:
        self.progress.append((value, total))
        if preview is not None:
            self.pictures.append(preview[1])

    @property
    def values(self) -> list[int]:
        return [value for value, _ in self.progress]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A browser that looks on, with previews as `--preview-method latent2rgb` makes them."""
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    screen = Screen()
    comfy.utils.set_progress_bar_global_hook(screen)
    return screen


@pytest.fixture
def predictions() -> list[Tensor]:
    """The clean chunk `[1, C, T, H, W]` that each step of the film predicted."""
    return []


@pytest.fixture
def film(host: object, predictions: list[Tensor]) -> Film:
    model = build_tiny_wan(TinyWanSpec(width=128, layers=1, ffn=128, seed=3)).clone()

    def keep(step: dict[str, Any]) -> Tensor:
        predictions.append(step["denoised"])
        return step["denoised"]

    model.set_model_sampler_post_cfg_function(keep)
    return film_on_disk(model, planned(BOARD), sigmas=torch.tensor(FOUR_STEPS))


def pictures_of(model: ModelPatcher, chunk: Tensor) -> list[bytes]:
    """What the host's previewer makes of each frame of a chunk alone."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    return [previewer.decode_latent_to_preview(frame).tobytes() for frame in chunk.split(1, dim=2)]


def shown_frames(film: Film, screen: Screen, predictions: list[Tensor]) -> list[int]:
    """Which frame of the step's own prediction each preview is."""
    shown = []
    for picture, prediction in zip(screen.pictures, predictions, strict=True):
        frames = pictures_of(film.model, prediction)
        assert len(set(frames)) == CHUNK_FRAMES
        shown.append(frames.index(picture.tobytes()))
    return shown


def test_every_step_previews_the_newest_chunk_and_walks_through_its_frames(
    film: Film, screen: Screen, predictions: list[Tensor], tmp_path: Path
) -> None:
    film.make(tmp_path)
    assert len(predictions) == CHUNKS * STEPS
    assert shown_frames(film, screen, predictions) == [0, 0, 1, 2] * CHUNKS


def test_progress_counts_the_steps_of_all_chunks_and_never_goes_back(
    film: Film, screen: Screen, tmp_path: Path
) -> None:
    film.make(tmp_path)
    assert screen.progress == [(step, CHUNKS * STEPS) for step in range(1, CHUNKS * STEPS + 1)]


def test_a_resumed_film_shows_what_is_there_and_counts_on_from_it(
    film: Film, screen: Screen, predictions: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Recorder.finished

    def cancel(self: Recorder, done: Any, guider: Any) -> None:
        finished(self, done, guider)
        if done.chunk.index == 1:
            comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "finished", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            film.make(tmp_path)
    assert screen.values == list(range(1, 2 * STEPS + 1))
    ends = [screen.pictures[chunk * STEPS - 1].tobytes() for chunk in (1, 2)]
    for seen in (screen.progress, screen.pictures, predictions):
        seen.clear()
    film.make(tmp_path)
    assert screen.values == [STEPS, *range(2 * STEPS, CHUNKS * STEPS + 1)]
    assert screen.values[-1] == screen.progress[-1][1]
    replayed = [screen.pictures.pop(0).tobytes() for _ in ends]
    assert replayed == ends
    assert shown_frames(film, screen, predictions) == [0, 0, 1, 2] * 2


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_sde", "uni_pc"])
def test_an_ordinary_sampler_shows_what_it_predicts_and_never_goes_back(
    film: Film, screen: Screen, predictions: list[Tensor], tmp_path: Path, name: str
) -> None:
    dataclasses.replace(film, sampler=comfy.samplers.sampler_object(name)).make(tmp_path)
    assert screen.values == sorted(screen.values)
    assert set(screen.progress) == {(step, CHUNKS * STEPS) for step in range(1, CHUNKS * STEPS + 1)}
    predicted = {picture for prediction in predictions for picture in pictures_of(film.model, prediction)}
    assert {picture.tobytes() for picture in screen.pictures} <= predicted
