"""A film goes on only with what it was made with, and does go on with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3, RescaleCFG
from comfy_extras.nodes_model_merging import ModelMergeSimple
from film import prompt, render
from torch import Tensor

from longreel.memory.chunks import plan_frames
from longreel.memory.positions import PositionPolicy
from longreel.nodes.host.build import TinyWanSpec, build_tiny_wan
from longreel.nodes.host.fingerprint import conditioning_fingerprint, described, model_fingerprint

SPEC = TinyWanSpec(width=128, layers=1, ffn=256, seed=3)
LAYER = "diffusion_model.blocks.0.ffn.0.weight"


@pytest.fixture(scope="module")
def state(host: object) -> dict[str, Tensor]:
    network = build_tiny_wan(SPEC).model.diffusion_model
    return {key: weight.clone() for key, weight in network.state_dict().items()}


def scaled_fp8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer as 'fp8 scaled' files keep it."""
    key = LAYER.removeprefix("diffusion_model.")
    scale = state[key].abs().max() / torch.finfo(torch.float8_e4m3fn).max
    quantised = {key: (state[key] / scale).to(torch.float8_e4m3fn), key.replace("weight", "scale_weight"): scale}
    return {**state, **quantised, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


LOADERS: dict[str, Callable[[dict[str, Tensor]], ModelPatcher]] = {
    "float32": lambda state: build_tiny_wan(weights=state),
    "fp8": lambda state: build_tiny_wan(weights=state, dtype=torch.float8_e4m3fn),
    "fp8 scaled": lambda state: comfy.sd.load_diffusion_model_state_dict(scaled_fp8(state)),
}


def with_lora(model: ModelPatcher, strength: float, alpha: float = 4.0) -> ModelPatcher:
    layer = "diffusion_model.blocks.0.ffn.0"
    lora = {
        f"{layer}.lora_A.weight": torch.full((4, 128), 0.1),
        f"{layer}.lora_B.weight": torch.full((256, 4), 0.1),
        f"{layer}.alpha": torch.tensor(alpha),
    }
    loaded, _ = comfy.sd.load_lora_for_models(model.clone(), None, lora, strength, 0.0)
    return loaded


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_model_is_recognised_whether_it_is_loaded_or_not(state: dict[str, Tensor], kind: str, lora: bool) -> None:
    model = LOADERS[kind](dict(state))
    model = with_lora(model, 0.7) if lora else model
    before = model_fingerprint(model)
    comfy.model_management.load_models_gpu([model])
    assert model_fingerprint(model) == before
    comfy.model_management.unload_all_models()
    assert model_fingerprint(model) == before


def test_a_lora_and_its_strength_are_seen(state: dict[str, Tensor]) -> None:
    model = LOADERS["float32"](state)
    seen = {model_fingerprint(changed) for changed in (model, with_lora(model, 0.5), with_lora(model, 0.7))}
    assert len(seen) == 3


def test_a_changed_matrix_is_seen(state: dict[str, Tensor]) -> None:
    tuned = {key: weight + 0.01 if weight.ndim > 1 else weight for key, weight in state.items()}
    assert model_fingerprint(build_tiny_wan(weights=tuned)) != model_fingerprint(build_tiny_wan(weights=state))


def merged(state: dict[str, Tensor], seed: int) -> ModelPatcher:
    """The model, half of it replaced by another one, as the host's merging node does it."""
    other = build_tiny_wan(dataclasses.replace(SPEC, seed=seed))
    return ModelMergeSimple().merge(LOADERS["float32"](state), other, 0.5)[0]


def test_models_that_another_one_is_merged_into_are_told_apart(state: dict[str, Tensor]) -> None:
    first, again, other = (model_fingerprint(merged(state, seed)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_whole_weights_of_a_lora_file_are_seen(state: dict[str, Tensor]) -> None:
    """Many files for Wan have '.diff' tensors beside their low-rank ones."""
    seen = set()
    for value in (0.1, 0.2):
        lora = {"diffusion_model.blocks.0.ffn.0.diff": torch.full((256, 128), value)}
        loaded, _ = comfy.sd.load_lora_for_models(LOADERS["float32"](state), None, lora, 1.0, 0.0)
        seen.add(model_fingerprint(loaded))
    assert len(seen) == 2


def test_the_scale_that_a_lora_file_states_is_seen(state: dict[str, Tensor]) -> None:
    model = LOADERS["float32"](state)
    seen = {model_fingerprint(with_lora(model, 0.5, alpha)) for alpha in (1.0, 2.0)}
    assert len(seen) == 2


@pytest.mark.parametrize(
    "patch",
    [lambda model, x: RescaleCFG().patch(model, x)[0], lambda model, x: ModelSamplingSD3().patch(model, 10 * x)[0]],
    ids=["rescale cfg", "flow shift"],
)
def test_the_values_of_a_patch_are_seen(state: dict[str, Tensor], patch: Callable[..., ModelPatcher]) -> None:
    model = LOADERS["float32"](state)
    first, again, other = (model_fingerprint(patch(model, value)) for value in (0.7, 0.7, 0.5))
    assert first == again
    assert first not in (other, model_fingerprint(model))


class CountingOverride:
    """An attention override that keeps count, as a profiler does."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, attention: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return attention(*args, **kwargs)


def test_an_override_is_seen_and_its_counters_are_not(state: dict[str, Tensor]) -> None:
    model = LOADERS["float32"](state)
    overridden, override = model.clone(), CountingOverride()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = override
    before = model_fingerprint(overridden)
    override.calls = 5
    assert model_fingerprint(overridden) == before
    assert model_fingerprint(model) != before


def bound_late(strength: float) -> Callable[..., float]:
    return lambda x, kept=strength: x * kept


def scale(x: float, strength: float) -> float:
    return x * strength


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bound_late(0.5), bound_late(0.7)),
        (functools.partial(scale, strength=0.5), functools.partial(scale, strength=0.7)),
        ({1, 2}, {1, 3}),
        (PositionPolicy.ABSOLUTE, PositionPolicy.CLAMPED),
        (range(3), range(4)),
    ],
    ids=["defaults", "partial", "set", "enum", "range"],
)
def test_settings_are_told_apart_wherever_a_pack_keeps_them(one: object, other: object) -> None:
    assert described(one) != described(other)
    assert described(one) == described(one)


def hooked(strength: float, weight: float) -> list[Any]:
    """A prompt with a LoRA of its own."""
    lora = {"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.full((4, 128), weight)}
    return [[prompt(0)[0][0], {"hooks": comfy.hooks.create_hook_lora(lora, strength, 0.0)}]]


def test_a_lora_of_a_prompt_and_its_strength_are_seen() -> None:
    plain, first, again, stronger, other = map(
        conditioning_fingerprint, (prompt(0), hooked(0.5, 0.1), hooked(0.5, 0.1), hooked(0.7, 0.1), hooked(0.5, 0.2))
    )
    assert first == again
    assert len({plain, first, stronger, other}) == 4


def test_a_lora_of_a_prompt_is_recognised_after_a_run(state: dict[str, Tensor]) -> None:
    conditioning = hooked(0.5, 0.1)
    before = conditioning_fingerprint(conditioning)
    render(LOADERS["float32"](state), plan_frames(3, 3), prompts=(conditioning,), size=(2, 2))
    assert conditioning_fingerprint(conditioning) == before


def test_a_description_of_things_that_contain_themselves_ends() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    assert "..." in described(loop)
