"""Tiny real models through the host's own loaders, and the demo text encoder behind the host's own nodes."""

from __future__ import annotations

import comfy.sample
import nodes as host_nodes
import pytest
import torch

from longreel.nodes.host.build import TinyWanSpec, build_tiny_vae, build_tiny_wan, host_modules
from longreel.nodes.host.demo_text import build_demo_clip

LATENT_SHAPE = (1, 16, 3, 12, 16)
SMALL = TinyWanSpec(width=128, layers=2, ffn=256)


def sample_one_step(model: object, text: str) -> torch.Tensor:
    clip = build_demo_clip()
    (conditioning,) = host_nodes.CLIPTextEncode().encode(clip, text)
    noise = torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 1, 1.0, "euler", "simple", conditioning, conditioning, torch.zeros(LATENT_SHAPE), seed=3
        )


def test_the_host_detects_the_tiny_model_as_plain_wan(host: object) -> None:
    model = build_tiny_wan(SMALL)
    assert type(model.model).__name__ == "WAN21"
    assert model.model.model_sampling.shift == 8.0


def test_the_host_detects_the_tiny_model_as_causal_wan_by_its_metadata(host: object) -> None:
    model = build_tiny_wan(SMALL, causal=True)
    assert type(model.model).__name__ == "WAN21_CausalAR"
    assert model.model.model_sampling.shift == 5.0


@pytest.mark.parametrize("causal", [False, True])
def test_one_sampling_step_depends_on_the_prompt_and_is_not_degenerate(host: object, causal: bool) -> None:
    model = build_tiny_wan(SMALL, causal=causal)
    anna, ben = sample_one_step(model, "anna left forest"), sample_one_step(model, "ben right town")
    assert anna.shape == LATENT_SHAPE
    assert torch.isfinite(anna).all()
    assert anna.std() > 0.1
    assert not torch.equal(anna, ben)


def test_the_same_seed_builds_the_same_model(host: object) -> None:
    first, second = build_tiny_wan(SMALL).model.state_dict(), build_tiny_wan(SMALL).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_tiny_wan(TinyWanSpec(width=128, layers=2, ffn=256, seed=1)).model.state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_width_that_is_no_multiple_of_a_head_is_refused(host: object) -> None:
    with pytest.raises(ValueError, match="multiple of 128, got 200"):
        TinyWanSpec(width=200)


def test_the_tiny_vae_keeps_the_ratio_of_wan(host: object) -> None:
    vae = build_tiny_vae()
    frames = torch.rand(9, 96, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = vae.encode(frames)
        decoded = vae.decode(latents)
    assert latents.shape == LATENT_SHAPE
    assert decoded.shape == (1, 9, 96, 128, 3)
    assert decoded.std() > 0.01


def test_the_demo_text_encoder_gives_one_vector_a_word(host: object) -> None:
    clip = build_demo_clip()
    tokens = clip.tokenize("Anna waves, in the 2 forests!")
    ((cond, extras),) = clip.encode_from_tokens_scheduled(tokens)
    assert cond.shape == (1, 7, 4096)
    assert extras["pooled_output"].shape == (1, 768)  # HunyuanVideo asks for one vector for all of them


def test_the_demo_text_encoder_is_deterministic_also_as_a_clone(host: object) -> None:
    clip = build_demo_clip()
    first = clip.encode_from_tokens(clip.tokenize("anna in the forest"))
    again = clip.clone().encode_from_tokens(clip.tokenize("Anna, in the forest."))
    assert torch.equal(first, again)


def test_a_word_stays_nearest_to_itself_and_order_still_counts(host: object) -> None:
    clip = build_demo_clip()
    forwards = clip.encode_from_tokens(clip.tokenize("anna meets ben"))[0, 1:]
    backwards = clip.encode_from_tokens(clip.tokenize("ben meets anna"))[0, 1:]
    similarity = torch.cosine_similarity(forwards[:, None], backwards[None], dim=-1)
    assert similarity.argmax(dim=1).tolist() == [2, 1, 0]
    assert not torch.equal(forwards[0], backwards[2])


def test_an_empty_prompt_still_gives_a_token(host: object) -> None:
    clip = build_demo_clip()
    assert clip.encode_from_tokens(clip.tokenize("")).shape == (1, 1, 4096)


def test_the_training_switch_of_the_host_goes_back(host: object) -> None:
    modules = host_modules()
    model = modules.new_wan(SMALL)
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with modules.training():
        model(latents, torch.tensor([500.0]), torch.randn(1, 3, 4096)).square().mean().backward()
    assert model.patch_embedding.weight.grad.abs().sum() > 0
    with torch.inference_mode():
        assert model(latents, torch.tensor([500.0]), torch.randn(1, 3, 4096)).shape == latents.shape
