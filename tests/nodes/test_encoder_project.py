"""Films through an encoder on disk: they go on, they know their settings, and what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from encoders import SPEC, encoders_in
from film import film_on_disk, planned
from numerics import NOT_ROUNDING, relative_error
from wan_variants import build_tiny_wan22

from longreel.memory.config import MemoryConfig
from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder_spec import LowBranch, Modulation, Rate
from longreel.memory.inspection import WINDOW
from longreel.memory.trace import read_trace
from longreel.nodes.film import Film
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import build_tiny_vae, build_tiny_wan
from longreel.nodes.host.encoder_check import fits
from longreel.nodes.host.encoder_model import LoadedEncoder
from longreel.nodes.memory_inspector import MemoryInspector


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    return encoders_in(tmp_path)


def film(model: ModelPatcher, encoder: LoadedEncoder, **changes: Any) -> Film:
    board = planned("[0.75s] a beach\n[0.75s] a town\n[0.75s] a forest")
    return film_on_disk(model, board, encoder=encoder, sigmas=torch.tensor([1.0, 0.0]), **changes)


def test_a_film_on_disk_goes_on_with_the_same_bits_and_says_what_it_read(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    whole = film(model, loaded(), vae=build_tiny_vae()).make(tmp_path / "whole")
    header, events = read_trace(whole.trace)
    assert header["memory"] == "window of 3 frames, and the whole film through a memory encoder 2x2x2"
    assert [event["read_frames"] for event in events] == [[], [0, 1, 2], [3, 4, 5]]
    assert [event["remembered"] for event in events] == [3, 6, 9]
    assert whole.video is not None

    def stop(text: str) -> None:
        if "chunk 2 of" in text:
            comfy.model_management.interrupt_current_processing()

    interrupted = film(model, loaded(), vae=build_tiny_vae())
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        interrupted.make(tmp_path / "resumed", stop)
    assert torch.equal(interrupted.make(tmp_path / "resumed").latents, whole.latents)


def test_the_memory_inspector_shows_the_window_and_says_that_an_encoder_tells_the_rest(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    said: list[str] = []
    made = film(model, loaded()).make(tmp_path, said.append)
    image, text = MemoryInspector.execute(made.trace, 0, 0, 640, 480).args
    inspection = json.loads(text)
    assert image.shape == (1, 480, 640, 3)
    assert "memory encoder" in inspection["memory"]
    assert [[read[:2] for read in chunk["reads"]] for chunk in inspection["chunks"]] == [
        [],
        [[frame, WINDOW] for frame in (0, 1, 2)],
        [[frame, WINDOW] for frame in (3, 4, 5)],
    ]
    assert (made.folder / "thumbs").is_dir()
    assert "9 frames remembered, looks back 0.8 s" in said[-1]


def test_whatever_changes_the_memory_is_another_setting(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    variants = [
        film(model, loaded()),
        film(model, loaded(HistoryConfig(window_frames=1))),
        film(model, loaded(HistoryConfig(longest_frames=9))),
        film(model, loaded(rate=Rate(2, 2, 1))),
        film(model, loaded(modulation=Modulation.TARGET)),
        film(model, loaded(low=LowBranch.VIDEO), vae=build_tiny_vae(seed=1)),
        film(model, loaded(low=LowBranch.VIDEO), vae=build_tiny_vae(seed=2)),
        film(model, replace(loaded(), beside=loaded())),
        film(model, replace(loaded(), beside=loaded(HistoryConfig(longest_frames=9)))),
        film(model, replace(loaded(), beside=loaded(rate=Rate(2, 2, 1)))),
        film(model, replace(loaded(), beside=replace(loaded(), beside=loaded()))),
        film_on_disk(model, planned("[0.75s] a beach\n[0.75s] a town\n[0.75s] a forest")),
    ]
    assert len({str(variant._settings()) for variant in variants}) == len(variants)
    assert film(model, loaded())._settings() == variants[0]._settings()
    narrow = replace(loaded(), beside=loaded(HistoryConfig(window_frames=1)))  # whose window does not count
    assert film(model, narrow)._settings() == film(model, replace(loaded(), beside=loaded()))._settings()


def test_the_settings_of_one_encoder_are_told_as_they_were_before_several_could_be_joined(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder]
) -> None:
    assert set(film(model, loaded())._memory_settings()) == {"encoder", "spec", "history", "pictures"}


def test_a_film_on_disk_that_two_encoders_tell_goes_on_with_the_same_bits_and_says_so(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    both = replace(loaded(HistoryConfig(window_frames=1)), beside=loaded(HistoryConfig(3, 6), rate=Rate(2, 2, 1)))
    whole = film(model, both).make(tmp_path / "whole")
    header, events = read_trace(whole.trace)
    wanted = "window of 1 frames, the whole film through a memory encoder 2x2x2, and the newest 6 frames through a memory encoder 2x2x1"
    assert header["memory"] == wanted
    assert [event["frames_worth"] for event in events] == [0, 1 + 1 / 4 + 3 / 4, 1 + 3 / 4 + 6 / 4]

    def stop(text: str) -> None:
        if "chunk 1 of" in text:
            comfy.model_management.interrupt_current_processing()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        film(model, both).make(tmp_path / "resumed", stop)
    assert torch.equal(film(model, both).make(tmp_path / "resumed").latents, whole.latents)


def test_of_several_encoders_the_one_that_does_not_fit_is_named(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    both = replace(loaded(), beside=replace(loaded(), beside=loaded(name="coarse", width=256)))
    refuse(film(model, both), tmp_path / "films", "memory encoder coarse needs a model of width 256")
    both = replace(loaded(), beside=loaded(name="large", rate=Rate(4, 4, 2)))
    refuse(film(model, both, width=48, height=48), tmp_path / "films", "memory encoder large of rate 4x4x2 needs")


def test_wan_22_5b_remembers_through_an_encoder(
    host: object, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """A pixel in sixteen, so the film is twice as large; a window of 0 leaves the encoder alone."""
    wan22 = build_tiny_wan22()
    films = []
    for longest in (None, 1):
        encoder = loaded(HistoryConfig(window_frames=0, longest_frames=longest), channels=48)
        films.append(film(wan22, encoder, width=128, height=64, project=str(longest)).make(tmp_path).latents)
    assert films[0].shape == (1, 48, 9, 4, 8)
    assert torch.equal(films[0][:, :, :3], films[1][:, :, :3])
    assert relative_error(films[0][:, :, 3:], films[1][:, :, 3:]) > NOT_ROUNDING


def refuse(wrong: Film, root: Path, *words: str) -> None:
    with pytest.raises(ValueError, match=words[0]) as refused:
        wrong.make(root)
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert not root.exists()


def test_a_causal_checkpoint_is_refused(loaded: Callable[..., LoadedEncoder], tmp_path: Path) -> None:
    causal = build_tiny_wan(SPEC, causal=True)
    refuse(film(causal, loaded()), tmp_path / "films", "WAN21_CausalAR", "Sparse KV Memory", r"(tiny)")


def test_a_model_of_another_width_is_refused(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    wide = loaded(width=256)
    refuse(film(model, wide), tmp_path / "films", "width 256 with 16 channels", "width 128 with 16", "another encoder")


def test_two_memories_at_once_are_refused(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    remembering = attach_memory(model, MemoryConfig())
    refuse(film(remembering, loaded()), tmp_path / "films", "takes the place of Sparse KV Memory", "Remove these nodes")


def test_a_pin_or_a_veto_is_refused(model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path) -> None:
    board = planned("[0.75s] a beach\n[0.75s] a town\npin: 0.5s")
    pinned = film_on_disk(model, board, encoder=loaded())
    refuse(pinned, tmp_path / "films", "neither pinned nor vetoed", "out of the storyboard")


def test_an_encoder_of_pictures_asks_for_the_vae(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    refuse(film(model, loaded(low=LowBranch.VIDEO)), tmp_path / "films", "needs the VAE", "Connect the VAE")


def test_a_film_that_is_smaller_than_a_token_is_refused(
    model: ModelPatcher, loaded: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    small = film(model, loaded(rate=Rate(4, 4, 2)), width=48, height=48)
    refuse(small, tmp_path / "films", "at least 8 latents each way, got 6 x 6")


@pytest.mark.parametrize("setting", [{"window_frames": -1}, {"longest_frames": 0}])
def test_counts_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="of a memory encoder needs"):
        HistoryConfig(**setting)


def test_it_says_what_it_fits_and_what_tells_the_film_beside_it(loaded: Callable[..., LoadedEncoder]) -> None:
    alone = loaded(width=1536, base="Wan 2.1 T2V 1.3B", trained={"steps": 100})
    told = "fits Wan 2.1 1.3B\n2x2x2: one token for 8\nmade for Wan 2.1 T2V 1.3B\nsteps: 100"
    assert fits(alone) == told
    fine = loaded(HistoryConfig(longest_frames=20), name="fine", rate=Rate(2, 2, 1))
    assert fits(replace(alone, beside=fine)) == f"{told}\nbeside it fine 2x2x1: the newest 20 frames"
