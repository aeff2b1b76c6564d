"""The tiny HunyuanVideo that an artist takes from its node: it makes the film of its workflow, or says what is missing."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import folder_paths
import nodes as host_nodes
import numpy as np
import peft
import pytest
import torch
from encoder_runs import SHORT, orthogonal_codec
from latent_preview import Latent2RGBPreviewer
from numerics import PREVIEW_ERROR
from shipped import API_FOLDER, ENCODED_HUNYUAN, TINY_HUNYUAN, read_json
from torch.nn.functional import avg_pool2d

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import save_encoder
from longreel.memory.trace import read_trace
from longreel.memory.training.encoder_settings import tiny_encoder_spec, trained_spec
from longreel.memory.training.encoder_training import train_encoder
from longreel.memory.training.export import save_weights
from longreel.memory.training.initialise import initialise_encoder
from longreel.memory.training.lora import save_lora
from longreel.memory.training.storyworld import FilmSettings, random_film, render_film
from longreel.nodes.host import build
from longreel.nodes.host.attach import adapter_for
from longreel.nodes.host.build import shipped_weights
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, modules_of, new_hunyuan
from longreel.nodes.host.conditioning import check_conditioning
from longreel.nodes.tiny_storyboard_model import ANY, HUNYUAN, TinyStoryboardModel

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

SPEC = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, guidance=False, seed=3)
OURS = "LongReelTinyStoryboardModel"


@pytest.fixture(scope="module")
def folder(host: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as they ship, of a HunyuanVideo that learned nothing."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(new_hunyuan(SPEC).state_dict(), folder, "hunyuan")
    save_weights(shipped_weights("vae") or {}, folder, "vae")
    return folder


def test_the_node_gives_a_hunyuan_video_with_a_clip_whose_prompts_it_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "WEIGHTS_FOLDER", folder)
    model, clip, _ = TinyStoryboardModel.execute(family=HUNYUAN).args
    family = adapter_for(model)
    assert family.name == "HunyuanVideo text-to-video"
    prompt = clip.encode_from_tokens_scheduled(clip.tokenize("anna waves left in the snow"))
    check_conditioning("Shot 1", prompt, family.prompts(model))


def test_a_hunyuan_video_that_does_not_ship_is_refused_with_the_way_to_get_one(
    tmp_path: Path, host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="longreel train tiny --family hunyuan"):
        TinyStoryboardModel.execute(family=HUNYUAN)


def test_its_previews_have_the_colours_of_its_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "WEIGHTS_FOLDER", folder)
    model, _, vae = TinyStoryboardModel.execute(family=HUNYUAN).args
    picture = render_film(random_film(10_000_000, FilmSettings(chunks=1)))[:1]
    with torch.inference_mode():
        latents = model.model.process_latent_in(vae.encode(picture))
    known = model.model.latent_format
    host_preview = Latent2RGBPreviewer(known.latent_rgb_factors, known.latent_rgb_factors_bias)
    seen = torch.from_numpy(np.array(host_preview.decode_latent_to_preview(latents))) / 255
    true = avg_pool2d(picture.movedim(-1, 1), 8)[0].movedim(0, -1)
    assert float((seen - true).abs().mean()) < PREVIEW_ERROR


@pytest.mark.parametrize(("trained_for", "causal"), [("DecMem", True), (ANY, False)])
def test_a_hunyuan_video_with_gates_or_for_an_encoder_is_refused(host: object, trained_for: str, causal: bool) -> None:
    with pytest.raises(ValueError, match="The tiny HunyuanVideo was trained for 'any memory'"):
        TinyStoryboardModel.execute(trained_for, causal, HUNYUAN)


def test_the_shipped_workflow_makes_a_film_of_the_tiny_hunyuan_video(
    runner: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = host_nodes.NODE_CLASS_MAPPINGS[OURS].__module__.rpartition(".")[0]
    monkeypatch.setattr(sys.modules[f"{package}.host.build"], "WEIGHTS_FOLDER", folder)
    prompt = read_json(API_FOLDER / TINY_HUNYUAN.name)
    inputs: dict[str, Any] = {node["class_type"]: node["inputs"] for node in prompt.values()}
    inputs["LongReelStoryboard"]["text"] = "[0.5s] anna walks left in the meadow\n[0.25s] ben waves right in the town"
    inputs["LongReelChunkedARSampler"].update({"project": "tiny_hunyuan_test", "width": 64, "height": 48})
    inputs["BasicScheduler"]["steps"] = 2
    rendered = runner.run(prompt)
    (film,) = [path for path in rendered.files if path.suffix == ".mp4"]
    with av.open(film) as video:
        shapes = {picture.to_ndarray(format="rgb24").shape for picture in video.decode(video=0)}
    assert shapes == {(48, 64, 3)}
    (inspection,) = next(shown["longreel"] for shown in rendered.outputs.values() if "longreel" in shown)
    assert [chunk["frames"] for chunk in inspection["chunks"]] == [[0, 1], [1, 2], [2, 3]]
    assert [chunk["shot"] for chunk in inspection["chunks"]] == [0, 0, 1]


@pytest.fixture
def trained() -> Iterator[None]:
    """Encoder and LoRA of a step of training, where the workflow looks for them."""
    config = replace(SHORT, steps=1, family="hunyuan")
    network, encoder = new_hunyuan(SPEC), MemoryEncoder(tiny_encoder_spec(config, SPEC.width))
    initialise_encoder(encoder, torch.Generator().manual_seed(0))
    name = "hunyuan_video_t2v_encoder"
    paths = [Path(folder_paths.models_dir, "memory_encoders", f"{name}.safetensors")]
    paths.append(Path(folder_paths.models_dir, "loras", f"{name}_lora.safetensors"))
    with tempfile.TemporaryDirectory() as run:
        train_encoder(config, modules_of("hunyuan"), peft, network, encoder, orthogonal_codec(), Path(run))
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(paths[0], trained_spec(encoder.spec, config), encoder.state_dict())
    save_lora(paths[1], network)
    yield
    for path in paths:
        path.unlink()


@pytest.mark.parametrize("encoder", ["none: smaller frames (2x2x1)", "hunyuan_video_t2v_encoder.safetensors"])
def test_the_workflow_with_an_encoder_makes_a_film_where_its_files_are_the_tiny_ones(
    runner: Runner, folder: Path, trained: None, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    """With encoder and LoRA as it is, or as its note says for whoever has none: smaller frames in its place, and the LoRA bypassed."""
    package = host_nodes.NODE_CLASS_MAPPINGS[OURS].__module__.rpartition(".")[0]
    monkeypatch.setattr(sys.modules[f"{package}.host.build"], "WEIGHTS_FOLDER", folder)
    prompt = read_json(API_FOLDER / ENCODED_HUNYUAN.name)
    inputs: dict[str, Any] = {node["class_type"]: node["inputs"] for node in prompt.values()}
    given = {"UNETLoader": 0, "DualCLIPLoader": 1, "VAELoader": 2}
    given |= {"LoraLoaderModelOnly": 0} if encoder.startswith("none") else {}
    gone = {key: given[node["class_type"]] for key, node in prompt.items() if node["class_type"] in given}
    assert len(gone) == len(given)
    for key in gone:
        del prompt[key]
    prompt["tiny"] = {"class_type": OURS, "inputs": {"family": HUNYUAN}}
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in gone:
                node["inputs"][name] = ["tiny", gone[value[0]]]
    project = f"tiny_hunyuan_{encoder[:4]}"
    inputs["LongReelMemoryEncoderLoader"] |= {"encoder": encoder, "window": 0}
    inputs["LongReelStoryboard"] |= {"text": "[0.75s] anna walks left in the meadow", "fps": 16, "chunk": 1}
    inputs["LongReelChunkedARSampler"] |= {"project": project, "width": 64, "height": 64}
    inputs["BasicScheduler"]["steps"] = 2
    rendered = runner.run(prompt)
    (film,) = [path for path in rendered.files if path.suffix == ".mp4"]
    with av.open(film) as video:
        shapes = {picture.to_ndarray(format="rgb24").shape for picture in video.decode(video=0)}
    assert shapes == {(64, 64, 3)}
    made = Path(folder_paths.get_output_directory()) / "longreel" / project
    worth = [0, 1 / 4, 2 / 4] if encoder.startswith("none") else [0, 0, 1 / 4]  # its tokens are of two frames
    header, events = read_trace(made / "trace.jsonl")
    assert "memory encoder" in header["memory"]
    assert [event["frames_worth"] for event in events] == worth
