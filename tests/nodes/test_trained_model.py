"""A memory encoder is trained beside a Wan of a user's own: files that the host loads, both stages, and what comes out of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.sd
import comfy.utils
import peft
import pytest
import torch
from large_files import (
    SPEC,
    let_text_encoders_be_tiny,
    write_all,
    write_text_encoder,
    write_vae,
    write_videos,
    write_wan,
)
from safetensors.torch import load_file, save_file
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
from wan_variants import build_tiny_wan22, patches

from longreel.memory.encoded_history import HistoryConfig
from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import read_encoder, read_spec
from longreel.memory.encoder_spec import EncoderSpec
from longreel.memory.training.clips import FilmClips
from longreel.memory.training.encoder_settings import EncoderTraining
from longreel.memory.training.encoder_training import clean_batch, encoder_loss
from longreel.memory.training.lora import add_lora
from longreel.memory.training.prompts import KeptPrompts
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.large_models import LARGE_MODELS
from longreel.nodes.host.build import TINY_ENCODER, TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, new_hunyuan
from longreel.nodes.host.encoder_check import check_encoder, fits
from longreel.nodes.host.encoder_model import load_encoder
from longreel.nodes.host.trained_model import (
    KINDS,
    LargeFamily,
    ModelText,
    ModelVae,
    large_modules,
    load_network,
    recognise,
)

TRAIN = ["train", "encoder"]
SHAPE = [
    "--size",
    "64x64",
    "--history-frames",
    "8",
    "--lora-rank",
    str(RANK),
    "--learning-rate",
    "0.5",
    "--device",
    "cpu",
]
CONFIG = EncoderTraining(history_frames=4, kept_frames=2, segment_frames=2, lora_rank=RANK, size="64x64", rate="4x4x2")
FILE = "encoder.safetensors"
WHOLE = ("--model", "here", "--vae", "here", "--text-encoder", "here")


def small_clips(channels: int = 16) -> FilmClips:
    """A film of noise in two shots."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(1, channels, 6, 8, 8, generator=generator)
    one, other = torch.randn(2, 12, 4096, generator=generator)
    return FilmClips(latents, torch.zeros(1, 6, 8, 8), other[None], [[one] * 3 + [other] * 3])


def loss_and_gradients(dtype: torch.dtype, checkpoints: bool, file: Path, cross_layers: int = 0) -> StepFound:
    """Of one step of stage II."""
    model = recognise(file)
    network, encoder = load_network(model, dtype), small_encoder(SPEC.width, model.channels, cross_layers)
    modules = large_modules(model, dtype, checkpoints)
    weights = [*encoder.parameters(), *drawn_adapters(network, "wan")]
    with modules.training():
        loss = encoder_loss(modules, network, encoder, clean_batch(CONFIG, small_clips(model.channels), 1), CONFIG, 0)
        loss.backward()
    assert not any("forward" in vars(layer) for layer in network.blocks)  # nothing of checkpointing is left
    return loss.detach(), [weight.grad for weight in weights]


@pytest.mark.parametrize("cross_layers", [0, SPEC.layers])
def test_layers_that_are_run_again_give_the_same_bits(host: object, tmp_path: Path, cross_layers: int) -> None:
    file = write_wan(tmp_path / "wan.safetensors")
    kept, again = (loss_and_gradients(torch.float32, checkpoints, file, cross_layers) for checkpoints in (False, True))
    assert_same_bits(kept, again)


@pytest.mark.parametrize("cross_layers", [0, SPEC.layers])
def test_a_model_in_bf16_gives_gradients_of_float32_to_what_is_trained(
    host: object, tmp_path: Path, cross_layers: int
) -> None:
    file = write_wan(tmp_path / "wan.safetensors", dtype=torch.bfloat16)
    network = load_network(recognise(file), torch.bfloat16)
    assert network.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    found, exact = (loss_and_gradients(dtype, True, file, cross_layers) for dtype in (torch.bfloat16, torch.float32))
    assert_trained_in_float32(found, exact)


def test_training_beside_wan_1_3b_in_its_real_shape_builds_its_graph(
    host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, without numbers: gradients of the real shapes reach LoRA and encoder through layers that are run again."""
    monkeypatch.setattr(comfy.ldm.wan.model, "optimized_attention", comfy.ldm.modules.attention.attention_pytorch)
    wan = LARGE_MODELS[0]
    network = wan.network()
    adapters = add_lora(peft, network, host_modules().family.lora_targets, RANK, seed=0)
    with torch.device("meta"):
        encoder = MemoryEncoder(EncoderSpec(wan.width, own_prompts=True))
    family = LargeFamily(host_modules().family, KINDS[0].layers, torch.bfloat16, checkpoints=True)
    modules = host_modules()._replace(family=family)
    words, clean = torch.empty(512, 4096, device="meta"), torch.empty(1, 16, 88, 60, 104, device="meta")
    config = replace(CONFIG, history_frames=80, segment_frames=8)
    clips = FilmClips(clean, torch.empty(1, 88, 60, 104, device="meta"), words[None], [[words] * 88])
    with modules.training():
        loss = encoder_loss(modules, network, encoder, clean_batch(config, clips, 3), config, 0)
        loss.backward()
    assert all(weight.grad is not None for weight in (*adapters, *encoder.parameters()))
    assert {weight.dtype for weight in adapters} == {torch.float32}


def test_both_stages_beside_a_wan_write_what_the_host_loads_for_it(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_text_encoders_be_tiny(monkeypatch)
    files = write_all(tmp_path)
    options = [*files, "--videos", str(write_videos(tmp_path / "videos")), *SHAPE, "--cache", str(tmp_path / "cache")]
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    pretrain = [*TRAIN, "pretrain", *options, "--out"]
    assert main([*pretrain, str(one), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "embedding 3 prompts\nencoding 0.mp4\nencoding 1.mp4\nTraining beside tiny_wan" in said
    assert "Marked frames have an error of" in said
    assert json.loads((one / "errors.json").read_text(encoding="utf-8")).keys() == {"own", "other", "nothing"}

    assert main([*pretrain, str(two), "--steps", "1"]) == 0
    assert main([*pretrain, str(two), "--steps", "2"]) == 0  # goes on
    assert "encoding" not in capsys.readouterr().out
    for name in (FILE, "encoder_lora.safetensors"):
        unbroken, resumed = load_file(one / name), load_file(two / name)
        assert all(torch.equal(weight, resumed[key]) for key, weight in unbroken.items())
    write_wan(tmp_path / "tiny_wan.safetensors", replace(SPEC, seed=4))
    assert main([*pretrain, str(two), "--steps", "2"]) == 1  # another model of the same name
    assert "was made with model=tiny_wan" in capsys.readouterr().err
    write_wan(tmp_path / "tiny_wan.safetensors")
    assert main([*pretrain, str(two), "--steps", "2", "--size", "64x80"]) == 1
    refused = capsys.readouterr()
    assert "was made with size=64x64, got 64x80" in refused.err
    assert "encoding" not in refused.out
    words = (tmp_path / "tiny_umt5.safetensors").read_bytes()
    write_text_encoder(tmp_path / "tiny_umt5.safetensors", seed=6)
    assert main([*pretrain, str(two), "--steps", "2"]) == 1  # other words for the same captions
    assert "was made with films=2 videos" in capsys.readouterr().err
    (tmp_path / "tiny_umt5.safetensors").write_bytes(words)

    beside = ["--beside", str(two / FILE), "--beside-frames", "2"]
    stage_one = ["--encoder", str(one / FILE), "--lora", str(one / "encoder_lora.safetensors")]
    assert main([*TRAIN, "finetune", *options, "--out", str(three), "--steps", "2", *stage_one, *beside]) == 0
    assert "What comes next has an error of" in capsys.readouterr().out
    assert read_encoder(three / "encoder_beside.safetensors")[0].trained["newest latent frames"] == 2
    spec, weights = read_encoder(three / FILE)
    assert (spec.width, spec.channels, spec.stages, spec.base) == (128, 16, (64, 128, 256, 512), "tiny_wan")
    assert str(spec.rate) == "4x4x2"
    assert not spec.proportional
    assert {"pretrain steps", "finetune steps"} <= spec.trained.keys()
    assert weights["high.project.weight"].abs().max() > 0
    _check_in_host(tmp_path / "tiny_wan.safetensors", three)


def _check_in_host(file: Path, out: Path) -> None:
    """The encoder loads for this model and no other, and with the LoRA the host's model is that of training."""
    loaded = load_encoder(out / FILE, HistoryConfig(), torch.float32)
    assert "made for tiny_wan" in fits(loaded)
    model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
    check_encoder(model, loaded, 16, (8, 8), has_vae=False)
    with pytest.raises(ValueError, match="needs a model of width 128 with 16 channels"):
        check_encoder(build_tiny_wan(TinyWanSpec(width=256, layers=1)), loaded, 16, (8, 8), has_vae=False)

    assert_the_host_computes_what_was_trained(
        model,
        file,
        out / "encoder_lora.safetensors",
        host_modules(),
        loaded.patcher.model,
        clean_batch(CONFIG, small_clips(), 1),
    )


def test_videos_that_cannot_be_used_are_refused_before_any_is_encoded(
    host: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = write_videos(tmp_path / "videos")
    options = [*write_all(tmp_path), "--videos", str(videos), *SHAPE, "--out", str(tmp_path / "out")]
    last = videos / "1.mp4"
    write_videos(tmp_path / "short", 1, 33)
    for content, said in (
        ((tmp_path / "short" / "0.mp4").read_bytes(), "1.mp4 needs to be at least"),
        (b"no video", "1.mp4 cannot be read as a video"),
    ):
        last.write_bytes(content)
        assert main([*TRAIN, "pretrain", *options]) == 1
        refused = capsys.readouterr()
        assert said in refused.err
        assert "encoding" not in refused.out
        assert "embedding" not in refused.out


def test_prompts_are_what_the_hosts_text_encoder_makes_of_them_each_made_once(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_text_encoders_be_tiny(monkeypatch)
    file, heard = write_text_encoder(tmp_path / "text.safetensors"), list[int]()
    text = ModelText([file], KINDS[0])
    said = ["anna waves", "", "ben jumps", "anna waves"]
    prompts = KeptPrompts(tmp_path, text.digest)
    with torch.inference_mode():
        prompts.keep(said, text.embed, heard.append)
        prompts.keep(said, text.embed, heard.append)
    assert heard == [3]
    assert len(list((tmp_path / "prompts").iterdir())) == 3
    clip = comfy.sd.load_clip([str(file)], clip_type=comfy.sd.CLIPType.WAN)
    for prompt in said:
        made: Tensor = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0][0][0]
        assert made.shape == (512, 4096)
        assert torch.equal(prompts.words(prompt), made)
        assert prompts.count(prompt) == 512
    assert not torch.equal(prompts.words("anna waves"), prompts.words("ben jumps"))
    damaged = next((tmp_path / "prompts").iterdir())
    damaged.write_bytes(b"damaged")
    prompts.keep(said, text.embed, heard.append)
    assert heard == [3, 1]


def test_latents_are_what_the_hosts_own_node_and_sampler_would_make(host: object, tmp_path: Path) -> None:
    file = write_vae(tmp_path / "vae.safetensors")
    model = recognise(write_wan(tmp_path / "wan.safetensors"))
    video = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        made = ModelVae(file, model).encode(video)
        pictures = (video[0].permute(1, 2, 3, 0) + 1) / 2
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(file)))
        expected = build_tiny_wan().model.process_latent_in(vae.encode(pictures))
    assert made.dtype == torch.float16
    assert made.shape == (1, 16, 3, 2, 2)
    assert torch.equal(made, expected.half())


def test_a_wan_is_known_by_its_shape_whichever_it_is(host: object, tmp_path: Path) -> None:
    plain = recognise(write_wan(tmp_path / "wan.safetensors"))
    assert (plain.width, plain.channels, plain.pixels, plain.layers, plain.fps) == (128, 16, 8, 2, 16)
    save_file(build_tiny_wan22().model.diffusion_model.state_dict(), tmp_path / "wan22.safetensors")
    newer = recognise(tmp_path / "wan22.safetensors")
    assert (newer.width, newer.channels, newer.pixels, newer.layers, newer.fps) == (128, 48, 16, 1, 24)
    loss, gradients = loss_and_gradients(torch.float32, True, newer.path)
    assert loss.isfinite()
    assert all(gradient is not None and gradient.any() for gradient in gradients)
    whole = {f"model.diffusion_model.{name}": weight for name, weight in load_file(plain.path).items()}
    save_file(whole, tmp_path / "checkpoint.safetensors")
    assert recognise(tmp_path / "checkpoint.safetensors").layers == 2


def test_files_of_another_kind_are_one_clear_error(host: object, tmp_path: Path) -> None:
    vae, wan = write_vae(tmp_path / "vae.safetensors"), write_wan(tmp_path / "wan.safetensors")
    pictured = tmp_path / "i2v.safetensors"
    save_file({**load_file(wan), **patches("patch_embedding", 36), "img_emb.proj.0.bias": torch.zeros(1280)}, pictured)
    hunyuan = tmp_path / "video.safetensors"
    of_pictures = {"img_in.proj.weight": torch.zeros(128, 33, 1, 2, 2)}
    shape = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1)
    save_file({**new_hunyuan(shape).state_dict(), **of_pictures}, hunyuan)
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "wan.ckpt"
    damaged.write_bytes(b"no weights at all")
    other.write_bytes(b"no weights at all")
    eight = tmp_path / "fp8.safetensors"
    scaled = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn), "blocks.0.ffn.0.scale_weight": torch.ones(())}
    save_file({**load_file(wan), **scaled}, eight)
    as_saved = tmp_path / "fp8_e4m3fn.safetensors"
    save_file({name: weight.to(torch.float8_e4m3fn) for name, weight in load_file(wan).items()}, as_saved)
    for path, got in (
        (vae, "no model that ComfyUI knows"),
        (hunyuan, "a model of type HunyuanVideoI2V, which reads no encoder or takes pictures beside the film"),
        (pictured, "a model of type WAN21_I2V, which reads no encoder or takes pictures beside the film"),
        (damaged, "which is damaged"),
        (other, "which is no .safetensors"),
    ):
        with pytest.raises(ValueError, match=r"^--model needs a Wan text-to-video model, such as") as error:
            recognise(path)
        assert got in str(error.value)
        assert str(path) in str(error.value)
    for path in (eight, as_saved):
        with pytest.raises(ValueError, match="--model needs weights of 16 or 32 bits"):
            recognise(path)
    model = recognise(wan)
    with pytest.raises(ValueError, match=r"--vae needs Wan's VAE, .* of 16 channels, got .*wan\.safetensors"):
        ModelVae(wan, model)
    with pytest.raises(ValueError, match=r"--text-encoder needs Wan's text encoder, .*, got .*vae\.safetensors"):
        ModelText([vae], KINDS[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model", "here"],
            "A large model needs --model, --vae and --text-encoder, got none for --vae and --text-encoder",
        ),
        (["--vae", "here", "--text-encoder", "here"], "got none for --model. Name all of them"),
        (["--dtype", "bf16"], "--dtype needs --model, --vae and --text-encoder"),
        (["--lora-rank", "4"], "--lora-rank needs --model"),
        (
            ["--model", "gone", "--vae", "here", "--text-encoder", "here"],
            "--model needs a file of that model, got gone",
        ),
        ([*WHOLE, "--text-encoder", "gone"], "--text-encoder needs a file of that model, got gone"),
        ([*WHOLE], "A large model learns from --videos FOLDER"),
        ([*WHOLE, "--videos", "here", "--cuts", "1"], "--cuts and --motion are for cartoons"),
        ([*WHOLE, "--videos", "here", "--family", "hunyuan"], "--weights and --family are for tiny models"),
        ([*WHOLE, "--videos", "here"], "--videos needs a folder with videos"),
    ],
)
def test_a_large_model_is_asked_for_whole_before_anything_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_text("a file")
    assert main([*TRAIN, "pretrain", "--out", "run", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_settings_and_encoders_that_do_not_fit_the_model_are_refused_before_videos_are_looked_at(
    host: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "--model": write_wan(tmp_path / "wan.safetensors"),
        "--vae": write_vae(tmp_path / "vae.safetensors"),
        "--text-encoder": tmp_path / "vae.safetensors",
    }
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "0.mp4").write_bytes(b"no video")
    (videos / "0.txt").write_text("\u58c1", encoding="utf-8")  # words that the tiny model could not read
    options = [word for name, path in files.items() for word in (name, str(path))] + ["--videos", str(videos)]
    options += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert read_spec(TINY_ENCODER).width == 256
    for arguments, said in (
        (["pretrain", "--size", "64x72"], "multiples of 16"),
        (["pretrain", "--learning-rate", "2"], "a learning rate above 0"),
        (
            ["pretrain", "--low", "video"],
            "A smaller video is made by the VAE of the tiny Wan alone, got low 'video' for wan",
        ),
        (
            ["finetune", "--encoder", str(TINY_ENCODER)],
            "--encoder needs an encoder for wan, of width 128 with 16 channels",
        ),
        (
            ["finetune", "--encoder", "gone"],
            "--encoder needs a file that `longreel train encoder pretrain` wrote, got gone",
        ),
        (["pretrain"], "--text-encoder needs Wan's text encoder"),
    ):
        assert main([*TRAIN, *arguments, *options]) == 1
        assert said in capsys.readouterr().err
