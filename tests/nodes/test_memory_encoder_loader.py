"""The loader through the host's own executor: a file in the model folder, a film, and files that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import pytest
import torch
from safetensors.torch import save_file

from longreel.memory.encoder import MemoryEncoder
from longreel.memory.encoder_file import save_encoder
from longreel.memory.encoder_spec import EncoderSpec
from longreel.memory.packed_encoder import PREFIX, PackedEncoder, PackedSpec
from longreel.memory.trace import read_trace
from longreel.memory.training.initialise import initialise_encoder

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

SPEC = EncoderSpec(width=256, stages=(8, 16), heads=2, base="a tiny Wan")


@pytest.fixture
def files(runner: Runner) -> Iterator[Path]:
    """An encoder in the host's own model folder, and what is put beside it, gone at the end."""
    encoder = Path(folder_paths.get_folder_paths("memory_encoders")[0], "tiny.safetensors")
    encoder.parent.mkdir(parents=True, exist_ok=True)
    before = set(encoder.parent.iterdir())
    module = MemoryEncoder(SPEC)
    initialise_encoder(module, torch.Generator().manual_seed(0))
    save_encoder(encoder, SPEC, module.state_dict())
    folder_paths.filename_list_cache.clear()
    yield encoder
    for path in set(encoder.parent.iterdir()) - before:
        path.unlink()
    folder_paths.filename_list_cache.clear()


def film(encoder: str = "tiny.safetensors", **settings: Any) -> dict[str, Any]:
    """A film of two chunks of an ordinary Wan, remembered through the encoder."""
    loader = {"encoder": encoder, "dtype": "fp32", "window": 1, "history": 0, **settings}
    board = {"text": "[1.5s] anna walks on the beach", "clip": ["tiny", 1], "negative": "", "fps": 16.0, "chunk": 3}
    steps = {"model": ["tiny", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}
    sampler = {
        "model": ["tiny", 0],
        "storyboard": ["board", 0],
        "sigmas": ["sigmas", 0],
        "seed": 0,
        "width": 64,
        "height": 64,
        "cfg": 5.0,
        "project": "encoded",
        "encoder": ["loader", 0],
    }
    nodes = {
        "tiny": ("LongReelTinyStoryboardModel", {"causal": False}),
        "loader": ("LongReelMemoryEncoderLoader", loader),
        "board": ("LongReelStoryboard", board),
        "sigmas": ("BasicScheduler", steps),
        "film": ("LongReelChunkedARSampler", sampler),
        "told": ("PreviewAny", {"source": ["loader", 1]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_a_workflow_with_an_encoder_makes_a_film_and_says_what_it_read(runner: Runner, files: Path) -> None:
    assert (
        "tiny.safetensors"
        in runner.object_info()["LongReelMemoryEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    )
    rendered = runner.run(film())
    folder = Path(folder_paths.get_output_directory()) / "longreel" / "encoded"
    _, events = read_trace(folder / "trace.jsonl")
    assert [event["read_frames"] for event in events] == [[], [2]]
    assert events[1]["frames_worth"] == round(1 + 1 / 16, 3)
    assert "fits the tiny model that comes with LongReel" in str(rendered.outputs)


@pytest.mark.parametrize("causal", [False, True])
def test_smaller_frames_need_no_file_and_an_ordinary_model(runner: Runner, files: Path, causal: bool) -> None:
    from longreel.nodes.headless.runner import RenderError

    choice = "none: smaller frames (2x2x2)"
    assert choice in runner.object_info()["LongReelMemoryEncoderLoader"]["input"]["required"]["encoder"][1]["options"]
    workflow = film(choice, window=0)
    workflow["tiny"]["inputs"]["causal"] = causal
    workflow["film"]["inputs"]["project"] = "smaller"
    if causal:
        with pytest.raises(RenderError, match="needs an ordinary Wan text-to-video or HunyuanVideo"):
            runner.run(workflow)
        return
    rendered = runner.run(workflow)
    _, events = read_trace(Path(folder_paths.get_output_directory()) / "longreel" / "smaller" / "trace.jsonl")
    assert [event["frames_worth"] for event in events] == [0, 0.25]
    assert "fits any Wan or HunyuanVideo, untrained" in str(rendered.outputs)


def test_embeddings_of_framepack_are_an_encoder(runner: Runner, files: Path) -> None:
    module = PackedEncoder(PackedSpec(SPEC.width))
    packed = {f"{PREFIX}{name}": tensor for name, tensor in module.state_dict().items()}
    save_file(packed, files.with_name("framepack.safetensors"))
    folder_paths.filename_list_cache.clear()
    workflow = film("framepack.safetensors", window=0)
    workflow["film"]["inputs"]["project"] = "packed"
    rendered = runner.run(workflow)
    _, events = read_trace(Path(folder_paths.get_output_directory()) / "longreel" / "packed" / "trace.jsonl")
    assert [event["frames_worth"] for event in events] == [0, 1 + 1 / 4]
    assert "2 before it as 2x2x2" in str(rendered.outputs)


def test_a_second_loader_tells_the_film_beside_the_first(runner: Runner, files: Path) -> None:
    both = film(beside=["other", 0])
    other = {"encoder": "tiny.safetensors", "dtype": "fp32", "window": 5, "history": 3}
    both["other"] = {"class_type": "LongReelMemoryEncoderLoader", "inputs": other}
    both["film"]["inputs"]["project"] = "encoded twice"
    rendered = runner.run(both)
    folder = Path(folder_paths.get_output_directory()) / "longreel" / "encoded twice"
    header, events = read_trace(folder / "trace.jsonl")
    assert header["window_frames"] == 1
    assert events[1]["frames_worth"] == round(1 + 2 / 16, 3)
    assert "beside it tiny 4x4x2: the newest 3 frames" in str(rendered.outputs)


@pytest.mark.parametrize("case", ["pickle", "other kind"])
def test_a_hostile_file_stops_the_workflow_at_the_loader(runner: Runner, files: Path, case: str) -> None:
    from longreel.nodes.headless.runner import RenderError

    hostile = files.with_name("hostile.safetensors")
    if case == "pickle":
        torch.save({"a": torch.zeros(1)}, hostile)
    else:
        save_file({"a": torch.zeros(1)}, hostile)
    folder_paths.filename_list_cache.clear()
    with pytest.raises(
        RenderError, match=r"Memory Encoder Loader|LongReelMemoryEncoderLoader|loader.*hostile.safetensors"
    ):
        runner.run(film("hostile.safetensors"))


def test_a_file_that_is_not_there_is_refused_when_the_workflow_is_queued(runner: Runner, files: Path) -> None:
    from longreel.nodes.headless.runner import RenderError

    with pytest.raises(RenderError, match=r"refuses this workflow.*\n?.*encoder"):
        runner.run(film("gone.safetensors"))
