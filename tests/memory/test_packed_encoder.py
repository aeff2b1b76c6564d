"""Embeddings of FramePack's kind: what they join, what a film reads through them, and files that are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import SAME_SUM, relative_error
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from longreel.memory.encoded_history import EncodedHistory, FilmEncoder
from longreel.memory.encoder import MemoryEncoder, token_positions
from longreel.memory.encoder_file import save_encoder
from longreel.memory.encoder_spec import EncoderSpec, Modulation, Rate, smaller_frames
from longreel.memory.packed_encoder import GROUPS, PREFIX, REACH, PackedEncoder, PackedSpec, is_packed, read_packed
from longreel.memory.transitions import Reach

SPEC = PackedSpec(width=8, channels=4)
HEIGHT, WIDTH = 8, 12
ONE, TWO, FOUR = HEIGHT * WIDTH // 4, 2 * 3, 1 * 2  # tokens of a frame by each kernel


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder() -> PackedEncoder:
    torch.manual_seed(0)
    return PackedEncoder(SPEC).requires_grad_(False)


def history(longest: int | None = REACH, window: int = 0) -> EncodedHistory:
    module = encoder()
    whole = FilmEncoder(SPEC, longest, module)
    return EncodedHistory([whole], window, lambda latents: module.proj(latents).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("height", "width"), [(8, 16), (12, 10), (2, 2)])
def test_untrained_kernels_tell_smaller_frames(height: int, width: int) -> None:
    """As FramePack begins its training: the model's own kernel, every number repeated and divided by how often."""
    torch.manual_seed(0)
    embed = nn.Conv3d(SPEC.channels, SPEC.width, (1, 2, 2), stride=(1, 2, 2)).requires_grad_(False)
    module = encoder()
    for name, factor in (("proj", 1), ("proj_2x", 2), ("proj_4x", 4)):
        kernel = embed.weight / factor**3
        for axis in (2, 3, 4):
            kernel = kernel.repeat_interleave(factor, dim=axis)
        module.get_submodule(name).load_state_dict({"weight": kernel, "bias": embed.bias})
    film = drawn(1, 1, SPEC.channels, REACH, height, width)
    told = []
    for rate, frames in ((Rate(4, 4, 4), film[:, :, :16]), (Rate(2, 2, 2), film[:, :, 16:18])):
        missing = [-length % (2 * rate.rows) for length in (width, height)]
        filled = functional.pad(frames, (0, missing[0], 0, missing[1], 0, 0), mode="replicate")
        told.append(MemoryEncoder(smaller_frames(rate))(filled, embed))
    told.append(embed(film[:, :, 18:]).flatten(2).transpose(1, 2))
    assert relative_error(module(film), torch.cat(told, dim=1)) < SAME_SUM


def test_a_token_lies_where_an_encoders_of_that_rate_does_and_names_all_it_joins() -> None:
    """Where the picture is filled up, the last row or column counts as often as it was repeated."""
    for group in GROUPS[:-1]:
        rate = Rate(group.factor, group.factor, group.factor)
        spec, size = EncoderSpec(width=8, rate=rate), 4 * group.factor
        wanted = token_positions(spec, spec.grid(group.factor, size, size), group.first)
        assert torch.equal(group.positions(size, size).mean(dim=0), wanted)
    edge = GROUPS[0].positions(10, 8)  # 5 rows of tokens
    assert edge.shape == (4, 2, 3)
    assert edge[:, 1].tolist() == [[-19, 4, 0], [-18, 4, 1], [-17, 4, 2], [-16, 4, 3]]
    assert GROUPS[-1].positions(4, 2)[:, :, :2].tolist() == [[[-1, 0], [-1, 1]]] * 4


def test_480p_takes_as_many_tokens_as_framepack_says() -> None:
    """One whole frame, 390 for the next two and 416 for the sixteen before them."""
    assert SPEC.tokens(1, 60, 104) == 1560
    assert SPEC.tokens(3, 60, 104) == 1560 + 390
    assert SPEC.tokens(19, 60, 104) == SPEC.tokens(1000, 60, 104) == 1560 + 390 + 416


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_a_film_reads_its_newest_frames_and_nothing_older(sizes: list[int]) -> None:
    """Anew for every chunk. Frames before the film are zeros where others share their kernel, and otherwise left out."""
    made, frames = history(), sum(sizes)
    film = drawn(1, 1, SPEC.channels, frames, HEIGHT, WIDTH)
    for piece in film.split(sizes, dim=2):
        made.append(piece)
    made.begin()
    assert made.current is not None
    known = min(frames, REACH)
    whole = functional.pad(film[:, :, -known:], (0, 0, 0, 0, REACH - known, 0))
    everything = encoder()(whole)
    count = ONE * (known >= 1) + TWO * (known >= 2) + FOUR * -(-max(0, known - 3) // 4)
    assert torch.equal(made.current.tokens, everything[:, -count:])
    assert made.current.positions.shape == (4, count, 3)
    assert made.current.tokens.shape[1] <= made.most_tokens(frames, HEIGHT, WIDTH)
    assert made.current.modulation is Modulation.TARGET
    assert made.current.positions[:, :, 0].max() == -1
    assert made.remembered == known
    other = history()
    other.append(torch.cat([drawn(2, 1, SPEC.channels, 3, HEIGHT, WIDTH), whole], dim=2))
    other.begin()
    assert other.current is not None
    assert torch.equal(other.current.tokens[:, -count:], made.current.tokens)


@pytest.mark.parametrize(("longest", "reach"), [(3, Reach()), (REACH, Reach(17, 17))])
def test_what_is_closed_or_out_of_reach_is_as_if_it_had_not_been(longest: int, reach: Reach) -> None:
    film = drawn(1, 1, SPEC.channels, 20, HEIGHT, WIDTH)
    made, short = history(longest), history()
    made.append(film)
    made.begin(reach)
    short.append(film[:, :, 17:])
    short.begin()
    assert made.current is not None
    assert short.current is not None
    assert torch.equal(made.current.tokens, short.current.tokens)
    made.begin(Reach(20, 20))
    assert made.current is None


def test_beside_others_every_token_has_as_many_places() -> None:
    module, rate = encoder(), Rate(2, 2, 2)
    coarse = FilmEncoder(smaller_frames(rate), None, lambda x: MemoryEncoder(smaller_frames(rate))(x, module.proj))
    packed = FilmEncoder(SPEC, REACH, module)
    both = EncodedHistory([packed, coarse], 1, lambda latents: module.proj(latents).flatten(2).transpose(1, 2))
    both.append(drawn(1, 1, SPEC.channels, 4, HEIGHT, WIDTH), torch.zeros(1, 4))
    both.begin()
    assert both.current is not None
    tokens = FOUR + TWO + ONE + 2 * TWO + ONE
    assert both.current.tokens.shape == (1, tokens, SPEC.width)
    assert both.current.positions.shape == (4, tokens, 3)
    assert [level.tokens for level in both.current.levels] == [FOUR + TWO + ONE, 2 * TWO, ONE]
    assert torch.equal(both.current.positions[0, -ONE:], both.current.positions[3, -ONE:])


def weights() -> dict[str, Tensor]:
    return {f"{PREFIX}{name}": tensor for name, tensor in encoder().state_dict().items()}


def test_embeddings_are_found_among_the_weights_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**weights(), "transformer_blocks.0.attn.to_q.weight": torch.zeros(2, 2)}, path)
    assert is_packed(path)
    spec, read = read_packed(path)
    assert spec == SPEC
    assert all(torch.equal(read[name], tensor) for name, tensor in encoder().state_dict().items())


def test_other_files_are_not_taken_for_it(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "pickle.safetensors")
    spec = EncoderSpec(width=8, stages=(8,), heads=2)
    save_encoder(tmp_path / "encoder.safetensors", spec, MemoryEncoder(spec).state_dict())
    assert not is_packed(tmp_path / "pickle.safetensors")
    assert not is_packed(tmp_path / "encoder.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({f"{PREFIX}proj_2x.bias": None}, f"got none called {PREFIX}proj_2x.bias. A model in several files"),
        ({f"{PREFIX}proj.weight": None}, f"got none called {PREFIX}proj.weight"),
        (
            {f"{PREFIX}proj_4x.weight": torch.zeros(8, 4, 4, 8, 4)},
            r"in the shape \[8, 4, 4, 8, 8\], got \[8, 4, 4, 8, 4\]",
        ),
        ({f"{PREFIX}proj.weight": torch.zeros(20_000, 1)}, "a width of 1 to 16384"),
        ({f"{PREFIX}proj.weight": torch.zeros(8)}, r"embeddings as filters of frames, got \[8\]"),
        ({f"{PREFIX}proj.bias": torch.full((8,), torch.nan)}, "finite numbers.*Fetch it again"),
        ({f"{PREFIX}proj.bias": torch.zeros(8, dtype=torch.int32)}, "finite numbers.*torch.int32"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tmp_path: Path, change: dict[str, Tensor | None], named: str) -> None:
    changed = {**weights(), **change}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, tmp_path / "bad.safetensors")
    assert is_packed(tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=named):
        read_packed(tmp_path / "bad.safetensors")
