"""What would fail later is refused at once: before a model is loaded or a file is written."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.k_diffusion.sampling
import comfy.model_management

from ..memory.project import check_project_name, finished_chunks
from .host.attach import adapter_for, memory_config, plan_memory, plan_moments, plan_session
from .host.conditioning import check_conditioning
from .host.encoder_check import check_encoder, check_prompts
from .host.page_tier import check_disk, check_page_room
from .host.streaming_decode import StreamingDecoder

if TYPE_CHECKING:
    from .film import Film

PATCH_PIXELS = 2  # latent rows and columns that all families join into a token
SIGMA_ROUNDING = 1e-4  # schedulers and the model's own table round the first level differently
NOISIEST_SHARE = 0.9  # chunks start from noise alone; below this the schedule was cut by a denoise under 1


def check_film(film: Film) -> None:
    """Raises ValueError for anything in the film that would fail later."""
    check_project_name(film.project)
    family = adapter_for(film.model)
    _check_options(film)
    needs = family.prompts(film.model)
    for number, conditioning in enumerate(film.storyboard.conditionings, start=1):
        check_conditioning(f"Shot {number}", conditioning, needs)
    check_conditioning("The negative prompt", film.storyboard.negative, needs)
    _check_size(film)
    _check_sigmas(film)
    _check_start(film)
    if film.vae is not None:
        if family.no_vae is not None:
            raise ValueError(family.no_vae)
        StreamingDecoder(film.vae)
    _check_memory(film)


def _check_options(film: Film) -> None:
    if film.model.model_options.get("context_handler") is not None:
        raise ValueError(
            "Context windows and memory cannot be combined: memory already bounds what is read. Remove the Context "
            "Windows node from the model's wire."
        )
    if type(film.model.model_options["transformer_options"].get("easycache")).__name__ == "LazyCacheHolder":
        raise ValueError(
            "LazyCache compares every step with the one before and stops where a new chunk begins. Remove the LazyCache node; "
            "EasyCache works."
        )
    if film.model.get_additional_models_with_key("multigpu"):
        raise ValueError("Memory lives on one GPU, but this model is spread over several. Remove the MultiGPU node.")
    if getattr(film.sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_ar_video:
        raise ValueError(
            "The sampler input needs one that makes a single chunk, got Sampler AR Video, which makes whole films "
            "itself. Leave the input empty: the Chunked AR Sampler does the same, with memory."
        )


def _check_size(film: Film) -> None:
    step = film.pixels_per_latent * PATCH_PIXELS
    for name, pixels in (("width", film.width), ("height", film.height)):
        if pixels % step or pixels < step:
            nearest = max(step, round(pixels / step) * step)
            raise ValueError(f"The {name} needs to be a multiple of {step}, got {pixels}. Use {nearest}.")


def _check_sigmas(film: Film) -> None:
    levels = film.sigmas.tolist()
    falling = all(high > low for high, low in pairwise(levels))
    noisiest = float(film.model.get_model_object("model_sampling").sigma_max)
    right = len(levels) > 1 and levels[-1] == 0 and falling
    if not right or not NOISIEST_SHARE * noisiest <= levels[0] <= noisiest + SIGMA_ROUNDING:
        raise ValueError(
            f"Sigmas need to fall from {noisiest:g} to 0, got {[round(level, 4) for level in levels]}. "
            "Connect Basic Scheduler ('simple', 4 steps, denoise 1) with this model to the sigmas input."
        )


def _check_start(film: Film) -> None:
    if film.start is None:
        return
    needed = (1, film.channels, 1, *film.latent_size)
    if tuple(film.start.shape) != needed:
        raise ValueError(
            f"The start image needs a video latent of one frame {list(needed)}, got {list(film.start.shape)}. "
            f"Scale one image to {film.width}x{film.height} and encode it with the VAE of this model."
        )


def _check_memory(film: Film) -> None:
    if film.encoder is None:
        _check_pages(film)
        return
    if memory_config(film.model) is not None:
        raise ValueError(
            "A memory encoder takes the place of Sparse KV Memory and the Prompt-Retrieved Memory Bank, got both on this "
            "model. Remove these nodes from the model's wire, or disconnect the encoder."
        )
    if any(film.moments.values()):
        raise ValueError(
            "A memory encoder tells of the film as a whole, so moments can be neither pinned nor vetoed. Take the lines 'pin' "
            "and 'veto' out of the storyboard, or disconnect the encoder and put Sparse KV Memory before the sampler."
        )
    check_prompts(film.model, film.encoder, (*film.storyboard.conditionings, film.storyboard.negative))
    check_encoder(film.model, film.encoder, film.plan.total_frames, film.latent_size, film.vae is not None)


def _check_pages(film: Film) -> None:
    sampler = film.film_sampler(None, None)
    session = plan_session(film.guider(), sampler)
    pinned = len(plan_moments(film.remembering, sampler).pinned)
    pins = f"unpin some of the {pinned} pinned latent frames, " if pinned else ""
    total = comfy.model_management.get_total_memory(film.model.load_device)
    if session.peak_bytes > total:
        raise ValueError(
            f"The memory of this film needs {session.peak_bytes / 2**30:.1f} GiB, but the device has "
            f"{total / 2**30:.1f} GiB. Take the preset 'window + sink' of Sparse KV Memory, turn its window, sink or "
            f"shortlist or the 'bank' of the Prompt-Retrieved Memory Bank down, {pins}or make the picture smaller."
        )
    check_page_room(session.host_bytes)


def check_selections(film: Film, folder: Path, settings: Mapping[str, Any]) -> int:
    """Bytes on disk that the lists of the chunks which are still to be made take at most; ValueError where they do not fit.

    `settings` tell whether the chunks in this folder are those of this film.
    """
    if not film.keep_selections or film.encoder is not None:
        return 0
    unmade = len(film.plan.chunks) - finished_chunks(folder, settings)
    sampler = film.film_sampler(None, None)
    memory = plan_memory(film.guider(), sampler)
    needed = unmade * memory.selection_bytes(sampler.model_calls(len(film.sigmas) - 1))
    if needed:
        check_disk(folder, needed, memory.host_bytes)
    return needed
