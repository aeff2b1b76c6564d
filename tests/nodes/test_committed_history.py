"""History that is committed once in a film: films are those under a mask, and every chunk is as short as without history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from encoders import FRAME, OWN, SPEC, batched, encoders_read, lively_wan, three_shots, under
from numerics import BF16_COMPUTE_ERROR, NOT_ROUNDING, ROLLOUT_ERROR, relative_error
from tensors_held import bytes_of, tensors_of
from torch import Tensor

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder_spec import Rate
from longreel.memory.history_session import HistorySession, Reading
from longreel.memory.trace import read_trace
from longreel.nodes.host.encoder_model import LoadedEncoder
from longreel.nodes.host.keys import HISTORY, OVERRIDE

TOKEN = FRAME // 4  # tokens of a part: 2 x 2 of the model's own become one
PARTS = {3: [0, 0, 0, 0], 6: [0, 1, 2, 0, 0, 0, 2, 2, 2]}
"""For films of 3 and 6 frames, when each part of history was committed: those of 2 frames, then those of single ones.

The second part of 2 frames begins in the first shot and ends in the second, so it goes by itself.
"""
ALONE = {3: [0], 6: [0, 1, 2]}
"""The same without the second encoder."""


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return lively_wan()


@pytest.fixture
def committed(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    return encoders_read(tmp_path, Reading.ONCE_A_FILM)


def looking_back(model: ModelPatcher, parts: dict[int, list[int]] = PARTS) -> ModelPatcher:
    """A model whose history looks at no frame being made, at nothing newer than itself, and at whole frames only as one of them."""

    def hidden(tokens: int) -> Tensor:
        told = parts[3] if tokens == OWN + len(parts[3]) * TOKEN + FRAME else parts[6]
        order = torch.tensor(told).repeat_interleave(TOKEN)
        sees = torch.ones(tokens, tokens, dtype=torch.bool)
        sees[OWN:, :OWN] = False
        sees[OWN:-FRAME, OWN:-FRAME] = order[:, None] >= order
        sees[OWN:-FRAME, -FRAME:] = False
        return torch.zeros(1, 1, *sees.shape).masked_fill(~sees, -torch.inf)

    return under(model, hidden)


@pytest.mark.parametrize(("cfg", "proportional", "count"), [(1.0, True, 7), (5.0, False, 7), (5.0, True, OWN)])
def test_a_film_whose_history_is_committed_is_one_whose_history_looks_back(
    model: ModelPatcher,
    committed: Callable[..., LoadedEncoder],
    tmp_path: Path,
    cfg: float,
    proportional: bool,
    count: int,
) -> None:
    """With two encoders, a whole frame, guidance, and a prompt that is as long as the picture."""
    both = replace(committed(proportional=proportional), beside=committed(HistoryConfig(0), rate=Rate(2, 2, 1)))
    made, anew = (
        three_shots(model, each, count, cfg=cfg) for each in (both, replace(both, reading=Reading.EVERY_STEP))
    )
    latents = made.make(tmp_path / "committed").latents
    wanted = replace(anew, model=looking_back(model)).make(tmp_path / "masked").latents
    assert relative_error(latents, wanted) < ROLLOUT_ERROR
    assert torch.equal(latents[:, :, :3], wanted[:, :, :3])
    chunked = three_shots(model, replace(both, reading=Reading.ONCE_A_CHUNK), count, cfg=cfg)
    assert relative_error(chunked.make(tmp_path / "chunked").latents, latents) > NOT_ROUNDING


def test_history_goes_through_the_model_once_and_every_step_is_short(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    lengths: list[int] = []

    def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        lengths.append(args["img"].shape[1])
        made: dict[str, Any] = extra["original_block"](args)
        return made

    watched = model.clone()
    watched.set_model_patch_replace(watch, "dit", "double_block", 1)
    three_shots(watched, committed()).make(tmp_path)
    assert lengths == [OWN, OWN, TOKEN, FRAME, OWN, OWN, TOKEN, TOKEN, FRAME, OWN, OWN]


@pytest.mark.parametrize(("second", "reads"), [("", 6), (", cut", 6), (", cut clean", 4)])
def test_a_stopped_film_goes_on_with_the_same_bits_and_another_packs_override_is_asked(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path, second: str, reads: int
) -> None:
    """The finished chunks are committed one by one, as they were: the four newest parts read so many, which a clean cut closes."""
    seen: set[tuple[int, int]] = set()

    def watch(attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen.add((q.shape[1], k.shape[1]))
        made: Tensor = attention(q, k, v, *args, **settings)
        return made

    watched = model.clone()
    watched.model_options["transformer_options"][OVERRIDE] = watch
    both = replace(committed(), beside=committed(HistoryConfig(0, 3), rate=Rate(2, 2, 1)))
    whole = three_shots(model, both, second=second).make(tmp_path / "whole").latents

    def stop(text: str) -> None:
        if "chunk 2 of" in text:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        three_shots(watched, both, second=second).make(tmp_path / "resumed", stop)
    assert torch.equal(three_shots(watched, both, second=second).make(tmp_path / "resumed").latents, whole)
    assert {(OWN, OWN), (4 * TOKEN, reads * TOKEN)} <= seen


def test_what_another_pack_adds_to_the_picture_behind_a_layer_is_not_added_to_history(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """As ComfyUI's own Uni3C does it: to as many tokens from the first on as its own copy of the picture has."""

    def add(args: dict[str, Any]) -> dict[str, Any]:
        _, _, frames, rows, columns = args["x"].shape
        args["img"][:, : frames * rows * columns // 4] += torch.linspace(-1.0, 1.0, SPEC.width)
        return args

    adding = model.clone()
    adding.set_model_double_block_patch(add)
    encoder = committed(proportional=True)
    made = three_shots(adding, encoder).make(tmp_path / "committed").latents
    anew = three_shots(looking_back(adding, ALONE), replace(encoder, reading=Reading.EVERY_STEP))
    assert relative_error(made, anew.make(tmp_path / "masked").latents) < ROLLOUT_ERROR
    assert relative_error(made, three_shots(model, encoder).make(tmp_path / "without").latents) > NOT_ROUNDING


def test_a_commit_is_told_as_the_one_row_that_it_is(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """Under guidance, where the frames being made are two rows."""
    told: set[tuple[int, int, int]] = set()

    def watch(attention: Any, q: Tensor, *args: Any, transformer_options: dict[str, Any], **settings: Any) -> Tensor:
        told.add((len(q), len(transformer_options["cond_or_uncond"]), len(transformer_options["uuids"])))
        made: Tensor = attention(q, *args, transformer_options=transformer_options, **settings)
        return made

    watched = model.clone()
    watched.model_options["transformer_options"][OVERRIDE] = watch
    batched(three_shots(watched, committed(), cfg=5.0)).make(tmp_path)
    assert told == {(1, 1, 1), (2, 2, 2)}


def test_a_layer_that_another_pack_skips_while_history_is_committed_is_one_clear_error(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    with pytest.raises(ValueError, match=r"every layer of the model.*1 of 2.*Remove.*'every step'"):
        three_shots(skipping, committed()).make(tmp_path)


@pytest.mark.parametrize("reading", Reading)
def test_a_film_that_fails_keeps_nothing_of_its_history_even_while_its_error_is_looked_at(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path, reading: Reading
) -> None:
    """An error keeps every frame of the program that it came through, and so all that these know."""
    sessions: list[HistorySession] = []

    def look(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        sessions.append(kwargs["model_options"]["transformer_options"][HISTORY])
        return executor(*args, **kwargs)

    def fail(text: str) -> None:
        if "chunk 3 of" in text:
            held.append(bytes_of(tensors_of(sessions[0])))
            raise OSError("disk full")

    held: list[int] = []
    failing = three_shots(model, replace(committed(), reading=reading))
    failing.remembering.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "look", look)
    with pytest.raises(OSError, match="disk full"):
        failing.make(tmp_path, fail)
    assert held[0] > 0
    assert not tensors_of(sessions[0].history.commits)
    assert sessions[0].history.current is None
    assert bytes_of(tensors_of(sessions[0])) < held[0]


def test_in_bf16_it_is_near_the_film_in_float32(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    rounded = model.clone()
    rounded.set_model_compute_dtype(torch.bfloat16)
    both = [committed(dtype=dtype, name=str(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    exact, near = (
        three_shots(each, encoder).make(tmp_path / encoder.name).latents
        for each, encoder in zip((model, rounded), both, strict=True)
    )
    assert NOT_ROUNDING < relative_error(near, exact) < BF16_COMPUTE_ERROR


def test_it_is_a_setting_of_its_own_is_told_and_takes_as_much_as_reading_once_a_chunk(
    model: ModelPatcher, committed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    films = {reading: three_shots(model, replace(committed(), reading=reading)) for reading in Reading}
    settings = [film._settings() for film in films.values()]
    assert all(one != other for at, one in enumerate(settings) for other in settings[:at])
    headers = [read_trace(each.make(tmp_path / reading.name).trace)[0] for reading, each in films.items()]
    anew, chunk, film = (header["peak_kv_bytes"] for header in headers)
    assert film == chunk == anew * (1 + SPEC.layers)
    words = "window of 1 frames, and the whole film through a memory encoder 2x2x2"
    assert [header["memory"] for header in headers] == [
        words,
        f"{words}, read once a chunk",
        f"{words}, read once a film",
    ]
