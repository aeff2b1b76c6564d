"""A memory encoder is trained beside a HunyuanVideo of a user's own: its four files, both stages, and what comes out of them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import comfy.ldm.flux.math
import comfy.ldm.hunyuan_video.model
import comfy.ldm.modules.attention
import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from encoders import encoders_in
from film import film_on_disk, planned
from large_files import write_text_encoder, write_vae, write_videos, write_wan
from large_hunyuan import (
    SPEC,
    TEXT_WIDTH,
    let_hunyuan_files_be_tiny,
    write_all_of_hunyuan,
    write_clip_l,
    write_hunyuan,
    write_hunyuan_vae,
    write_llama,
)
from numerics import FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor
from trained_beside import (
    RANK,
    StepFound,
    assert_same_bits,
    assert_the_host_computes_what_was_trained,
    assert_trained_in_float32,
    drawn_adapters,
    small_encoder,
)

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import read_encoder
from longreel.memory.encoder_spec import EncoderSpec, Rate
from longreel.memory.training.clips import FilmClips
from longreel.memory.training.encoder_settings import EncoderTraining
from longreel.memory.training.encoder_training import EncoderBatch, clean_batch, encoder_loss, read_history
from longreel.memory.training.lora import LORA_TARGETS, add_lora
from longreel.memory.training.prompts import KeptPrompts
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.large_models import LARGE_MODELS
from longreel.nodes.host import hunyuan_training
from longreel.nodes.host.build import HostModules
from longreel.nodes.host.build_hunyuan import hunyuan_modules
from longreel.nodes.host.encoder_check import check_encoder, fits
from longreel.nodes.host.encoder_model import load_encoder
from longreel.nodes.host.hunyuan_training import TrainedHunyuan, kept_apart, with_pooled
from longreel.nodes.host.trained_model import (
    KINDS,
    LargeFamily,
    ModelText,
    ModelVae,
    large_modules,
    load_network,
    recognise,
)

CONFIG = EncoderTraining(
    history_frames=4, kept_frames=2, segment_frames=2, lora_rank=RANK, size="64x64", rate="4x4x2", family="hunyuan"
)
SHAPE = ["--size", "64x64", "--history-frames", "8", "--lora-rank", str(RANK), "--learning-rate", "0.5"]
HUNYUAN = KINDS[1]


def said(seed: int, words: int) -> Tensor:
    """A prompt as training reads it, with its one vector behind the words."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(words, TEXT_WIDTH, generator=generator)
    return with_pooled(made, torch.randn(768, generator=generator))


def small_clips() -> FilmClips:
    """A film of noise in two shots."""
    latents = torch.randn(1, 16, 6, 8, 8, generator=torch.Generator().manual_seed(2))
    one, other = said(0, 5), said(1, 7)
    return FilmClips(latents, torch.zeros(1, 6, 8, 8), other[None], [[one] * 3 + [other] * 3])


def loss_and_gradients(
    dtype: torch.dtype, checkpoints: bool, file: Path, given: HostModules | None = None
) -> StepFound:
    """Of one step of stage II."""
    model = recognise(file)
    network, encoder = load_network(model, dtype), small_encoder(SPEC.width)
    modules = given or large_modules(model, dtype, checkpoints)
    weights = [*encoder.parameters(), *drawn_adapters(network, "hunyuan")]
    with modules.training():
        loss = encoder_loss(modules, network, encoder, clean_batch(CONFIG, small_clips(), 1), CONFIG, 0)
        loss.backward()
    layers = [*network.double_blocks, *network.single_blocks]
    assert not any("forward" in vars(layer) for layer in layers)  # nothing of checkpointing is left
    return loss.detach(), [weight.grad for weight in weights]


def test_layers_that_are_run_again_give_the_same_bits_though_they_write_into_what_they_get(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_hunyuan(tmp_path / "hunyuan.safetensors")
    kept, again = (loss_and_gradients(torch.float32, checkpoints, file) for checkpoints in (False, True))
    assert_same_bits(kept, again)
    as_they_are = hunyuan_modules()._replace(family=TrainedHunyuan(kept_apart))
    monkeypatch.setattr(hunyuan_training, "AddsApart", nullcontext)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():  # layers write, and torch keeps what they write over
        written = loss_and_gradients(torch.float32, False, file, as_they_are)
    assert_same_bits(kept, written)


def test_a_model_in_bf16_gives_gradients_of_float32_to_what_is_trained(host: object, tmp_path: Path) -> None:
    file = write_hunyuan(tmp_path / "hunyuan.safetensors", torch.bfloat16)
    found, exact = (loss_and_gradients(dtype, True, file) for dtype in (torch.bfloat16, torch.float32))
    assert_trained_in_float32(found, exact)


def test_training_beside_hunyuanvideo_in_its_real_shape_builds_its_graph(
    host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, without numbers: gradients of the real shapes reach LoRA and encoder through layers that are run again."""
    for place in (comfy.ldm.flux.math, comfy.ldm.hunyuan_video.model):
        monkeypatch.setattr(place, "optimized_attention", comfy.ldm.modules.attention.attention_pytorch)
    hunyuan, modules = LARGE_MODELS[-1], HUNYUAN.modules()
    network = hunyuan.network()
    adapters = add_lora(peft, network, LORA_TARGETS["hunyuan"], RANK, seed=0)
    with torch.device("meta"):
        encoder = MemoryEncoder(EncoderSpec(hunyuan.width, own_prompts=True))
    assert hunyuan.width == 3072
    modules = modules._replace(family=LargeFamily(modules.family, HUNYUAN.layers, torch.bfloat16, checkpoints=True))
    words, clean = torch.empty(257, 4096, device="meta"), torch.empty(1, 16, 128, 60, 104, device="meta")
    clips = FilmClips(clean, torch.empty(1, 128, 60, 104, device="meta"), words[None], [[words] * 128])
    config = replace(CONFIG, history_frames=120, segment_frames=8)
    with modules.training():
        loss = encoder_loss(modules, network, encoder, clean_batch(config, clips, 3), config, 0)
        loss.backward()
    assert all(weight.grad is not None for weight in (*adapters, *encoder.parameters()))
    assert {weight.dtype for weight in adapters} == {torch.float32}


def test_what_training_computes_is_the_chunk_that_a_film_makes(host: object, tmp_path: Path) -> None:
    """With distilled guidance; every prompt brings its own vector for all words, in training behind the words."""
    file = write_hunyuan(tmp_path / "hunyuan.safetensors")
    model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
    texts = [said(number, words) for number, words in enumerate((7, 5, 4))]
    conditionings = []
    for text in texts:
        words, pooled = kept_apart(text[None])
        conditionings.append([[words, {"pooled_output": pooled}]])
    loaded = encoders_in(tmp_path)(HistoryConfig(1), rate=Rate(2, 2, 4), width=SPEC.width, own_prompts=True)
    board = planned("[0.75s] a beach\n[0.75s] a town\n[0.75s] a forest", prompts=tuple(conditionings))
    film = film_on_disk(model, replace(board, negative=conditionings[0]), encoder=loaded)
    latents = model.model.process_latent_in(film.make(tmp_path / "films").latents)
    past, made = latents[:, :, :6], latents[:, :, 6:]
    noise = film.film_sampler(None, None).noise(film.plan.chunks[2], 0, made.shape)
    prompts, times = [texts[0]] * 3 + [texts[1]] * 3, torch.arange(6.0, 9.0)
    batch = EncoderBatch(past, noise, times, torch.zeros(1, 3, 4, 8), texts[2][None], past[:, :, -1:], [prompts])
    modules, network = large_modules(recognise(file), torch.float32, True), model.model.diffusion_model
    with torch.no_grad(), modules.training():
        history = read_history(modules, network, loaded.patcher.model, batch)
        flow = modules.family.flow(network, history, noise, torch.ones(1), batch.text)
        silent = torch.cat([batch.text[:, :4], torch.zeros_like(batch.text[:, 4:])], dim=1)
        without = modules.family.flow(network, history, noise, torch.ones(1), silent)
    assert relative_error(noise - flow, made) < FORWARD_ERROR
    assert relative_error(noise - without, made) > NOT_ROUNDING  # the vector has its say


def test_both_stages_beside_a_hunyuanvideo_write_what_the_host_loads_for_it(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_hunyuan_files_be_tiny(monkeypatch)
    files, videos = write_all_of_hunyuan(tmp_path), write_videos(tmp_path / "videos")
    options = [*files, "--videos", str(videos), *SHAPE, "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    one, two = tmp_path / "one", tmp_path / "two"
    train = ["train", "encoder"]
    assert main([*train, "pretrain", *options, "--out", str(one), "--steps", "2"]) == 0
    told = capsys.readouterr().out
    assert "embedding 3 prompts\nencoding 0.mp4\nencoding 1.mp4\nTraining beside tiny_hunyuan" in told
    start = ["--encoder", str(one / "encoder.safetensors"), "--lora", str(one / "encoder_lora.safetensors")]
    assert main([*train, "finetune", *options, "--out", str(two), "--steps", "1", *start]) == 0
    told = capsys.readouterr().out
    assert "encoding" not in told
    assert "What comes next has an error of" in told
    spec, _ = read_encoder(two / "encoder.safetensors")
    assert (spec.width, spec.channels, spec.base) == (SPEC.width, 16, "tiny_hunyuan")
    _check_in_host(tmp_path / "tiny_hunyuan.safetensors", two)
    for more, error in (
        (["--low", "video"], "A smaller video is made by the VAE of the tiny Wan alone"),
        (["--cross-attention"], "read by the layers of a Wan alone"),
    ):
        assert main([*train, "pretrain", *options, *more, "--out", str(tmp_path / "no")]) == 1
        assert error in capsys.readouterr().err


def _check_in_host(file: Path, out: Path) -> None:
    """The encoder loads for this model, and with the LoRA the host's model is that of training."""
    loaded = load_encoder(out / "encoder.safetensors", HistoryConfig(), torch.float32)
    assert "made for tiny_hunyuan" in fits(loaded)
    model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
    check_encoder(model, loaded, 16, (8, 8), has_vae=False)
    assert_the_host_computes_what_was_trained(
        model,
        file,
        out / "encoder_lora.safetensors",
        large_modules(recognise(file), torch.float32, True),
        loaded.patcher.model,
        clean_batch(CONFIG, small_clips(), 1),
    )


def test_prompts_are_what_both_text_encoders_make_of_them_in_whichever_order_they_are_named(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_hunyuan_files_be_tiny(monkeypatch)
    files = [write_llama(tmp_path / "llama.safetensors"), write_clip_l(tmp_path / "clip.safetensors")]
    text = ModelText(files, HUNYUAN)
    assert text.digest == ModelText(files[::-1], HUNYUAN).digest
    prompts, spoken = KeptPrompts(tmp_path, text.digest), ["", "anna waves", "ben jumps over the fence"]
    with torch.inference_mode():
        prompts.keep(spoken, text.embed)
    clip = comfy.sd.load_clip([str(file) for file in files], clip_type=comfy.sd.CLIPType.HUNYUAN_VIDEO)
    vectors = []
    for prompt in spoken:
        ((words, extras),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        kept, pooled = kept_apart(prompts.words(prompt)[None])
        assert words.shape[1] < 20  # the host's template is cut off, and nothing is filled up
        assert torch.equal(kept, words.float())
        assert torch.equal(pooled, extras["pooled_output"].float())
        vectors.append(pooled)
    assert relative_error(vectors[1], vectors[2]) > NOT_ROUNDING
    with pytest.raises(ValueError, match=r"needs HunyuanVideo's two text encoders, .*, each .* own, got 1: .*Name 2"):
        ModelText(files[:1], HUNYUAN)
    with pytest.raises(ValueError, match=r"which are of one kind\. Name the other, too"):
        ModelText([files[1], files[1]], HUNYUAN)
    with pytest.raises(ValueError, match=r"needs Wan's text encoder, .*, got 2: "):
        ModelText(files, KINDS[0])
    with pytest.raises(ValueError, match=r"needs HunyuanVideo's two.*umt5.safetensors, which is another"):
        ModelText([files[0], write_text_encoder(tmp_path / "umt5.safetensors")], HUNYUAN)


def test_latents_are_what_the_hosts_own_node_and_sampler_would_make(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_hunyuan_files_be_tiny(monkeypatch)
    file = write_hunyuan_vae(tmp_path / "vae.safetensors")
    hunyuan = write_hunyuan(tmp_path / "hunyuan.safetensors")
    model = recognise(hunyuan)
    assert (model.kind, model.width, model.channels, model.pixels, model.layers, model.fps) == (
        HUNYUAN,
        SPEC.width,
        16,
        8,
        2,
        24,
    )
    video = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        made = ModelVae(file, model).encode(video)
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))
        latents = vae.encode((video[0].permute(1, 2, 3, 0) + 1) / 2)
        expected = comfy.sd.load_diffusion_model(str(hunyuan)).model.process_latent_in(latents)
    assert made.shape == (1, 16, 3, 2, 2)
    assert torch.equal(made, expected.half())
    with pytest.raises(ValueError, match=r"--vae needs HunyuanVideo's VAE, .* of 16 channels, got .*wan_vae"):
        ModelVae(write_vae(tmp_path / "wan_vae.safetensors"), model)
    with pytest.raises(ValueError, match=r"--vae needs Wan's VAE, .*got .*: another, or none"):
        ModelVae(file, recognise(write_wan(tmp_path / "wan.safetensors")))
