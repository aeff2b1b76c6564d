"""The memory encoder: token counts at real shapes, pieces that equal the whole, and files that are not what they say."""

from __future__ import annotations

import json
import math
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import FORWARD_ERROR, SAME_SUM, relative_error
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder, shrink, token_positions
from longreel.memory.encoder_file import FORMAT, VERSION, read_encoder, read_spec, save_encoder
from longreel.memory.encoder_spec import RATES, EncoderSpec, LowBranch, Modulation, Rate, smaller_frames
from longreel.memory.training.initialise import initialise_encoder

TINY = EncoderSpec(width=32, channels=4, stages=(8, 16), heads=2, rate=Rate(2, 2, 2), base="a tiny model")
PATCHIFIER = replace(TINY, stages=(), low=LowBranch.NONE)
HUNYUAN_WIDTH, WAN_WIDTH = 3072, 1536


def made(spec: EncoderSpec, seed: int = 0) -> MemoryEncoder:
    encoder = MemoryEncoder(spec).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    initialise_encoder(encoder, generator)
    if isinstance(encoder.high, HighResolutionBranch):
        encoder.high.project.weight.normal_(generator=generator)
    return encoder


def embedding(spec: EncoderSpec) -> nn.Conv3d:
    torch.manual_seed(0)
    return nn.Conv3d(spec.channels, spec.width, (1, 2, 2), stride=(1, 2, 2)).requires_grad_(False)


def film(spec: EncoderSpec, frames: int, height: int = 12, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, spec.channels, frames, height, width, generator=generator)


@pytest.mark.parametrize(
    ("width", "size", "rate", "tokens"),
    [
        (HUNYUAN_WIDTH, (120, 60, 104), "4x4x2", 5460),
        (WAN_WIDTH, (80, 60, 104), "4x4x2", 3640),
        (WAN_WIDTH, (80, 60, 104), "2x2x2", 15_600),
        (WAN_WIDTH, (80, 60, 104), "2x2x1", 31_200),
        (WAN_WIDTH, (80, 60, 104), "2x2x4", 7800),
        (WAN_WIDTH, (80, 60, 104), "2x2x8", 3900),
    ],
)
def test_twenty_seconds_of_480p_become_this_many_tokens(
    width: int, size: tuple[int, int, int], rate: str, tokens: int
) -> None:
    spec = EncoderSpec(width=width, rate=Rate.parse(rate))
    with torch.device("meta"):
        encoder = MemoryEncoder(spec)
        embed = nn.Conv3d(spec.channels, width, (1, 2, 2), stride=(1, 2, 2))
        made = encoder(torch.empty(1, spec.channels, *size), embed)
    assert made.shape == (1, tokens, width)
    assert len(token_positions(spec, spec.grid(*size))) == tokens


def test_the_hunyuan_figure_of_the_paper_is_7_by_13_by_60() -> None:
    assert EncoderSpec(width=HUNYUAN_WIDTH).grid(120, 60, 104) == (60, 7, 13)
    assert EncoderSpec(width=HUNYUAN_WIDTH).low_size(120, 60, 104) == (60, 15, 26)


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("size", [(16, 12, 16), (17, 15, 19)])
def test_both_branches_of_every_rate_give_the_grid_of_the_spec(rate: Rate, size: tuple[int, int, int]) -> None:
    spec = replace(TINY, rate=rate, low=LowBranch.VIDEO)
    low = torch.randn(1, spec.channels, *spec.low_size(*size))
    frames, rows, columns = spec.grid(*size)
    assert made(spec)(film(spec, *size), embedding(spec), low).shape == (1, frames * rows * columns, spec.width)


@pytest.mark.parametrize("kind", [TINY, PATCHIFIER], ids=["branches", "patchifier"])
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_film_encoded_piece_by_piece_has_the_tokens_of_the_film_encoded_at_once(
    rate: Rate, kind: EncoderSpec
) -> None:
    spec = replace(kind, rate=rate)
    encoder, embed, latents = made(spec), embedding(spec), film(spec, 24)
    whole = encoder(latents, embed)
    pieces = torch.cat([encoder(piece, embed) for piece in latents.split((8, 16), dim=2)], dim=1)
    assert relative_error(pieces, whole) < FORWARD_ERROR


@pytest.mark.parametrize("rate", [Rate(2, 2, 2), Rate(4, 4, 4)], ids=str)
def test_averaged_patch_kernels_of_framepack_are_the_low_resolution_branch(rate: Rate) -> None:
    """FramePack's kernels (2, 4, 4) and (4, 8, 8) begin as the model's own with every number repeated, divided by how often."""
    spec = smaller_frames(rate)
    embed, latents = embedding(TINY), film(TINY, 8, 16, 32)
    kernel = embed.weight / math.prod(rate)
    for axis, times in enumerate((rate.frames, rate.rows, rate.columns), start=2):
        kernel = kernel.repeat_interleave(times, dim=axis)
    packed = functional.conv3d(latents, kernel, embed.bias, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    assert relative_error(MemoryEncoder(spec)(latents, embed), packed) < SAME_SUM


def test_an_encoder_without_weights_may_be_for_any_model_and_survives_as_text() -> None:
    spec = smaller_frames(RATES[0])
    assert spec.fits_any
    assert EncoderSpec.from_json(spec.to_json()) == spec
    assert not replace(spec, width=32, channels=4).fits_any
    with pytest.raises(ValueError, match="a width of 1 to"):
        replace(spec, high=True)
    with pytest.raises(ValueError, match="number of channels of 1 to"):
        replace(spec, width=32)


def test_a_new_encoder_is_its_low_resolution_branch_alone() -> None:
    encoder = MemoryEncoder(TINY).requires_grad_(False)
    initialise_encoder(encoder, torch.Generator().manual_seed(0))
    latents, embed = film(TINY, 4), embedding(TINY)
    low = embed(shrink(latents, TINY)).flatten(2).transpose(1, 2)
    assert torch.equal(encoder(latents, embed), low)
    assert torch.equal(MemoryEncoder(replace(TINY, high=False))(latents, embed), low)


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("size", [(16, 16, 24), (17, 15, 19)])
def test_a_large_patchifier_begins_as_the_low_resolution_branch(rate: Rate, size: tuple[int, int, int]) -> None:
    spec = replace(PATCHIFIER, rate=rate)
    encoder, embed, latents = MemoryEncoder(spec).requires_grad_(False), embedding(spec), film(spec, *size)
    initialise_encoder(encoder, torch.Generator().manual_seed(0), embed)
    low = MemoryEncoder(replace(TINY, rate=rate, high=False))
    assert relative_error(encoder(latents, embed), low(latents, embed)) < FORWARD_ERROR
    assert sum(weight.numel() for weight in encoder.parameters()) == spec.width * (
        1 + spec.channels * 4 * rate.rows * rate.columns * rate.frames
    )


def test_both_branches_matter_in_a_trained_one() -> None:
    latents, embed = film(TINY, 4), embedding(TINY)
    both = made(TINY)(latents, embed)
    high = made(replace(TINY, low=LowBranch.NONE))(latents, embed)
    low = made(replace(TINY, high=False))(latents, embed)
    assert relative_error(high + low, both) < FORWARD_ERROR
    assert min(high.std(), low.std()) > 0.01


def test_every_frame_of_a_token_reaches_it() -> None:
    encoder, embed = made(replace(TINY, low=LowBranch.NONE)), embedding(TINY)
    latents = film(TINY, 4)
    before = encoder(latents, embed).unflatten(1, (2, -1))
    for frame in range(4):
        changed = latents.clone()
        changed[:, :, frame] += 1
        after = encoder(changed, embed).unflatten(1, (2, -1))
        assert [not torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)] == [frame < 2, frame >= 2]


def test_a_token_lies_in_the_middle_of_what_it_stands_for() -> None:
    spec = EncoderSpec(width=32, rate=Rate(4, 4, 2))
    positions = token_positions(spec, spec.grid(4, 16, 16), first_frame=10)
    assert positions.tolist() == [[t, y, x] for t in (10.5, 12.5) for y in (1.5, 5.5) for x in (1.5, 5.5)]


@pytest.mark.parametrize("size", [(1, 12, 16), (4, 3, 16)])
def test_latents_that_are_too_small_are_one_clear_error(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="needs latents of at least 2 frames, 4 x 4, got"):
        made(TINY)(film(TINY, *size), embedding(TINY))


def test_a_smaller_video_that_is_missing_or_of_another_size_is_one_clear_error() -> None:
    spec = replace(TINY, low=LowBranch.VIDEO)
    with pytest.raises(ValueError, match=r"smaller video \[2, 6, 8\], got none"):
        made(spec)(film(spec, 4), embedding(spec))
    with pytest.raises(ValueError, match=r"smaller video \[2, 6, 8\], got \[4, 6, 8\]"):
        made(spec)(film(spec, 4), embedding(spec), film(spec, 4, 6, 8))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"width": 0}, "a width of 1 to"),
        ({"stages": (8,) * 17}, "0 to 16 stages"),
        ({"stages": (), "heads": 5}, "that 5 heads can share, got 32"),
        ({"stages": (8, 100_000)}, "width of a stage"),
        ({"heads": 3}, "that 3 heads can share, got 16"),
        ({"attention_layers": 99}, "0 to 16 attention layers"),
        ({"high": False, "low": LowBranch.NONE}, "needs a branch"),
        ({"cross_layers": 1000}, "1 to 256 layers with cross-attention, got 1000"),
        ({"cross_layers": 2, "stages": ()}, "Cross-attention needs a high-resolution branch"),
        ({"cross_layers": 2, "high": False}, "Cross-attention needs a high-resolution branch"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        replace(TINY, **change)


# Files


@pytest.fixture
def written(tmp_path: Path) -> Path:
    save_encoder(tmp_path / "encoder.safetensors", TINY, made(TINY).state_dict())
    return tmp_path / "encoder.safetensors"


def write(path: Path, weights: dict[str, Tensor], **metadata: str) -> Path:
    """A file like one of ours, but for what is named."""
    kept = {"format": FORMAT, "version": VERSION, "spec": TINY.to_json(), **metadata}
    save_file(weights, path, metadata=kept)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError, match=path.name) as error:
        read_encoder(path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_what_was_written_is_read_again(written: Path) -> None:
    spec, weights = read_encoder(written)
    assert spec == read_spec(written) == TINY
    assert all(torch.equal(weights[name], tensor) for name, tensor in made(TINY).state_dict().items())


def test_a_large_patchifier_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, PATCHIFIER, made(PATCHIFIER).state_dict())
    spec, weights = read_encoder(path)
    assert spec == PATCHIFIER
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "high.patch.weight": (32, 4, 2, 4, 4),
        "high.patch.bias": (32,),
    }


def test_a_patchifier_with_the_weights_of_branches_is_refused(tmp_path: Path) -> None:
    weights = made(TINY).state_dict()
    path = write(tmp_path / "other.safetensors", weights, spec=PATCHIFIER.to_json())
    refused(path, "without high.patch.bias")
    path = write(tmp_path / "another.safetensors", made(PATCHIFIER).state_dict())
    refused(path, "without high.attention")


def test_cross_attention_is_written_and_read_and_files_without_it_stay_what_they_were(tmp_path: Path) -> None:
    crossed = replace(TINY, cross_layers=3)
    weights = made(crossed).state_dict()
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, crossed, weights)
    spec, found = read_encoder(path)
    assert spec == crossed
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    assert {name: tensor.shape for name, tensor in weights.items() if name.startswith("cross.2")} == {
        "cross.2.query.weight": (16, 32),
        "cross.2.query.bias": (16,),
        "cross.2.project.weight": (32, 16),
        "cross.2.project.bias": (32,),
    }
    assert "cross" not in TINY.to_json()
    plain = {name: tensor for name, tensor in weights.items() if not name.startswith("cross")}
    assert plain.keys() == made(TINY).state_dict().keys()
    refused(write(tmp_path / "without.safetensors", plain, spec=crossed.to_json()), "without cross.0.project.bias")
    refused(write(tmp_path / "with.safetensors", weights), "with cross.0.project.bias, which no encoder has")
    weights["cross.1.query.weight"] = weights["cross.1.query.weight"][:, :8].contiguous()
    refused(
        write(tmp_path / "narrow.safetensors", weights, spec=crossed.to_json()),
        "cross.1.query.weight needs the shape [16, 32]",
    )


@pytest.mark.parametrize("low", LowBranch)
@pytest.mark.parametrize("modulation", Modulation)
def test_a_description_survives_as_text(low: LowBranch, modulation: Modulation) -> None:
    spec = replace(TINY, low=low, modulation=modulation, trained={"steps": 3, "films": "cartoons", "loss": 0.5})
    assert EncoderSpec.from_json(spec.to_json()) == spec


def test_a_pickle_with_the_name_of_a_safetensors_file_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("the pickle was run",)

    path = tmp_path / "encoder.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    refused(path, "needs to be a safetensors file")
    torch.save({"a": torch.zeros(1)}, path)
    refused(path, "needs to be a safetensors file")


def test_a_file_that_was_cut_off_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-100])
    refused(written, "needs to be a safetensors file")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora": torch.zeros(2)}, path)
    refused(path, "does not say that it is a LongReel memory encoder")


def test_a_newer_version_asks_for_an_update(tmp_path: Path) -> None:
    refused(write(tmp_path / "new.safetensors", made(TINY).state_dict(), version="7"), "version 1, got '7'", "Update")


def test_missing_and_strange_weights_are_refused(tmp_path: Path) -> None:
    weights = made(TINY).state_dict()
    fewer = {name: tensor for name, tensor in weights.items() if name != "high.project.weight"}
    refused(write(tmp_path / "fewer.safetensors", fewer), "without high.project.weight")
    refused(write(tmp_path / "more.safetensors", {**weights, "x": torch.zeros(1)}), "with x, which no encoder has")
    refused(write(tmp_path / "none.safetensors", {"x": torch.zeros(1)}), "got 1 without high.attention")


def test_a_wrong_width_is_refused(tmp_path: Path) -> None:
    weights = made(replace(TINY, width=48)).state_dict()
    refused(write(tmp_path / "wide.safetensors", weights), "model of width 32", "the shape [32, 16], got [48, 16]")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, number: float) -> None:
    weights = made(TINY).state_dict()
    weights["high.project.weight"][0, 0] = number
    refused(write(tmp_path / "nan.safetensors", weights), "finite numbers", "high.project.weight")


def test_weights_of_eight_bits_are_read(tmp_path: Path) -> None:
    weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in made(TINY).state_dict().items()}
    _, loaded = read_encoder(write(tmp_path / "small.safetensors", weights))
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float8_e4m3fn}


def test_weights_that_are_whole_numbers_are_refused(tmp_path: Path) -> None:
    weights = {name: tensor.to(torch.int32) for name, tensor in made(TINY).state_dict().items()}
    refused(write(tmp_path / "int.safetensors", weights), "finite numbers", "torch.int32")


def test_weights_of_four_bits_are_refused(tmp_path: Path) -> None:
    """Two in a byte, which torch can hold and nothing else; the file is written by hand."""
    entries: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION, "spec": TINY.to_json()}}
    end = 0
    for name, tensor in made(TINY).state_dict().items():
        kind, size = ("F4", tensor.numel() // 2) if name == "high.project.weight" else ("F32", 4 * tensor.numel())
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(entries).encode()
    path = tmp_path / "four.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(end))
    refused(path)


ABSURD: dict[str, Any] = {
    "no text": "",
    "no JSON": "{",
    "a list": "[]",
    "nested without end": "[" * 60_000,
    "too long": " " * 70_000,
    "an entry too many": json.dumps({**json.loads(TINY.to_json()), "more": 1}),
    **{
        f"{name}={value!r}": json.dumps({**json.loads(TINY.to_json()), name: value})
        for name, value in [
            ("width", -1),
            ("width", 10**9),
            ("width", "32"),
            ("width", True),
            ("rate", "1x1x1"),
            ("rate", [2, 2, 2]),
            ("stages", "8,16"),
            ("stages", [8] * 1000),
            ("heads", 0),
            ("high", "yes"),
            ("low", "loud"),
            ("low", {}),
            ("modulation", None),
            ("base", 7),
            ("trained", [1]),
            ("cross_layers", -1),
            ("cross_layers", True),
            ("cross_layers", 10**9),
            ("trained", {"steps": {"deep": 1}}),
        ]
    },
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_metadata_is_one_clear_error(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "absurd.safetensors", made(TINY).state_dict(), spec=ABSURD[case])
    refused(path, "describes an encoder that cannot be", "Take a file that")
