"""Two encoders that learn together: what they tell in training is what a film with both tells, and both learn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from encoder_runs import SHORT, SPEC, STAGES, broken_and_resumed, orthogonal_codec
from numerics import NOT_ROUNDING, SAME_SUM, relative_error

from longreel.memory.encoded_history import EncodedHistory, FilmEncoder, History
from longreel.memory.encoder import HighResolutionBranch, MemoryEncoder
from longreel.memory.training.clips import FilmClips, TileCodec, film_clips
from longreel.memory.training.encoder_chain import BESIDE, REACH, EncoderChain, tellers_of, trained_specs
from longreel.memory.training.encoder_recall import measure_encoder_recall
from longreel.memory.training.encoder_settings import EncoderStage, tiny_encoder_spec
from longreel.memory.training.encoder_training import clean_batch, encoder_films, read_history, train_encoder
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import lora_state
from longreel.memory.training.retrieval import ask_films
from longreel.memory.training.retrieval_table import row_of
from longreel.memory.training.small_video_codec import SmallVideoCodec
from longreel.nodes.host.build import host_modules

LONGER = replace(STAGES[EncoderStage.FINETUNE], history_frames=12)
OTHER = {"modulation": "target", "own_prompts": False, "proportional": False}


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    return orthogonal_codec()


def new_chain(
    reach: int | None = 5, lively: bool = False, beside: dict[str, Any] | None = None, **both: Any
) -> EncoderChain:
    """An encoder of rate 2x2x2, and beside it one of 2x2x1 with the changes `beside`; `lively` ones do what trained ones do."""
    encoders = []
    for number, changes in enumerate(({}, {"rate": "2x2x1", **(beside or {})})):
        encoder = MemoryEncoder(tiny_encoder_spec(replace(SHORT, **changes, **both), SPEC.width))
        generator = torch.Generator().manual_seed(number)
        initialise_encoder(encoder, generator)
        if lively:
            assert isinstance(encoder.high, HighResolutionBranch)
            with torch.no_grad():
                encoder.high.project.weight.normal_(generator=generator)
                for layer in () if encoder.cross is None else encoder.cross.layers:
                    layer.project.weight.normal_(generator=generator)
        encoders.append(encoder)
    return EncoderChain(encoders, [None, reach])


def read_by_a_film(network: Any, chain: EncoderChain, clips: FilmClips, frames: int, window: int) -> History | None:
    """What a film of so many frames reads that remembers through these encoders, one frame at a time."""
    film = EncodedHistory(
        [
            FilmEncoder(
                each.spec,
                longest,
                partial(each.told, embed=network.patch_embedding),
                None if each.cross is None else each.cross.reader,
            )
            for each, longest, _ in tellers_of(chain)
        ],
        window,
        lambda latents: network.patch_embedding(latents).flatten(2).transpose(1, 2),
    )
    for frame, prompt in zip(clips.latents[:, :, :frames].unbind(2), clips.prompts[0], strict=False):
        film.append(frame[:, :, None], prompt)
    film.begin()
    return film.current


@pytest.mark.parametrize("reach", [None, 5, 1])
@pytest.mark.parametrize("beside", [{}, OTHER])
@pytest.mark.parametrize("cross", [0, SPEC.layers])
@torch.no_grad()
def test_training_reads_what_a_film_with_both_encoders_reads(
    host: object, codec: TileCodec, reach: int | None, beside: dict[str, Any], cross: int
) -> None:
    modules = host_modules()
    network, chain = modules.new_wan(SPEC), new_chain(reach, True, beside, cross_layers=cross)
    clips = film_clips(encoder_films(LONGER, 0), codec)
    for later, window in ((0, 0), (0, 3), (1, 2), (7, 0), (11, 1), (12, 0)):
        shorter = FilmClips(clips.latents[:1], clips.mask[:1], clips.text[:1], clips.prompts[:1]).later(later)
        trained = read_history(modules, network, chain, clean_batch(LONGER, shorter, window))
        made = read_by_a_film(network, chain, shorter, 12 - later, window)
        if trained is None or made is None:
            assert trained is made is None
            continue
        assert relative_error(trained.tokens, made.tokens) < SAME_SUM
        assert torch.equal(trained.positions - torch.tensor([12.0 - later, 0, 0]), made.positions)
        assert trained.levels == made.levels
        assert trained.counts is not None
        assert made.counts is not None
        assert torch.equal(trained.counts, made.counts)
        (ours,), (theirs,) = trained.prompts, made.prompts
        assert [stretch.tokens for stretch in ours] == [stretch.tokens for stretch in theirs]
        assert all(one.prompt is other.prompt for one, other in zip(ours, theirs, strict=True))
        assert (trained.cross is None) is (made.cross is None) is (not cross)
        if trained.cross is not None and made.cross is not None:
            x = torch.randn(1, 7, SPEC.width, generator=torch.Generator().manual_seed(0))
            assert relative_error(trained.cross(1, x), made.cross(1, x)) < SAME_SUM


@pytest.mark.parametrize(("rate", "reach"), [("2x2x2", None), ("2x2x2", 5), ("2x2x1", 4), ("2x2x4", None)])
@torch.no_grad()
def test_an_encoder_of_smaller_videos_tells_what_it_tells_in_a_film_that_goes_on_chunk_by_chunk(
    host: object, rate: str, reach: int | None
) -> None:
    """Piece by piece, each a video of its own to the VAE, whose pieces of other lengths tell something else."""
    modules = host_modules()
    network, generator = modules.new_wan(SPEC), torch.Generator().manual_seed(2)
    encoder = MemoryEncoder(tiny_encoder_spec(replace(SHORT, rate=rate, branches="low", low="video"), SPEC.width))
    small = SmallVideoCodec(modules.new_vae(8), modules.latent_mean, modules.latent_std, 3)
    latents, prompts = torch.randn(1, 16, 13, 4, 4, generator=generator), [torch.zeros(1, 4096)] * 13
    clips = FilmClips(latents, torch.zeros(1, 13, 4, 4), prompts[0][None], [prompts])
    film = EncodedHistory(
        [
            FilmEncoder(
                encoder.spec,
                reach,
                lambda piece: encoder.told(piece, network.patch_embedding, small.encode(piece, encoder.spec)),
            )
        ],
        0,
        network.patch_embedding,
    )
    for chunk in latents[:, :, :10].split(3, dim=2):
        film.append(chunk, prompts[0])
    film.begin()
    trained = read_history(modules, network, EncoderChain([encoder], [reach], small), clean_batch(LONGER, clips, 0))
    assert trained is not None
    assert film.current is not None
    assert relative_error(trained.tokens, film.current.tokens) < SAME_SUM
    assert torch.equal(trained.positions - torch.tensor([10.0, 0, 0]), film.current.positions)
    small.chunk_frames = 10
    at_once = read_history(modules, network, EncoderChain([encoder], [reach], small), clean_batch(LONGER, clips, 0))
    assert at_once is not None
    assert relative_error(at_once.tokens, trained.tokens) > NOT_ROUNDING


def test_both_encoders_and_the_lora_learn_and_an_interrupted_training_ends_with_the_same_bits(
    host: object, codec: TileCodec, tmp_path: Path
) -> None:
    modules, config = host_modules(), replace(STAGES[EncoderStage.FINETUNE], beside="2x2x1 of the newest 5 frames")

    def train(folder: str, **tell: Any) -> dict[str, torch.Tensor]:
        network, chain = modules.new_wan(SPEC), new_chain()
        train_encoder(config, modules, peft, network, chain, codec, tmp_path / folder, **tell)
        return {**chain.state_dict(), **lora_state(network)}

    unbroken = train("unbroken")
    resumed = broken_and_resumed(train)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())
    fresh = new_chain().state_dict()
    assert len({name.split(".")[1] for name in fresh}) == 2
    assert not [name for name, tensor in fresh.items() if torch.equal(tensor, unbroken[name])]


def test_their_files_say_how_far_back_each_reaches_and_what_is_beside_it(host: object) -> None:
    coarse, fine = trained_specs(new_chain(), LONGER)
    assert coarse.trained[BESIDE] == "2x2x1 of the newest 5 frames"
    assert fine.trained[BESIDE] == "2x2x2 of all frames"
    assert (coarse.trained.get(REACH), fine.trained[REACH]) == (None, 5)
    (alone,) = trained_specs(MemoryEncoder(fine), LONGER)
    assert not {REACH, BESIDE} & alone.trained.keys()


@torch.no_grad()
def test_both_are_asked_for_frames_and_counted_in_a_row(host: object, codec: TileCodec) -> None:
    modules, chain = host_modules(), new_chain()
    asked = ask_films(SHORT, modules, modules.new_wan(SPEC), chain, codec, batches=1)
    row = row_of("two", SHORT, chain, asked)
    assert row["tokens_per_second"] == (3 + 5) * 12 * 4 / 6
    assert row["bytes"] == sum(row_of("one", SHORT, each.encoder, asked)["bytes"] for each in tellers_of(chain))


def test_who_comes_back_is_measured_through_both(host: object, codec: TileCodec) -> None:
    modules, config = host_modules(), replace(STAGES[EncoderStage.FINETUNE], segment_frames=1)
    network, chain = modules.new_wan(SPEC), new_chain(lively=True)
    both = measure_encoder_recall(config, modules, network, chain, codec, films=2)
    alone = measure_encoder_recall(config, modules, network, tellers_of(chain)[0].encoder, codec, films=2)
    assert both.identity != alone.identity
    assert both.window == alone.window
