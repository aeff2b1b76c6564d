"""History that is read once: films are those in which history looks at itself alone, and later steps are short."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.hooks import HookGroup
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from encoders import FRAME, OWN, SPEC, batched, encoders_read, lively_wan, one_after_the_other, three_shots, under
from film import film_on_disk, planned
from hunyuan_film import words
from numerics import NOT_ROUNDING, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder_spec import Modulation, Rate
from longreel.memory.history_session import HistorySession, Reading
from longreel.nodes.film import Film
from longreel.nodes.host.build import build_tiny_vae
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, build_tiny_hunyuan
from longreel.nodes.host.encoder_check import check_encoder
from longreel.nodes.host.encoder_model import LoadedEncoder
from longreel.nodes.host.keys import HISTORY, OVERRIDE


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return lively_wan()


@pytest.fixture
def once(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    return encoders_read(tmp_path, Reading.ONCE_A_CHUNK)


def blind(model: ModelPatcher) -> ModelPatcher:
    """A model whose history does not look at the frames being made."""

    def hidden(tokens: int) -> Tensor:
        mask = torch.zeros(1, 1, tokens, tokens)
        mask[..., OWN:, :OWN] = -torch.inf
        return mask

    return under(model, hidden)


@pytest.mark.parametrize(("cfg", "proportional", "count"), [(1.0, True, 7), (5.0, False, 7), (5.0, True, OWN)])
def test_a_film_that_reads_history_once_is_one_whose_history_is_blind(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path, cfg: float, proportional: bool, count: int
) -> None:
    """With two encoders, guidance, and a prompt that is as long as the picture."""
    both = replace(once(proportional=proportional), beside=once(HistoryConfig(0, 3), rate=Rate(2, 2, 1)))
    kept, anew = (
        three_shots(model, each, count, cfg=cfg) for each in (both, replace(both, reading=Reading.EVERY_STEP))
    )
    made = kept.make(tmp_path / "kept").latents
    wanted = replace(anew, model=blind(model)).make(tmp_path / "blind").latents
    assert relative_error(made, wanted) < ROLLOUT_ERROR
    seeing = anew.make(tmp_path / "seeing").latents
    assert torch.equal(made[:, :, :3], seeing[:, :, :3])
    assert relative_error(seeing, made) > NOT_ROUNDING


@pytest.mark.parametrize("reading", Reading)
def test_prompt_and_negative_in_one_batch_read_what_each_reads_alone(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path, reading: Reading
) -> None:
    encoder = replace(once(proportional=True), reading=reading)
    rows: set[int] = set()

    def watch(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.add(len(x))
        return executor(x, *args, **kwargs)

    together, alone = model.clone(), one_after_the_other(model)
    for each in (together, alone):
        each.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    films = []
    for name, each, called in (("together", together, {1, 2}), ("alone", alone, {1})):
        films.append(batched(three_shots(each, encoder, cfg=5.0)).make(tmp_path / name).latents)
        assert rows == called
        rows.clear()
    assert relative_error(*films) < ROLLOUT_ERROR


def test_only_the_first_step_of_a_chunk_is_as_long_as_history(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    lengths: list[int] = []

    def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        lengths.append(args["img"].shape[1])
        made: dict[str, Any] = extra["original_block"](args)
        return made

    watched = model.clone()
    watched.set_model_patch_replace(watch, "dit", "double_block", 1)
    three_shots(watched, once()).make(tmp_path)
    assert lengths == [OWN, OWN, OWN + FRAME + FRAME // 4, OWN, OWN + FRAME + 3 * FRAME // 4, OWN]


def test_an_attention_override_of_another_pack_is_still_asked_and_a_stopped_film_goes_on_with_the_same_bits(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    seen: set[tuple[int, int]] = set()

    def watch(attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen.add((q.shape[1], k.shape[1]))
        made: Tensor = attention(q, k, v, *args, **settings)
        return made

    watched = model.clone()
    watched.model_options["transformer_options"][OVERRIDE] = watch
    whole = three_shots(model, once()).make(tmp_path / "whole").latents
    stopped: list[str] = []

    def stop(text: str) -> None:
        stopped.append(text)
        if "chunk 2 of" in text:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        three_shots(watched, once()).make(tmp_path / "resumed", stop)
    assert torch.equal(three_shots(watched, once()).make(tmp_path / "resumed").latents, whole)
    history = FRAME + FRAME // 4
    assert {(OWN, OWN), (OWN, OWN + history), (history, history)} <= seen


def test_it_is_another_setting_and_takes_more_of_the_card(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    kept, anew = (three_shots(model, each) for each in (once(), replace(once(), reading=Reading.EVERY_STEP)))
    assert kept._settings() != anew._settings()
    assert "read_once" not in anew._memory_settings()
    small, large = (read_peak(each, tmp_path / name) for each, name in ((anew, "anew"), (kept, "kept")))
    assert large == small * (1 + SPEC.layers)


def test_what_will_be_kept_is_not_free_while_the_host_loads_the_model(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """Before the film, and wherever the VAE was in between; what a chunk kept is gone by then."""
    found: list[tuple[int, int]] = []

    def held(bytes_held: int) -> int:
        bare = [each for each in gc.get_objects() if type(each) is Tensor and each.dtype == torch.uint8]
        return [each.nbytes for each in bare].count(bytes_held)

    def watch(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        session: HistorySession = kwargs["model_options"]["transformer_options"][HISTORY]
        current = session.history.current
        found.append((held(session.peak_bytes), 0 if current is None else len(session.kept(current))))
        return executor(*args, **kwargs)

    watched = three_shots(model, once(), vae=build_tiny_vae())
    watched.remembering.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "watch", watch)
    peak = read_peak(watched, tmp_path)
    assert len(found) > 1
    assert set(found) == {(1, 0)}
    assert held(peak) == 0


@pytest.mark.parametrize("reading", [Reading.EVERY_STEP, Reading.ONCE_A_CHUNK])
def test_a_mask_under_which_history_counts_has_one_row_for_all_readers(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path, reading: Reading
) -> None:
    shapes: set[tuple[int, ...]] = set()

    def watch(attention: Any, *args: Any, mask: Tensor | None = None, **settings: Any) -> Tensor:
        if mask is not None:
            shapes.add(tuple(mask.shape[:-1]))
        made: Tensor = attention(*args, mask=mask, **settings)
        return made

    watched = model.clone()
    watched.model_options["transformer_options"][OVERRIDE] = watch
    three_shots(watched, replace(once(proportional=True), reading=reading)).make(tmp_path)
    assert shapes == {(1, 1, 1)}


def read_peak(film: Film, root: Path) -> int:
    from longreel.memory.trace import read_trace

    header, _ = read_trace(film.make(root).trace)
    peak = header["peak_kv_bytes"]
    assert isinstance(peak, int)
    return peak


@pytest.mark.parametrize("changes", [{"own_prompts": False}, {"modulation": Modulation.TARGET}])
def test_tokens_that_change_from_step_to_step_are_refused(
    model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path, changes: dict[str, Any]
) -> None:
    wrong = replace(once(), beside=once(name="changing", **changes))
    with pytest.raises(ValueError, match=r"encoder changing has to be read anew in every step.*Set 'reading'"):
        three_shots(model, wrong).make(tmp_path / "films")


def test_a_history_that_is_larger_than_the_device_is_refused_before_the_run(
    model: ModelPatcher, once: Callable[..., LoadedEncoder]
) -> None:
    """A film of ten million frames, of which nothing is made."""
    long, size = 10_000_000, (60, 104)
    small = replace(once(HistoryConfig(1, 80)), reading=Reading.EVERY_STEP)
    check_encoder(model, small, long, size, has_vae=False)
    with pytest.raises(
        ValueError, match=r"History of \d+ tokens needs .* GiB, but the device has.*'history'.*'every step'"
    ):
        check_encoder(model, once(), long, size, has_vae=False)
    whole = replace(once(), reading=Reading.EVERY_STEP)
    with pytest.raises(ValueError, match="'history' or the 'window'") as refused:
        check_encoder(model, whole, 100 * long, size, has_vae=False)
    assert "every step" not in str(refused.value)


def test_a_lora_on_a_prompt_is_refused(model: ModelPatcher, once: Callable[..., LoadedEncoder], tmp_path: Path) -> None:
    plain = three_shots(model, once()).storyboard
    hooked = [[plain.negative[0][0], {"hooks": HookGroup()}]]
    wrong = replace(three_shots(model, once()), storyboard=replace(plain, negative=hooked))
    with pytest.raises(ValueError, match=r"LoRA on a prompt.*put the LoRA on the model"):
        wrong.make(tmp_path / "films")


def test_hunyuanvideo_reads_in_every_step(once: Callable[..., LoadedEncoder], tmp_path: Path) -> None:
    hunyuan = build_tiny_hunyuan(TinyHunyuanSpec(width=128, double_layers=1, single_layers=1))
    board = planned("[0.75s] a beach", prompts=(words(0),))
    wrong = film_on_disk(hunyuan, replace(board, negative=words(99, 3)), encoder=once())
    with pytest.raises(ValueError, match=r"HunyuanVideo text-to-video reads history anew.*Set 'reading'"):
        wrong.make(tmp_path / "films")
