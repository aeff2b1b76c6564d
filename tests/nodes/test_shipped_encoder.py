"""The shipped workflows of memory encoders, shortened, with the encoder and the LoRA that ship."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import folder_paths
import pytest
import torch
from numerics import NOT_ROUNDING, ROLLOUT_ERROR, relative_error
from safetensors.torch import load_file
from shipped import API_FOLDER, ENCODED, ENCODED_WAN, read_json
from torch import Tensor

from longreel.memory.encoder_file import read_spec
from longreel.memory.trace import read_trace
from longreel.nodes.host.build import ENCODER_LORA, TINY_ENCODER

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

BOARD = "[0.75s] anna stands left in the meadow\n[0.75s] ben walks right in the town\n[0.75s] anna waves middle in the beach"
LARGE = ("UNETLoader", "CLIPLoader", "VAELoader")
"""In the order of the tiny node's outputs."""
CHUNKS, CHUNK, FRAME_TOKENS = 3, 3, 6 * 8


def shortened(project: str, path: Path = ENCODED) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow with three shots of a chunk each, and the inputs of its nodes by their type."""
    prompt = read_json(API_FOLDER / path.name)
    inputs: dict[str, Any] = {node["class_type"]: node["inputs"] for node in prompt.values()}
    inputs["LongReelStoryboard"]["text"] = BOARD
    inputs["LongReelChunkedARSampler"]["project"] = project
    return prompt, inputs


def made(project: str) -> tuple[list[Tensor], dict[str, Any], list[dict[str, Any]], Path]:
    """Latents of every chunk, header and lines of the trace, and the film."""
    folder = Path(folder_paths.get_output_directory()) / "longreel" / project
    chunks = [next(iter(load_file(path).values())) for path in sorted((folder / "chunks").iterdir())]
    return chunks, *read_trace(folder / "trace.jsonl"), folder / "film.mp4"


@pytest.fixture(scope="module")
def encoded(runner: Runner) -> tuple[list[Tensor], dict[str, Any], list[dict[str, Any]], Path]:
    runner.run(shortened("shipped_encoder")[0])
    return made("shipped_encoder")


def test_the_film_has_all_its_pictures_and_the_trace_says_that_the_encoder_was_read(encoded: Any) -> None:
    chunks, header, events, film = encoded
    assert [tuple(chunk.shape) for chunk in chunks] == [(1, 16, CHUNK, 12, 16)] * CHUNKS
    assert all(torch.isfinite(chunk).all() for chunk in chunks)
    with av.open(film) as video:
        pictures = [picture.to_ndarray(format="rgb24") for picture in video.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(96, 128, 3)] * (4 * (CHUNKS * CHUNK - 1) + 1)
    spec = read_spec(TINY_ENCODER)
    assert header["memory"] == f"window of 0 frames, and the whole film through a memory encoder {spec.rate}"
    assert [event["remembered"] for event in events] == [CHUNK, 2 * CHUNK, 3 * CHUNK]
    tokens = [spec.grid(CHUNK * index, 12, 16) for index in range(CHUNKS)]
    worth = [frames * rows * columns / FRAME_TOKENS for frames, rows, columns in tokens]
    assert [event["frames_worth"] for event in events] == worth == [0, 0.25, 0.75]


def test_without_the_encoder_only_the_first_chunk_is_the_same(runner: Runner, encoded: Any) -> None:
    """Nothing is older than the first chunk. Behind it the model has its default memory, which keeps whole frames."""
    prompt, inputs = shortened("shipped_no_encoder")
    del inputs["LongReelChunkedARSampler"]["encoder"]
    runner.run(prompt)
    plain, header, _, _ = made("shipped_no_encoder")
    assert "encoder" not in header["memory"]
    apart = [relative_error(one, other) for one, other in zip(encoded[0], plain, strict=True)]
    assert apart[0] < NOT_ROUNDING < min(apart[1:])


def test_the_workflow_of_wan_14b_makes_the_same_film_where_its_files_are_the_tiny_ones(runner: Runner) -> None:
    """Its loaders of LoRA and encoder stay; model, text encoder and VAE come from the node that brings the tiny ones."""
    tiny, inputs = shortened("shipped_tiny")
    tiny["sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    inputs["LongReelChunkedARSampler"]["sampler"] = ["sampler", 0]
    runner.run(tiny)
    prompt, inputs = shortened("shipped_wan_14b", ENCODED_WAN)
    large = {key: node["class_type"] for key, node in prompt.items() if node["class_type"] in LARGE}
    assert set(large.values()) == set(LARGE)
    for key in large:
        del prompt[key]
    prompt["tiny"] = {"class_type": "LongReelTinyStoryboardModel", "inputs": {"causal": False}}
    for node in prompt.values():
        for name, given in node["inputs"].items():
            if isinstance(given, list) and given[0] in large:
                node["inputs"][name] = ["tiny", LARGE.index(large[given[0]])]
    lora = Path(folder_paths.get_folder_paths("loras")[0], ENCODER_LORA.name)
    lora.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ENCODER_LORA, lora)
    folder_paths.filename_list_cache.clear()
    inputs["LoraLoaderModelOnly"]["lora_name"] = lora.name
    inputs["LongReelMemoryEncoderLoader"] |= {"encoder": TINY_ENCODER.name, "window": 0}
    inputs["LongReelStoryboard"] |= {"chunk": CHUNK, "negative": ""}
    inputs["ModelSamplingSD3"]["shift"] = 8  # that of the tiny model as an ordinary one
    inputs["BasicScheduler"]["steps"] = 4
    inputs["LongReelChunkedARSampler"] |= {"width": 128, "height": 96, "cfg": 1}
    try:
        runner.run(prompt)
    finally:
        lora.unlink()
        folder_paths.filename_list_cache.clear()
    films = [made(project) for project in ("shipped_wan_14b", "shipped_tiny")]
    assert films[0][1]["memory"] == films[1][1]["memory"]
    assert relative_error(*(torch.cat(chunks, dim=2) for chunks, _, _, _ in films)) < ROLLOUT_ERROR
