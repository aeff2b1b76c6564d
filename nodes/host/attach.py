"""Memory on a model: settings that travel with the clone, and a session that lives for one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...memory.config import MemoryConfig
from ...memory.film_moments import Marks, Moments, find_moments
from ...memory.kv_memory import KVMemory
from ...memory.prompt_affinity import real_tokens
from ...memory.session import RunSession
from ...memory.story import Story, make_story
from .adapter import HostAdapter, choose_adapter
from .film_sampler import FilmSampler
from .gates import used_gates
from .guider import FilmGuider
from .hunyuan_video import HunyuanVideoAdapter
from .kandinsky import KandinskyAdapter
from .keys import PACK, SESSION, SETTINGS
from .page_tier import fits_in_ram, page_folder
from .wan import WanAdapter

ADAPTERS: tuple[HostAdapter, ...] = (WanAdapter(), HunyuanVideoAdapter(), KandinskyAdapter())


def adapter_for(model: ModelPatcher) -> HostAdapter:
    """The family of the model; ValueError names every family with its reason."""
    return choose_adapter(model, ADAPTERS)


def attach_memory(model: ModelPatcher, config: MemoryConfig) -> ModelPatcher:
    """A clone of the model that remembers as `config` says when the Chunked AR Sampler runs it.

    Raises ValueError when the model has no supported attention or another pack holds it.
    """
    clone = model.clone()
    adapter_for(clone).attach(clone)
    clone.model_options["transformer_options"][SETTINGS] = config
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, _with_session), (WrappersMP.PREPARE_SAMPLING, _with_memory)):
        clone.remove_wrappers_with_key(kind, PACK)
        clone.add_wrapper_with_key(kind, PACK, wrapper)
    return clone


def memory_config(model: ModelPatcher) -> MemoryConfig | None:
    """Settings that `attach_memory` left on the model, or None."""
    config: MemoryConfig | None = model.model_options["transformer_options"].get(SETTINGS)
    return config


def _with_session(
    executor: Callable[..., Any], noise: Any, latent: Any, sampler: Any, *args: Any, **kwargs: Any
) -> Any:
    """OUTER_SAMPLE: the session is made for this run and dropped at its end; other samplers run untouched."""
    if not isinstance(sampler, FilmSampler):
        return executor(noise, latent, sampler, *args, **kwargs)
    guider: Any = executor.class_obj  # type: ignore[attr-defined]
    # For prompts with hooks the host takes a copy of a model with dynamic VRAM: its layers are others.
    adapter_for(guider.model_patcher).attach(guider.model_patcher)
    session = plan_session(guider, sampler)
    session.story = plan_story(guider, sampler)
    before = guider.model_options
    guider.model_options = create_model_options_clone(before)
    with ExitStack() as closing:
        if not fits_in_ram(session.host_bytes):
            session.folder = Path(closing.enter_context(page_folder()))
        guider.model_options["transformer_options"][SESSION] = session
        try:
            return executor(noise, latent, sampler, *args, **kwargs)
        finally:
            guider.model_options = before
            session.memory.release()
            session.forget_text()


def _with_memory(executor: Callable[..., Any], model: ModelPatcher, *args: Any, **kwargs: Any) -> Any:
    """PREPARE_SAMPLING: room is made for the memory and taken before the host measures what is free."""
    session = kwargs["model_options"]["transformer_options"].get(SESSION)
    if session is not None and not session.memory.allocated:
        device = model.load_device
        needed = session.peak_bytes + comfy.model_management.minimum_inference_memory()
        comfy.model_management.free_memory(needed, device)
        session.memory.allocate(session.folder)
        session.gates = None if session.gates is None else session.gates.to(device)
    return executor(model, *args, **kwargs)


def default_memory(model: ModelPatcher) -> MemoryConfig:
    """The memory of a model before which there is no Sparse KV Memory."""
    return MemoryConfig(positions=adapter_for(model).positions)


def plan_session(guider: FilmGuider, sampler: FilmSampler) -> RunSession:
    """The run of this film on the guider's model, nothing of it allocated, its pages in RAM, and without the film's story.

    Raises ValueError as `plan_memory` does.
    """
    memory, model = plan_memory(guider, sampler), guider.model_patcher
    kept_text = guider.text_tokens if adapter_for(model).keeps_text else 0
    return RunSession(memory, kept_text, sampler.reaches, used_gates(model))


def plan_memory(guider: FilmGuider, sampler: FilmSampler) -> KVMemory:
    """The memory that this film needs on the guider's model, planned but not allocated.

    Raises ValueError where the model has none, and for gates, prompts and scorers that it cannot be read with.
    """
    model: ModelPatcher = guider.model_patcher
    config = memory_config(model)
    if config is None:
        raise ValueError("The Chunked AR Sampler needs a model with memory. Put Sparse KV Memory before it.")
    plan, adapter = sampler.plan, adapter_for(model)
    spec = adapter.kv_spec(model, *sampler.latent_size)
    pinned = plan_moments(model, sampler).pinned
    gates = used_gates(model)
    if gates is not None:
        gates.check(spec)
    memory = KVMemory(
        spec,
        config,
        guider.streams,
        plan.longest_chunk,
        plan.total_frames,
        pinned,
        guider.longest_prompt,
        words=guider.longest_prompt if adapter.joins_text else 0,
        tallied=sampler.tallied,
        keep_selections=sampler.keep_selections,
        gates=None if gates is None else gates.form,
    )
    refusal = None if memory.record is None else adapter.text_refusal(model)
    if memory.record is not None and refusal is not None:
        raise ValueError(
            f"The scorer '{memory.record.scorer.value}' needs the model's cross-attention, but {refusal}, or take the scorer "
            "'late interaction' of the Prompt-Retrieved Memory Bank."
        )
    if adapter.joins_text and memory.bank is not None and guider.masked_prompt:
        raise ValueError(
            "A memory that searches the film needs prompts without an attention mask. Encode them with the Storyboard and "
            "ComfyUI's own text encoder, or take the preset 'window + sink' of Sparse KV Memory."
        )
    memory.time_scale = adapter.time_scale(model)
    return memory


def plan_moments(model: ModelPatcher, sampler: FilmSampler) -> Moments:
    """Pinned and vetoed frames of this film, the storyboard's and the prompt bank's; ValueError where they make no sense."""
    return find_moments(sampler.plan, sampler.fps, *film_marks(model, sampler))


def film_marks(model: ModelPatcher, sampler: FilmSampler) -> tuple[Marks, ...]:
    """Pins and vetoes as they were written in the storyboard and the prompt bank."""
    config = memory_config(model)
    if config is None or config.prompt_bank is None:
        return (sampler.marks,)
    bank = config.prompt_bank
    return sampler.marks, Marks("of the Prompt-Retrieved Memory Bank", bank.pins, bank.vetoes)


def plan_story(guider: FilmGuider, sampler: FilmSampler) -> Story:
    """What this film's prompts say about its frames, where its memory listens to them, and what is pinned and vetoed."""
    config = memory_config(guider.model_patcher)
    bank = None if config is None else config.prompt_bank
    moments = plan_moments(guider.model_patcher, sampler)

    def text_keys(prompt: int) -> Tensor:
        tokens = guider.prompts[prompt]
        model = guider.inner_model
        words = tokens[real_tokens(tokens).to(tokens.device)]
        words = words.to(guider.model_patcher.load_device, model.get_dtype_inference())
        return adapter_for(guider.model_patcher).text_keys(model.diffusion_model, words)

    return make_story(sampler.plan, guider.prompts, sampler.cast, moments, bank, text_keys)
