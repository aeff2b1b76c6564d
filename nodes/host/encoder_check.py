"""Which model a memory encoder fits, told to an artist, and whether it fits the one at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ...memory.encoded_history import most_tokens
from ...memory.encoder_spec import Modulation
from ...memory.history_session import Reading, history_bytes
from ...memory.packed_encoder import TokenSpec
from .encoder_model import LoadedEncoder, compute_dtype, family_of, made_for
from .history_family import HistoryFamily, check_alone

MODELS = {
    (1536, 16): "Wan 2.1 1.3B",
    (5120, 16): "Wan 2.1 14B and Wan 2.2 14B",
    (3072, 48): "Wan 2.2 5B",
    (3072, 16): "HunyuanVideo",
    (256, 16): "the tiny model that comes with LongReel",
}
"""Models by their width and the channels of their latents."""


def fits(encoder: LoadedEncoder) -> str:
    """What an artist wants to know of an encoder: for which model it is, how much it compresses, how it was made, and what
    tells the film beside it."""
    spec = encoder.spec
    model = MODELS.get((spec.width, spec.channels), f"a model of width {spec.width} with {spec.channels} channels")
    lines = [
        "fits any Wan or HunyuanVideo, untrained" if spec.fits_any else f"fits {model}",
        spec.in_words,
    ]
    if spec.cross_layers:
        lines.append(f"needs a Wan of {spec.cross_layers} layers, which all read it in every step")
    if spec.base:
        lines.append(f"made for {spec.base}")
    lines += [f"{name}: {fact}" for name, fact in sorted(spec.trained.items())]
    for other in encoder.all[1:]:
        longest = other.spec.reach(other.config.longest_frames)
        told = "the whole film" if longest is None else f"the newest {longest} frames"
        lines.append(f"beside it {other.name} {other.spec.kind}: {told}")
    return "\n".join(lines)


def check_encoder(
    model: ModelPatcher, encoder: LoadedEncoder, film_frames: int, size: tuple[int, int], has_vae: bool
) -> None:
    """Raises ValueError unless this encoder and those beside it can tell this model of a film of so many latent frames of this
    size, and the card has room for it."""
    family, network = family_of(model, encoder), model.get_model_object("diffusion_model")
    found = family.shape(network)
    for each in encoder.all:
        _check_fits(each, family, found, size, has_vae)
        _check_cross(each, family, family.layers(network))
        if encoder.reading is not Reading.EVERY_STEP:
            _check_read_once(each, family)
    told = [(each.spec, each.spec.reach(each.config.longest_frames)) for each in encoder.all]
    tokens = most_tokens(told, encoder.config.window_frames, film_frames, *size)
    anew = encoder.reading is Reading.EVERY_STEP
    layers = 0 if anew else family.layers(network)
    needed = history_bytes(tokens, found[0], encoder.hidden_width, compute_dtype(model), layers)
    total = comfy.model_management.get_total_memory(model.load_device)
    if needed > total:
        switch = "set its 'reading' to 'every step', "
        raise ValueError(
            f"History of {tokens} tokens needs {needed / 2**30:.1f} GiB, but the device has {total / 2**30:.1f} GiB. Turn the "
            f"'history' or the 'window' of the Memory Encoder Loader down, {'' if anew else switch}or take an encoder that makes fewer "
            "tokens."
        )


def check_prompts(model: ModelPatcher, encoder: LoadedEncoder, prompts: Iterable[Sequence[Any]]) -> None:
    """Raises ValueError where one of these CONDITIONINGs brings what this model's history cannot be read beside."""
    family = family_of(model, encoder)
    for _, extras in chain.from_iterable(prompts):
        check_alone(extras, family.others)
        if extras.get("hooks") is not None and encoder.reading is not Reading.EVERY_STEP:
            raise ValueError(
                f"History that is read {encoder.reading.value} cannot be combined with a LoRA on a prompt, under which it would be "
                "read differently. Set 'reading' of the Memory Encoder Loader to 'every step', or put the LoRA on the model."
            )


def _check_fits(
    encoder: LoadedEncoder, family: HistoryFamily, found: tuple[int, int], size: tuple[int, int], has_vae: bool
) -> None:
    spec, name = encoder.spec, encoder.name
    needed = (spec.width, spec.channels)
    if found != needed and not spec.fits_any:
        raise ValueError(
            f"The memory encoder {name} needs a model of width {needed[0]} with {needed[1]} channels{made_for(spec)}, got one "
            f"of width {found[0]} with {found[1]}. Load that model, or another encoder."
        )
    if min(size) < spec.least_size:
        raise ValueError(
            f"The memory encoder {name} of rate {spec.kind} needs a picture of at least {spec.least_size} latents each way, got "
            f"{size[0]} x {size[1]}. Make the film larger."
        )
    if spec.looks_at_pictures and not family.shows_pictures:
        raise ValueError(
            f"The memory encoder {name} looks at a small copy of the film's pictures, which the VAE of {family.name} cannot "
            "make before the film is finished. Take an encoder that looks at latents."
        )
    if spec.looks_at_pictures and not has_vae:
        raise ValueError(
            f"The memory encoder {name} looks at a small copy of the film's pictures and needs the VAE for it. Connect the "
            "VAE to the Chunked AR Sampler."
        )


def _check_cross(encoder: LoadedEncoder, family: HistoryFamily, layers: int) -> None:
    spec, name = encoder.spec, encoder.name
    if spec.cross_layers and not family.reads_hidden:
        raise ValueError(
            f"The memory encoder {name} has cross-attention in every layer of its model, which {family.name} does not read. Take an "
            "encoder without it, or the Wan model that it was made for."
        )
    if spec.cross_layers not in (0, layers):
        raise ValueError(
            f"The memory encoder {name} needs a model of {spec.cross_layers} layers{made_for(spec)}, got one of {layers}. Load that "
            "model, or another encoder."
        )


def reads_once(spec: TokenSpec) -> bool:
    """Whether history that looks at itself alone is the same in every step: clean, with prompts of its own, and tokens all of it."""
    return spec.modulation is Modulation.CLEAN and spec.own_prompts and not spec.cross_layers


def _check_read_once(encoder: LoadedEncoder, family: HistoryFamily) -> None:
    spec, switch = encoder.spec, "Set 'reading' of the Memory Encoder Loader to 'every step'"
    if not family.reads_once:
        raise ValueError(
            f"{family.name} reads history anew in every step, because its words and its picture are one sequence. {switch}."
        )
    if spec.cross_layers:
        raise ValueError(
            f"The memory encoder {encoder.name} has to be read anew in every step: all layers read its hidden states. {switch}, or "
            "take an encoder without cross-attention."
        )
    if not reads_once(spec):
        raise ValueError(
            f"The memory encoder {encoder.name} has to be read anew in every step: its tokens change with the noise level or with "
            f"the newest prompt. {switch}, or take an encoder that was trained to read the prompts of its own shots."
        )
