"""What HunyuanVideo films cannot be made of gives one clear error; what other packs add to attention is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned, prompt
from hunyuan_film import ANCHORED, FULL, SPEC, hunyuan_film, words
from hunyuan_variants import VARIANTS, load_hunyuan_variant, other_hunyuan_models
from numerics import ROLLOUT_ERROR, relative_error
from torch import Tensor

from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.positions import PositionPolicy
from longreel.nodes.film import Film
from longreel.nodes.host.attach import attach_memory, memory_config
from longreel.nodes.host.build import build_tiny_vae, build_tiny_wan
from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec, build_tiny_hunyuan
from longreel.nodes.host.conditioning import blended
from longreel.nodes.prompt_bank import PromptRetrievedMemoryBank
from longreel.nodes.sparse_kv_memory import AUTO, SparseKVMemory

INTO, OUT_OF = "attn1_patch", "attn1_output_patch"


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_hunyuan(TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, seed=3))


@pytest.fixture
def film(model: ModelPatcher) -> Film:
    board = dataclasses.replace(planned(prompts=(words(0),)), negative=words(99, 3))
    return film_on_disk(model, board)


def refuse(film: Film, root: Path, *named: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        film.make(root / "films")
    assert all(name in str(refused.value) for name in named), str(refused.value)
    assert not (root / "films").exists()


@pytest.mark.parametrize("name", other_hunyuan_models())
def test_a_variant_that_memory_does_not_know_is_refused_by_name(host: object, name: str) -> None:
    with pytest.raises(ValueError, match=VARIANTS[name].named):
        attach_memory(load_hunyuan_variant(name), MemoryConfig())


def test_the_film_that_the_bad_ones_are_made_from_is_good(film: Film, tmp_path: Path) -> None:
    assert film.make(tmp_path).latents.isfinite().all()


def with_prompt(film: Film, conditioning: list[Any]) -> Film:
    return dataclasses.replace(film, storyboard=dataclasses.replace(film.storyboard, conditionings=(conditioning,)))


def test_a_prompt_of_wans_text_encoder_is_refused_although_its_words_are_as_long(film: Film, tmp_path: Path) -> None:
    refuse(with_prompt(film, prompt(0)), tmp_path, "Shot 1", "768 numbers", "got 0", "llava_llama3", "DualCLIPLoader")


@pytest.mark.parametrize(
    ("extra", "named"), [("guiding_frame_index", "an image-to-video guide"), ("ref_latent", "a reference latent")]
)
def test_prompts_of_image_to_video_and_custom_checkpoints_are_refused(
    film: Film, tmp_path: Path, extra: str, named: str
) -> None:
    refuse(with_prompt(film, words(0, **{extra: torch.zeros(1)})), tmp_path, "Shot 1", named, "Remove the node")


def test_a_masked_prompt_is_refused_where_pages_are_searched_and_only_there(film: Film, tmp_path: Path) -> None:
    masked = with_prompt(film, words(0, attention_mask=torch.tensor([[1] * 6 + [0]])))
    searching = MemoryConfig(3, 0, ANCHORED, bank=BankConfig())
    refuse(
        dataclasses.replace(masked, model=attach_memory(film.model, searching)),
        tmp_path,
        "attention mask",
        "window + sink",
    )
    assert masked.make(tmp_path).latents.isfinite().all()


def test_a_vae_is_refused_with_the_way_to_decode(film: Film, tmp_path: Path) -> None:
    refuse(dataclasses.replace(film, vae=build_tiny_vae()), tmp_path, "the whole clip", "VAE Decode (Tiled)")


def test_each_family_has_its_own_positions_where_the_user_chose_none(film: Film, tmp_path: Path) -> None:
    wan = build_tiny_wan()
    for model, positions in ((film.model, ANCHORED), (wan, PositionPolicy.ABSOLUTE)):
        sparse = SparseKVMemory.execute(model, "window", 9, 3, AUTO, 21).args[0]
        bank = PromptRetrievedMemoryBank.execute(model, 3, 0.3, True, "", "").args[0]
        chosen = SparseKVMemory.execute(model, "window", 9, 3, "clamped", 21).args[0]
        found = [memory_config(each).positions for each in (sparse, bank, chosen)]  # type: ignore[union-attr]
        assert found == [positions, positions, PositionPolicy.CLAMPED]
    assert memory_config(film.remembering).positions is ANCHORED  # type: ignore[union-attr]


def half(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    """Another pack's patch on the way into attention."""
    return {"v": v / 2}


def louder(attention: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Another pack's patch on the way out; it counts on a token of output for each of input."""
    start, stop = extra_options["img_slice"]
    assert attention.shape[1] == stop > start
    return attention * 1.5


def turns(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> dict[str, Any]:
    """Another pack's patch that turns queries and keys itself."""
    return {"pe": None}


@pytest.mark.parametrize(("place", "patch"), [(INTO, half), (OUT_OF, louder)])
def test_what_another_pack_does_to_attention_counts_before_and_after_the_memory_node(
    host: object, place: str, patch: Any
) -> None:
    model = build_tiny_hunyuan(SPEC)
    before, after = model.clone(), attach_memory(model, FULL)
    for patched in (before, after):
        patched.set_model_patch(patch, place)
    films = [hunyuan_film(each, sigmas=(1.0, 0.0)).latents for each in (before, after)]
    assert torch.equal(*films)
    assert relative_error(films[0], hunyuan_film(model, sigmas=(1.0, 0.0)).latents) > ROLLOUT_ERROR


def test_a_patch_that_turned_queries_already_is_refused_by_name(model: ModelPatcher) -> None:
    patched = model.clone()
    patched.set_model_patch(turns, INTO)
    with pytest.raises(ValueError, match=r"attn1_patch .*turns.*Remove that node"):
        hunyuan_film(patched, sigmas=(1.0, 0.0))


def test_a_prompt_that_grows_while_the_film_renders_is_refused(model: ModelPatcher) -> None:
    def longer(executor: Any, x: Tensor, timestep: Tensor, context: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(x, timestep, torch.cat([context, context], dim=1), *args, **kwargs)

    growing = model.clone()
    growing.add_wrapper_with_key("diffusion_model", "another pack", longer)
    with pytest.raises(ValueError, match="makes prompts longer"):
        hunyuan_film(growing, sigmas=(1.0, 0.0))


def test_between_two_prompts_both_the_words_and_their_one_vector_lie_between(host: object) -> None:
    before, after = words(0), words(1)
    ((vectors, extras),) = blended(before, after, 0.25)
    assert torch.equal(vectors, torch.lerp(before[0][0], after[0][0], 0.25))
    assert torch.equal(
        extras["pooled_output"], torch.lerp(*(each[0][1]["pooled_output"] for each in (before, after)), 0.25)
    )
