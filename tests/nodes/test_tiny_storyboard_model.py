"""The node that brings the model which ships with the pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longreel.nodes.host.build import build_tiny_reader
from longreel.nodes.tiny_storyboard_model import ANY, ENCODER, TinyStoryboardModel


def test_the_node_gives_a_causal_model_a_clip_and_a_vae_that_fit_each_other(host: object) -> None:
    model, clip, vae = TinyStoryboardModel.execute().args
    assert type(model.model).__name__ == "WAN21_CausalAR"
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize("anna stands left in the forest"))
    assert conditioning[0][0].shape == (1, 7, 4096)
    with torch.inference_mode():
        assert vae.encode(torch.rand(5, 96, 128, 3)).shape[1] == model.model.latent_format.latent_channels


def test_the_same_weights_can_be_had_as_an_ordinary_model(host: object) -> None:
    causal, ordinary = (TinyStoryboardModel.execute(causal=causal).args[0] for causal in (True, False))
    assert type(ordinary.model).__name__ == "WAN21"
    weights = causal.model.diffusion_model.state_dict()
    assert all(
        torch.equal(weights[name], tensor) for name, tensor in ordinary.model.diffusion_model.state_dict().items()
    )


def test_an_ordinary_model_with_gates_is_refused(host: object) -> None:
    with pytest.raises(ValueError, match="trained for DecMem is causal"):
        TinyStoryboardModel.execute("DecMem", causal=False)


def test_the_model_trained_for_the_memory_encoder_is_ordinary_and_patched(host: object) -> None:
    reading, ordinary = (TinyStoryboardModel.execute(*choice).args[0] for choice in ((ENCODER,), (ANY, False)))
    assert type(reading.model).__name__ == "WAN21"
    assert len(reading.patches) == 10 * len(reading.model.diffusion_model.blocks)
    assert not ordinary.patches


def test_without_its_lora_the_model_for_the_memory_encoder_is_refused(host: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs lora\.safetensors in memory/weights, got none"):
        build_tiny_reader({}, tmp_path / "lora.safetensors")


def test_every_output_of_the_node_is_explained() -> None:
    schema = TinyStoryboardModel.define_schema()
    assert schema.node_id == "LongReelTinyStoryboardModel"
    assert all(output.tooltip for output in schema.outputs)
