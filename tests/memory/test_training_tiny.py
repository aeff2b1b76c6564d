"""Training of the tiny causal Wan: causal, seeded, resumable to the bit, measured honestly."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import FORWARD_ERROR, relative_error
from safetensors.torch import load_file

from longreel.memory.training.causal import ReadingLesson, predict_flow
from longreel.memory.training.clips import ClipBatch, TileCodec, clip_batch, decode_latents, encode_film
from longreel.memory.training.export import save_weights
from longreel.memory.training.muon import orthogonalise
from longreel.memory.training.storyworld import Film, FilmSettings, Shot, random_film
from longreel.memory.training.tiny_training import Stage, TinyTraining, draw_sigmas, train_tiny, training_films
from longreel.memory.whole_file import ProjectError
from longreel.nodes.host.build import TinyWanSpec, host_modules

SPEC = TinyWanSpec(width=128, layers=1, ffn=128)
SHORT_STAGES = (Stage(0, 2, 3, (1, 2), 1, 1, 2, 6, 0.5, 0.5, 5.0, 0.1),)


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    """Orthogonal directions, not a fitted VAE: what is tested here does not depend on which."""
    basis = torch.linalg.qr(torch.randn(768, 16, generator=torch.Generator().manual_seed(0))).Q
    return TileCodec(basis, torch.zeros(16), basis.T.contiguous(), torch.zeros(768))


def batch_of(codec: TileCodec, chunks: int, chunk_frames: int, seed: int = 0) -> ClipBatch:
    settings = FilmSettings(chunks=chunks, chunk_frames=chunk_frames, fewest_characters=1, most_characters=2)
    return clip_batch([random_film(seed + index, settings) for index in range(2)], codec, chunk_frames)


def forward(model: Any, batch: ClipBatch) -> torch.Tensor:
    sigmas = torch.linspace(0.1, 0.9, batch.latents.shape[2]).expand(len(batch.latents), -1)
    with torch.no_grad(), host_modules().training():
        return predict_flow(model, batch.latents, sigmas, batch)


@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_a_chunk_does_not_feel_later_chunks_nor_their_prompts(
    host: object, codec: TileCodec, chunk_frames: int
) -> None:
    model = host_modules().new_wan(SPEC)
    batch = batch_of(codec, 3, chunk_frames)
    latents, text = batch.latents.clone(), batch.text.clone()
    latents[:, :, -chunk_frames:] = 7.0
    text[:, -batch.text_mask.shape[2] :] = 7.0
    changed = forward(model, batch._replace(latents=latents, text=text))
    before = forward(model, batch)
    assert torch.equal(changed[:, :, :-chunk_frames], before[:, :, :-chunk_frames])
    assert not torch.equal(changed[:, :, -chunk_frames:], before[:, :, -chunk_frames:])


def test_a_chunk_reads_its_own_prompt_only_and_padding_changes_nothing(host: object, codec: TileCodec) -> None:
    model = host_modules().new_wan(SPEC)
    batch = batch_of(codec, 2, 1)
    words = batch.text_mask.shape[2]
    text = batch.text.unflatten(1, (2, words))
    padded = torch.cat([text, torch.full_like(text[:, :, :2], 7.0)], dim=2).flatten(1, 2)
    mask = torch.cat([batch.text_mask, torch.zeros_like(batch.text_mask[:, :, :2])], dim=2)
    with_padding = forward(model, batch._replace(text=padded, text_mask=mask))
    assert relative_error(with_padding, forward(model, batch)) < FORWARD_ERROR


def test_an_interrupted_training_ends_with_the_same_bits(host: object, codec: TileCodec, tmp_path: Path) -> None:
    modules = host_modules()
    short = TinyTraining(steps=2, stages=SHORT_STAGES, warm_up=1, cool_down=1, save_every=1)
    whole = TinyTraining(steps=4, stages=SHORT_STAGES, warm_up=1, cool_down=1, save_every=1)
    unbroken = train_tiny(whole, modules, modules.new_wan(SPEC), codec, tmp_path / "unbroken")

    class StoppedError(RuntimeError):
        pass

    seen = 0

    def stop_after_two(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise StoppedError

    model = modules.new_wan(SPEC)
    handle = model.register_forward_hook(stop_after_two)
    with pytest.raises(StoppedError):
        train_tiny(whole, modules, model, codec, tmp_path / "broken")
    handle.remove()
    resumed = train_tiny(whole, modules, modules.new_wan(SPEC), codec, tmp_path / "broken")
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    rows = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (tmp_path / "broken" / "curve.png").stat().st_size > 0
    assert short.stages == whole.stages


def test_a_run_of_other_settings_is_not_continued(host: object, codec: TileCodec, tmp_path: Path) -> None:
    modules = host_modules()
    first = TinyTraining(steps=1, stages=SHORT_STAGES, warm_up=1)
    train_tiny(first, modules, modules.new_wan(SPEC), codec, tmp_path)
    other = TinyTraining(steps=2, stages=SHORT_STAGES, warm_up=1, noisy_copies=1)
    with pytest.raises(ProjectError, match=r"noisy_copies=2, got 1"):
        train_tiny(other, modules, modules.new_wan(SPEC), codec, tmp_path)


def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stays(
    host: object, codec: TileCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = host_modules()
    train_tiny(
        TinyTraining(steps=1, stages=SHORT_STAGES, save_every=1), modules, modules.new_wan(SPEC), codec, tmp_path
    )
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", no_room)
    longer = TinyTraining(steps=2, stages=SHORT_STAGES, save_every=1)
    with pytest.raises(ProjectError, match=r"checkpoint\.pt, got 'No space left on device'\. Make room on this disk"):
        train_tiny(longer, modules, modules.new_wan(SPEC), codec, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_fresh_model_starts_by_handing_noise_through(host: object, codec: TileCodec) -> None:
    model = host_modules().new_wan(SPEC)
    batch = batch_of(codec, 2, 1)
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), host_modules().training():
        flow = predict_flow(model, noise, torch.ones(2, 2), batch)
    assert torch.cosine_similarity(flow.flatten(), noise.flatten(), dim=0) > 0.5


def test_stages_bring_more_characters_and_longer_chunks() -> None:
    config = TinyTraining()
    early, chunk_frames = training_films(config, 0)
    late = [training_films(config, step) for step in range(config.stages[-1].first, config.stages[-1].first + 30)]
    assert chunk_frames == 1
    assert all(look.first == look.second for film in early for look in film.looks.values())
    assert max(len(film.looks) for film in early) <= 3
    assert min(len(film.looks) for films, _ in late for film in films) >= 4
    assert {frames for _, frames in late} == {1, 2, 3}
    assert training_films(config, 5) == training_films(config, 5)


def test_the_first_copy_is_clean_and_the_others_are_mostly_very_noisy() -> None:
    sigmas = draw_sigmas((200, 3, 12), 5.0, torch.Generator().manual_seed(0))
    assert (sigmas[:, 0] == 0).all()
    assert sigmas[:, 1:].median() > 0.75


def test_every_noisy_copy_reads_the_clean_past_and_itself(host: object, codec: TileCodec) -> None:
    model = host_modules().new_wan(SPEC)
    batch = batch_of(codec, 3, 2)
    noise = torch.randn(2, *batch.latents.shape, generator=torch.Generator().manual_seed(0))
    copies = torch.stack([batch.latents, *noise], dim=1).flatten(0, 1)  # clip 0: clean, noisy, noisy; clip 1: ...
    sigmas = torch.tensor([0.0, 0.9, 0.5] * 2)[:, None].expand(-1, 6)
    with torch.no_grad(), host_modules().training():
        together = predict_flow(model, copies, sigmas, batch).unflatten(0, (2, 3))
        for copy, level in ((1, 0.9), (2, 0.5)):
            for chunk in range(3):
                own = slice(2 * chunk, 2 * chunk + 2)
                latents, levels = batch.latents.clone(), torch.zeros(2, 6)
                latents[:, :, own], levels[:, own] = noise[copy - 1][:, :, own], level
                alone = predict_flow(model, latents, levels, batch)[:, :, own]
                assert relative_error(together[:, copy, :, own], alone) < FORWARD_ERROR


def test_the_reading_lesson_asks_a_returning_character_to_read_its_own_earlier_pictures(codec: TileCodec) -> None:
    looks = {"anna": random_film(0, FilmSettings()).looks.popitem()[1]} | {
        "ben": random_film(1, FilmSettings()).looks.popitem()[1]
    }
    shots = [Shot(i, 1, name, "forest", "left", "stands", "") for i, name in enumerate(("anna", "ben", "anna"))]
    lesson = ReadingLesson(clip_batch([Film(looks, tuple(shots))], codec, 1))
    left, all_tokens = int(lesson.tokens[0, 0].sum()), lesson.tokens.shape[-1]
    assert 0 < left < all_tokens
    q = torch.zeros(1, 1, 1, all_tokens, 8)
    assert not lesson.begin_layer()
    assert lesson.begin_layer()
    lesson.listen(1, q, torch.zeros(1, 1, 1, 2 * all_tokens, 8))  # ben was never seen: nothing is asked
    lesson.listen(2, q, torch.zeros(1, 1, 1, 3 * all_tokens, 8))  # evenly over three chunks, one in three is anna's
    assert lesson.loss.item() == pytest.approx(math.log(3 * all_tokens / left), rel=FORWARD_ERROR)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_latents_and_pictures_go_through_the_codec_in_the_order_of_frames(codec: TileCodec) -> None:
    film = random_film(2, FilmSettings(chunks=3))
    latents = encode_film(film, codec)
    assert latents.shape == (16, 3, 12, 16)
    assert decode_latents(latents, codec).shape == (9, 96, 128, 3)


def test_weights_come_back_from_shards_of_bounded_size(tmp_path: Path) -> None:
    weights = {f"layer.{index}": torch.full((64, 64), float(index)) for index in range(5)}
    (tmp_path / "tiny_wan-00009-of-00009.safetensors").write_bytes(b"left from an older model")
    paths = save_weights(weights, tmp_path, "wan", shard_bytes=20_000)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert len(paths) == 3
    assert all(path.stat().st_size < 21_000 for path in paths)
    loaded = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert all(torch.equal(loaded[name].float(), weights[name]) for name in weights)
    assert loaded["layer.1"].dtype == torch.bfloat16
