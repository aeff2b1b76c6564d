"""Cross-attention from an encoder's hidden states into every layer of a Wan, in the real host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from encoders import SPEC, batched, encoders_in, lively_wan, one_after_the_other, three_shots
from film import film_on_disk, planned
from hunyuan_film import words
from numerics import BF16_COMPUTE_ERROR, NOT_ROUNDING, ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder_spec import EncoderSpec, Rate
from longreel.memory.history_session import Reading
from longreel.memory.trace import read_trace
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, build_tiny_hunyuan
from longreel.nodes.host.encoder_check import fits
from longreel.nodes.host.encoder_model import LoadedEncoder, encoder_of


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return lively_wan()


@pytest.fixture
def crossed(tmp_path: Path) -> Callable[..., LoadedEncoder]:
    load = encoders_in(tmp_path)

    def with_cross(config: HistoryConfig | None = None, **changes: Any) -> LoadedEncoder:
        return load(config or HistoryConfig(1), **{"cross_layers": SPEC.layers, "own_prompts": True, **changes})

    return with_cross


def without(encoder: LoadedEncoder) -> LoadedEncoder:
    """The same encoder, never asked for its hidden states."""
    assert isinstance(encoder.spec, EncoderSpec)
    weights = {name: tensor for name, tensor in encoder.patcher.model.state_dict().items() if "cross" not in name}
    return encoder_of(replace(encoder.spec, cross_layers=0), weights, encoder.config, torch.float32)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_new_cross_attention_keeps_the_bits_of_an_encoder_without_it(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path, cfg: float
) -> None:
    new, loud = crossed(silent=True, dtype=torch.float32), crossed(name="loud", dtype=torch.float32)
    films = [
        three_shots(model, encoder, cfg=cfg).make(tmp_path / str(number)).latents
        for number, encoder in enumerate((new, without(new), loud, without(loud)))
    ]
    assert torch.equal(films[0], films[1])
    assert torch.equal(films[2][:, :, :3], films[3][:, :, :3])
    assert relative_error(films[2], films[3]) > NOT_ROUNDING


def test_prompt_and_negative_in_one_batch_read_what_each_reads_alone(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    encoder = crossed(dtype=torch.float32)
    films = [
        batched(three_shots(each, encoder, cfg=5.0)).make(tmp_path / name).latents
        for name, each in (("together", model), ("alone", one_after_the_other(model)))
    ]
    assert relative_error(*films) < ROLLOUT_ERROR


def test_in_bf16_it_is_near_the_film_in_float32(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """Whichever of model and encoder it is."""
    rounded = model.clone()
    rounded.set_model_compute_dtype(torch.bfloat16)
    encoders = {dtype: crossed(dtype=dtype, name=str(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    exact = three_shots(model, encoders[torch.float32]).make(tmp_path / "exact").latents
    near = [(model, torch.bfloat16), (rounded, torch.float32), (rounded, torch.bfloat16)]
    for number, (each, dtype) in enumerate(near):
        made = three_shots(each, encoders[dtype]).make(tmp_path / str(number)).latents
        assert NOT_ROUNDING < relative_error(made, exact) < BF16_COMPUTE_ERROR


def test_it_says_which_models_can_read_it(crossed: Callable[..., LoadedEncoder]) -> None:
    assert "\nneeds a Wan of 2 layers, which all read it in every step\n" in fits(crossed())


def test_layers_read_what_every_encoder_tells_and_a_stopped_film_goes_on_with_the_same_bits(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """Of two encoders, and without the hidden states of the second the film is another one."""
    both = replace(crossed(), beside=crossed(HistoryConfig(0, 3), name="other", rate=Rate(2, 2, 1)))
    whole = three_shots(model, both).make(tmp_path / "whole").latents

    def stop(text: str) -> None:
        if "chunk 2 of" in text:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        three_shots(model, both).make(tmp_path / "resumed", stop)
    assert torch.equal(three_shots(model, both).make(tmp_path / "resumed").latents, whole)
    alone = three_shots(
        model, replace(both, beside=without(crossed(HistoryConfig(0, 3), name="other", rate=Rate(2, 2, 1))))
    )
    assert relative_error(alone.make(tmp_path / "alone").latents, whole) > NOT_ROUNDING


def test_a_layer_that_another_pack_skips_reads_no_hidden_states(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    """As ComfyUI's own skip layer guidance does it; reading is a part of the layer."""
    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    encoder = crossed(dtype=torch.float32)
    made = three_shots(skipping, encoder).make(tmp_path / "skipped").latents
    encoder.patcher.model.cross.layers[1].project.weight.zero_()
    assert torch.equal(three_shots(skipping, encoder, project="silent").make(tmp_path).latents, made)
    encoder.patcher.model.cross.layers[0].project.weight.zero_()
    assert not torch.equal(three_shots(skipping, encoder, project="none").make(tmp_path).latents, made)


def test_what_is_read_is_softmax_attention_written_out(crossed: Callable[..., LoadedEncoder]) -> None:
    encoder = crossed(dtype=torch.float32)
    cross, generator = encoder.patcher.model.cross, torch.Generator().manual_seed(0)
    hidden, x = torch.randn(1, 5, 16, generator=generator), torch.randn(2, 7, SPEC.width, generator=generator)
    keys, values = cross.told(hidden).chunk(2, dim=-1)
    layer = cross.layers[1]
    q = layer.query((x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    heads: list[Tensor] = []
    for head in range(encoder.spec.heads):
        at = slice(8 * head, 8 * head + 8)
        heads.append((q[..., at] @ keys[..., at].mT / 8**0.5).softmax(-1) @ values[..., at])
    assert relative_error(cross.reader(hidden)(1, x), layer.project(torch.cat(heads, dim=-1))) < ROLLOUT_ERROR


def test_hidden_states_and_what_layers_read_of_them_are_among_the_bytes(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    more, less = (
        read_trace(three_shots(model, encoder).make(tmp_path / name).trace)[0]["peak_kv_bytes"]
        for name, encoder in (("crossed", crossed()), ("plain", without(crossed())))
    )
    assert more * 2 * SPEC.width == less * (2 * SPEC.width + 3 * 16)


def test_other_models_and_histories_that_are_kept_are_refused(
    model: ModelPatcher, crossed: Callable[..., LoadedEncoder], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"needs a model of 3 layers \(tiny\), got one of 2"):
        three_shots(model, crossed(cross_layers=3)).make(tmp_path / "films")
    once = replace(crossed(), reading=Reading.ONCE_A_CHUNK)
    with pytest.raises(ValueError, match=r"anew in every step: all layers read its hidden states\. Set 'reading'"):
        three_shots(model, once).make(tmp_path / "films")
    hunyuan = build_tiny_hunyuan(TinyHunyuanSpec(width=128, double_layers=1, single_layers=1))
    board = planned("[0.75s] a beach", prompts=(words(0),))
    film = film_on_disk(hunyuan, replace(board, negative=words(99, 3)), encoder=crossed())
    with pytest.raises(
        ValueError, match=r"cross-attention in every layer.*which HunyuanVideo text-to-video does not read"
    ):
        film.make(tmp_path / "films")
