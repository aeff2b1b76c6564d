"""Films read in gated branches, in the real host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from film import film_on_disk, planned, prompt, render
from numerics import OPEN_GATE_ERROR, ROLLOUT_ERROR, relative_error
from safetensors.torch import save_file
from torch import Tensor
from training_side import TrainingNoise, draw_last_chunk, training_batch, training_network

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import MemoryConfig
from longreel.memory.gates import GateForm, Gates, fresh_gates
from longreel.memory.presets import GATED_PRESETS, LONGREEL, MEMFLOW, PRESETS
from longreel.memory.prompt_bank import PromptBankConfig, Scorer
from longreel.memory.rollout import FinishedChunk
from longreel.memory.training.export import save_weights
from longreel.memory.training.gate_training import clip_spec, gated_reader
from longreel.memory.training.recall import recall_film
from longreel.nodes.headless.bench_recall import TinyModel, load_weights
from longreel.nodes.host import attach, build
from longreel.nodes.host.attach import attach_memory
from longreel.nodes.host.build import WEIGHTS_FOLDER, TinyWanSpec, build_tiny_wan, host_modules
from longreel.nodes.host.fingerprint import model_fingerprint
from longreel.nodes.host.gates import bring_gates, brought_gates, use_gates, used_gates
from longreel.nodes.host.wan import time_channels
from longreel.nodes.prompt_bank import PromptRetrievedMemoryBank
from longreel.nodes.sparse_kv_memory import OPTIONS, SparseKVMemory
from longreel.nodes.tiny_storyboard_model import FORMS, TinyStoryboardModel

SPEC = TinyWanSpec(width=256, layers=2, ffn=512, seed=3)
TWO_SHOTS = plan_chunks((3, 2), 3)
TWO_STEPS = (1.0, 0.8333, 0.0)


def lively_gates(form: GateForm, seed: int = 0) -> Gates:
    """Gates that differ from token to token and head to head."""
    generator = torch.Generator().manual_seed(seed)
    made = fresh_gates(form, SPEC.layers, SPEC.heads, SPEC.width, generator)
    return replace(made, weights=made.weights * 100, biases=torch.randn(made.biases.shape, generator=generator) * 0.5)


def config_of(form: GateForm, chunk_frames: int = 3) -> MemoryConfig:
    """The preset of a form with a window that a short film leaves."""
    return replace(PRESETS[GATED_PRESETS[form]], window_frames=2 * chunk_frames)


def gated(model: ModelPatcher, config: MemoryConfig, gates: Gates | None) -> ModelPatcher:
    remembering = attach_memory(model, config)
    use_gates(remembering, gates)
    return remembering


@pytest.fixture(scope="module")
def model(host: object) -> ModelPatcher:
    return build_tiny_wan(SPEC, causal=True)


@pytest.mark.parametrize("chunk_frames", [1, 3])
@pytest.mark.parametrize("form", GateForm)
def test_the_product_draws_the_chunk_that_training_with_gates_draws(
    host: object, tmp_path_factory: pytest.TempPathFactory, form: GateForm, chunk_frames: int
) -> None:
    """Two implementations: pages, lists and merged slices here, masks over whole clips there."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(host_modules().new_wan(SPEC).state_dict(), folder, "wan")
    tiny, network = TinyModel(folder), training_network(SPEC, load_weights(folder, "wan"))
    gates = lively_gates(form)
    reader = gated_reader(gates, chunk_frames, clip_spec(network, time_channels(128)))
    film = recall_film(3, 6, chunk_frames, 4, 5)
    latents = tiny.encode(film)
    remembering = gated(tiny.model, reader.config, gates)
    prompts = [shot.prompt for shot in film.shots]
    plan = plan_chunks([1] * 6, chunk_frames)
    drawn = tiny.draw(remembering, plan, prompts, latents[:, :, :-chunk_frames], TrainingNoise(11))
    expected = draw_last_chunk(network, training_batch(film, latents, chunk_frames), 11, reader)
    assert relative_error(drawn.probes[0], expected) < ROLLOUT_ERROR
    ungated = tiny.draw(
        attach_memory(tiny.model, reader.config), plan, prompts, latents[:, :, :-chunk_frames], TrainingNoise(11)
    )
    assert relative_error(ungated.probes[0], expected) > ROLLOUT_ERROR


def window_alone(form: GateForm) -> Gates:
    """Gates that let the window through and nothing else, as far as gates can."""
    biases = [10.0 if branch == "window" else -10.0 for branch in form.branches] * SPEC.heads
    made = lively_gates(form)
    return Gates(form, torch.zeros_like(made.weights), torch.tensor([biases] * SPEC.layers))


def test_a_card_that_holds_the_pages_but_neither_gates_nor_text_is_refused_before_the_film(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that the run will take is counted, to the byte."""
    film = film_on_disk(gated(model, config_of(GateForm.OMNIMEM), lively_gates(GateForm.OMNIMEM)), planned())
    session = attach.plan_session(film.guider(), film.film_sampler(None, None))
    assert session.gates is not None
    text = 2 * SPEC.layers * session.text_tokens * SPEC.width * torch.float32.itemsize
    assert session.text_tokens > 0
    assert session.peak_bytes == session.memory.peak_bytes + session.gates.bytes + text
    for total, fits in ((session.peak_bytes, True), (session.peak_bytes - 1, False)):
        monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device, total=total: total)
        with nullcontext() if fits else pytest.raises(ValueError, match=r"memory of this film needs .* but the device"):
            film.check()


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("form", GateForm)
def test_gates_that_are_open_for_the_window_alone_make_the_film_of_the_window(
    model: ModelPatcher, form: GateForm, cfg: float
) -> None:
    config = config_of(form)
    window = replace(config, bank=None)
    gated_film = render(
        gated(model, config, window_alone(form)), TWO_SHOTS, attached=True, sigmas=TWO_STEPS, cfg=cfg
    ).latents
    assert (
        relative_error(gated_film, render(model, TWO_SHOTS, config=window, sigmas=TWO_STEPS, cfg=cfg).latents)
        < cfg * OPEN_GATE_ERROR
    )


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("form", GateForm)
def test_a_gated_film_that_was_stopped_goes_on_with_the_same_bits(
    model: ModelPatcher, form: GateForm, cfg: float
) -> None:
    remembering = gated(model, config_of(form), lively_gates(form))
    whole = render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, cfg=cfg)
    kept = {chunk.chunk.index: chunk.latents for chunk in whole.chunks[:3]}
    resumed = render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, cfg=cfg, load=kept.get)
    assert [chunk.replayed for chunk in resumed.chunks] == [True, True, True, False, False]
    assert torch.equal(resumed.latents, whole.latents)


@pytest.mark.parametrize("form", GateForm)
def test_a_gated_film_with_a_prompt_bank_pins_and_vetoes_goes_on_with_the_same_bits_counted_or_not(
    model: ModelPatcher, form: GateForm
) -> None:
    bank = PromptBankConfig(frames=2, scorer=Scorer.ATTENTION_MASS, pins="0.5s", vetoes="0s")  # frame 2 and frame 0
    config = replace(config_of(form), prompt_bank=bank)
    remembering = gated(model, config, lively_gates(form))
    whole = render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, tallied=True)
    kept = {chunk.chunk.index: chunk.latents for chunk in whole.chunks[:3]}
    resumed = render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, load=kept.get)
    assert torch.equal(resumed.latents, whole.latents)
    last = whole.chunks[-1]
    assert (last.brought[2].why, len(last.brought)) == ("pin", 3)
    assert last.bank_reads is not None
    assert not {0, *last.read_frames} & set(last.bank_reads.frames)
    assert 0 not in last.read_frames


@pytest.mark.parametrize("form", GateForm)
def test_guided_shot_2_reads_shot_1_through_its_gates(model: ModelPatcher, form: GateForm) -> None:
    """The only difference between the films is chunk 1, which has left the window."""

    def last_chunk(first_words: int) -> Tensor:
        prompts, negative = (prompt(first_words), prompt(1, words=5)), prompt(99, words=11)
        film = render(
            remembering,
            TWO_SHOTS,
            attached=True,
            sigmas=TWO_STEPS,
            prompts=prompts,
            negative=negative,
            cfg=5.0,
            load=load,
        )
        return film.chunks[-1].latents

    def load(index: int) -> Tensor | None:
        return same[index] if index != 1 and index < 4 else None

    remembering = gated(model, config_of(form), lively_gates(form))
    same = [chunk.latents for chunk in render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, cfg=5.0).chunks]
    assert not torch.equal(last_chunk(0), last_chunk(5))


def test_pages_in_files_make_the_gated_film_of_pages_in_ram(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remembering = gated(model, config_of(GateForm.OMNIMEM), lively_gates(GateForm.OMNIMEM))
    in_ram = render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS).latents
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(attach, "fits_in_ram", lambda needed: False)
    seen: set[str] = set()

    def look(chunk: FinishedChunk) -> None:
        seen.update(file.name for file in tmp_path.glob("*/*"))

    assert torch.equal(render(remembering, TWO_SHOTS, attached=True, sigmas=TWO_STEPS, on_chunk=look).latents, in_ram)
    assert seen == {"keys", "values", "page_means", "frame_means", "value_means"}
    assert list(tmp_path.iterdir()) == []


def test_gates_are_part_of_the_settings_of_a_film(model: ModelPatcher) -> None:
    config = config_of(GateForm.OMNIMEM)
    none, one, same, other = (
        model_fingerprint(gated(model, config, gates))
        for gates in (None, *(lively_gates(GateForm.OMNIMEM, seed) for seed in (0, 0, 1)))
    )
    assert none == model_fingerprint(attach_memory(model, config))
    assert one == same
    assert len({none, one, other}) == 3


def test_gates_of_another_model_are_refused_before_the_film_begins(model: ModelPatcher) -> None:
    gates = fresh_gates(GateForm.DECMEM, SPEC.layers, 12, 1536, torch.Generator())
    film = film_on_disk(gated(model, config_of(GateForm.DECMEM), gates), planned())
    with pytest.raises(ValueError, match=r"need 2 layers of weights \[2, 256\], got 2 of \[12, 1536\]"):
        film.check()


def remembered(model: ModelPatcher, preset: str, **settings: str) -> ModelPatcher:
    (remembering,) = SparseKVMemory.execute(model, preset, 9, 3, "absolute", 21, **settings).args
    assert isinstance(remembering, ModelPatcher)
    return remembering


@pytest.mark.parametrize("preset", OPTIONS)
@pytest.mark.parametrize("form", GateForm)
def test_gates_are_used_by_the_preset_that_they_were_trained_for_and_by_custom(
    model: ModelPatcher, form: GateForm, preset: str
) -> None:
    gated_model, gates = model.clone(), lively_gates(form)
    bring_gates(gated_model, gates)
    used = used_gates(remembered(gated_model, preset))
    assert used is (gates if preset in (GATED_PRESETS[form], "custom") else None)
    assert used_gates(remembered(gated_model, preset, gates="off")) is None
    assert used_gates(remembered(model, preset)) is None


def test_a_later_memory_takes_back_what_an_earlier_one_gated(model: ModelPatcher) -> None:
    gated_model = model.clone()
    bring_gates(gated_model, lively_gates(GateForm.OMNIMEM))
    assert used_gates(remembered(remembered(gated_model, "OmniMem"), "window")) is None


def test_the_published_bank_takes_back_gates_with_the_search_that_they_were_for(model: ModelPatcher) -> None:
    gated_model = model.clone()
    bring_gates(gated_model, lively_gates(GateForm.OMNIMEM))
    searching = remembered(gated_model, "OmniMem")
    for preset, used in ((LONGREEL, True), (MEMFLOW, False)):
        made = PromptRetrievedMemoryBank.execute(searching, 3, 0.3, True, "", "", preset=preset).args[0]
        assert (used_gates(made) is not None) == used
    assert used_gates(searching) is not None


def load_checkpoint(file: str) -> ModelPatcher:
    loaded: ModelPatcher = comfy.sd.load_checkpoint_guess_config(file, output_vae=False, output_clip=False)[0]
    return loaded


@pytest.mark.parametrize("name", ["omnimem_gates", "g_proj"])
@pytest.mark.parametrize(
    ("load", "prefix"),
    [
        (comfy.sd.load_diffusion_model, ""),
        (comfy.sd.load_diffusion_model, "model.diffusion_model."),
        (load_checkpoint, "model.diffusion_model."),
    ],
    ids=["plain", "prefixed", "checkpoint"],
)
def test_gates_are_found_in_the_file_that_the_host_loaded(
    host: object, tmp_path: Path, name: str, load: Callable[[str], ModelPatcher], prefix: str
) -> None:
    gates, file = lively_gates(GateForm.OMNIMEM), tmp_path / "gated.safetensors"
    named = {key.replace("omnimem_gates", name): tensor for key, tensor in gates.named().items()}
    state = host_modules().new_wan(SPEC).state_dict() | named
    save_file({prefix + key: tensor.contiguous() for key, tensor in state.items()}, file)
    loaded = load(str(file))
    found = used_gates(remembered(loaded, "OmniMem"))
    assert found is not None
    assert torch.equal(found.weights, gates.weights)
    assert torch.equal(found.biases, gates.biases)
    assert used_gates(remembered(loaded, "DecMem")) is None


def test_tiny_weights_with_gates_are_a_model_that_brings_them(host: object) -> None:
    gates = lively_gates(GateForm.DECMEM)
    built = build_tiny_wan(weights=host_modules().new_wan(SPEC).state_dict() | gates.named())
    found = brought_gates(built)
    assert found is not None
    assert torch.equal(found.weights, gates.weights)
    assert brought_gates(build_tiny_wan(SPEC)) is None


@pytest.mark.parametrize("choice", FORMS)
def test_the_tiny_model_is_trained_for_the_memory_that_it_says(
    host: object, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = FORMS[choice]
    if form is not None:
        gates = fresh_gates(form, 4, 2, 256, torch.Generator().manual_seed(0))
        save_weights(gates.named(), tmp_path, f"gates_{form.value}")
        for shard in WEIGHTS_FOLDER.glob("tiny_wan*"):
            (tmp_path / shard.name).symlink_to(shard)
        monkeypatch.setattr(build, "WEIGHTS_FOLDER", tmp_path)
    brought = brought_gates(TinyStoryboardModel.execute(choice).args[0])
    assert (None if brought is None else brought.form) == form


def test_a_tiny_model_whose_gates_are_missing_says_how_they_are_made(
    host: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(
        ValueError, match=r"needs tiny_gates_decmem\.safetensors\. Train them with `longreel train tiny"
    ):
        TinyStoryboardModel.execute("DecMem")
