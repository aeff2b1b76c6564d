"""Memory encoders in the host: loaded as one of its models, and put beside a bidirectional Wan for one film."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...memory.committed_history import Commits
from ...memory.cross_attention import CrossReader
from ...memory.encoded_history import (
    EncodedHistory,
    FilmEncoder,
    History,
    HistoryConfig,
)
from ...memory.encoder import MemoryEncoder
from ...memory.encoder_file import read_encoder
from ...memory.encoder_spec import PATCH, EncoderSpec
from ...memory.history_session import HistorySession, Reading
from ...memory.packed_encoder import PackedEncoder, PackedSpec, TokenSpec, is_packed, read_packed
from ...memory.small_video import small_pictures
from .committed_history import at_film_time, commit_waiting
from .film_sampler import FilmSampler
from .guider import FilmGuider
from .history_family import HistoryFamily, check_alone
from .hunyuan_history import HunyuanHistory
from .kept_history import keeping, reading
from .keys import HISTORY, PACK
from .wan_history import OTHER_TOKENS, with_history

ENCODER = "longreel_encoder"
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A memory encoder as the host keeps models, how much of a film it is to tell, and what it is called.

    The film is told by those `beside` it, too, each as far back as its own `config` says; their windows do not count. `reading` says
    how often the model reads history.
    """

    spec: TokenSpec
    patcher: ModelPatcher
    config: HistoryConfig
    name: str = ""
    beside: LoadedEncoder | None = None
    reading: Reading = Reading.EVERY_STEP

    @property
    def all(self) -> tuple[LoadedEncoder, ...]:
        """This encoder and those beside it."""
        return (self, *(() if self.beside is None else self.beside.all))

    @property
    def cross(self) -> Callable[[Tensor], CrossReader] | None:
        """What reads the encoder's hidden states in every layer, if anything does."""
        module = self.patcher.model
        cross = module.cross if isinstance(module, MemoryEncoder) else None
        return None if cross is None else cross.reader


def load_encoder(path: Path, config: HistoryConfig, dtype: torch.dtype | None = None) -> LoadedEncoder:
    """The encoder in this file, on the host's offload device; `dtype` None is what suits the device.

    Raises ValueError, and loads nothing, unless the file is an encoder, or has FramePack's embeddings, with every weight there,
    fitting and finite.
    """
    if is_packed(path):
        packed, weights = read_packed(path)
        return _loaded(packed, PackedEncoder, weights, config, dtype, path.stem)
    return encoder_of(*read_encoder(path), config, dtype, path.stem)


def encoder_of(
    spec: EncoderSpec,
    weights: Mapping[str, Tensor],
    config: HistoryConfig,
    dtype: torch.dtype | None = None,
    name: str = "",
) -> LoadedEncoder:
    """An encoder of these weights as the host keeps models."""
    return _loaded(spec, MemoryEncoder, weights, config, dtype, name)


def _loaded(
    spec: TokenSpec,
    kind: Callable[..., nn.Module],
    weights: Mapping[str, Tensor],
    config: HistoryConfig,
    dtype: torch.dtype | None,
    name: str,
) -> LoadedEncoder:
    device = comfy.model_management.get_torch_device()
    if dtype is None:
        dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    offload = comfy.model_management.unet_offload_device()
    module = kind(spec, comfy.ops.manual_cast, device=offload, dtype=dtype)
    patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=device, offload_device=offload)
    state = {name: tensor.to(dtype) for name, tensor in weights.items()}
    module.load_state_dict(state, assign=patcher.is_dynamic())
    comfy.model_management.archive_model_dtypes(module)
    module.eval().requires_grad_(False)
    return LoadedEncoder(spec, patcher, config, name)


def made_for(spec: TokenSpec) -> str:
    """The model that an encoder was made with, in brackets, where it says so."""
    return f" ({spec.base})" if spec.base else ""


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What the model computes in."""
    dtype: torch.dtype = model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
    return dtype


def family_of(model: ModelPatcher, encoder: LoadedEncoder) -> HistoryFamily:
    """The family that reads this encoder's tokens. Raises ValueError for a model of none."""
    for family in FAMILIES:
        if family.knows(model):
            return family
    raise ValueError(
        f"A memory encoder needs an ordinary {' or '.join(family.name for family in FAMILIES)} model, got "
        f"{type(model.model).__name__}: causal checkpoints and other families remember through Sparse KV Memory. Disconnect "
        f"the encoder, or load the model that it was made for{made_for(encoder.spec)}."
    )


def attach_encoder(model: ModelPatcher, encoder: LoadedEncoder, vae: comfy.sd.VAE | None = None) -> ModelPatcher:
    """A clone of the model that reads the film so far through `encoder` and those beside it when the Chunked AR Sampler runs it.

    `vae` makes the small copy of the film for encoders that look at one. Raises ValueError for a model that reads no history.
    """
    family = family_of(model, encoder)
    clone = model.clone()
    clone.set_additional_models(ENCODER, [each.patcher for each in encoder.all])
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _HistoryOfRun(encoder, family, vae).around_run),
        (WrappersMP.PREPARE_SAMPLING, _with_longer_sequence),
        (WrappersMP.DIFFUSION_MODEL, family.with_tokens),
    ):
        clone.remove_wrappers_with_key(kind, PACK)
        clone.add_wrapper_with_key(kind, PACK, wrapper)
    return clone


class _HistoryOfRun:
    """Gives every run of the Chunked AR Sampler a history of its own."""

    def __init__(self, encoder: LoadedEncoder, family: HistoryFamily, vae: comfy.sd.VAE | None) -> None:
        self._encoder, self._family, self._vae = encoder, family, vae

    def around_run(
        self, executor: Callable[..., Any], noise: Any, latent: Any, sampler: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """OUTER_SAMPLE: the history is made for this run and dropped at its end; other samplers run untouched."""
        if not isinstance(sampler, FilmSampler):
            return executor(noise, latent, sampler, *args, **kwargs)
        guider: Any = executor.class_obj  # type: ignore[attr-defined]
        dtype = compute_dtype(guider.model_patcher)
        encoders = [
            FilmEncoder(
                each.spec,
                each.spec.reach(each.config.longest_frames),
                partial(self._encode, each, guider, dtype),
                each.cross,
            )
            for each in self._encoder.all
        ]
        history = EncodedHistory(
            encoders,
            self._encoder.config.window_frames,
            partial(self._embed_frames, guider, dtype),
            Commits() if self._encoder.reading is Reading.ONCE_A_FILM else None,
        )
        rows, columns = (count // PATCH for count in sampler.latent_size)
        network = guider.model_patcher.get_model_object("diffusion_model")
        session = HistorySession(
            history,
            history.most_tokens(sampler.plan.total_frames, *sampler.latent_size),
            self._family.shape(network)[0] + max(each.spec.hidden_width for each in self._encoder.all),
            rows * columns,
            dtype,
            0 if self._encoder.reading is Reading.EVERY_STEP else self._family.layers(network),
        )
        before = guider.model_options
        guider.model_options = create_model_options_clone(before)
        guider.model_options["transformer_options"][HISTORY] = session
        try:
            return executor(noise, latent, sampler, *args, **kwargs)
        finally:
            guider.model_options = before

    @torch.no_grad()
    def _encode(self, encoder: LoadedEncoder, guider: FilmGuider, dtype: torch.dtype, latents: Tensor) -> Tensor:
        """Latents as the sampler works on them `[1, C, T, H, W]`, to tokens `[1, M, width]`, hidden states behind them."""
        spec, module = encoder.spec, encoder.patcher.model
        if isinstance(spec, PackedSpec):
            packed: Tensor = module(latents)
            return packed.to(dtype)
        low = self._small_video(spec, guider, latents) if spec.looks_at_pictures else None
        tokens: Tensor = module.told(latents, partial(self._embed, guider, dtype), low)
        return tokens.to(dtype)

    def _small_video(self, spec: EncoderSpec, guider: FilmGuider, latents: Tensor) -> Tensor:
        """Latents of the pictures at a fraction of their size and rate, through the VAE and back."""
        assert self._vae is not None
        size = spec.low_size(*latents.shape[2:])
        pictures = self._vae.decode(guider.inner_model.process_latent_out(latents))[0]  # [F, H, W, 3]
        small = small_pictures(pictures, size, self._vae.spacial_compression_encode())
        made: Tensor = guider.inner_model.process_latent_in(self._vae.encode(small))
        guider.reload()
        return made.to(latents)

    def _embed(self, guider: FilmGuider, dtype: torch.dtype, latents: Tensor) -> Tensor:
        return self._family.embed(guider.inner_model.diffusion_model, latents, dtype)

    @torch.no_grad()
    def _embed_frames(self, guider: FilmGuider, dtype: torch.dtype, latents: Tensor) -> Tensor:
        """Whole frames `[1, C, T, H, W]` as tokens `[1, M, width]`."""
        return self._embed(guider, dtype, latents.to(dtype)).flatten(2).transpose(1, 2).to(dtype)


def _with_longer_sequence(
    executor: Callable[..., Any], model: ModelPatcher, noise_shape: Any, *args: Any, **kwargs: Any
) -> Any:
    """PREPARE_SAMPLING: the host reckons with the tokens of history as with more frames, and what is to be kept of it is not free."""
    session: HistorySession | None = kwargs["model_options"]["transformer_options"].get(HISTORY)
    if session is None:
        return executor(model, noise_shape, *args, **kwargs)
    batch, channels, frames, *size = noise_shape
    longer = [batch, channels, frames + -(-session.tokens // session.frame_tokens), *size]
    if not session.kept_layers:
        return executor(model, longer, *args, **kwargs)
    # The host fills what is free with weights.
    needed = session.coming_bytes + comfy.model_management.minimum_inference_memory()
    comfy.model_management.free_memory(needed, model.load_device)
    room = session.room(model.load_device)
    try:
        return executor(model, longer, *args, **kwargs)
    finally:
        del room


def _with_tokens(
    executor: Callable[..., Any],
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Any = None,
    time_dim_concat: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """DIFFUSION_MODEL: history joins the sequence of this call; without any the call stays as it is."""
    options = {} if transformer_options is None else transformer_options
    session: HistorySession | None = options.get(HISTORY)
    if session is not None:
        check_alone({**kwargs, "time_dim_concat": time_dim_concat}, OTHER_TOKENS)
        if session.history.current is not None:
            network = executor.class_obj  # type: ignore[attr-defined]
            if session.history.commits is not None:
                commit_waiting(executor, network, session.history.commits, x, options)
            options = _reading(session, session.history.current, network, x, options)
    return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)


def _reading(
    session: HistorySession, history: History, network: Any, x: Tensor, options: dict[str, Any]
) -> dict[str, Any]:
    if not session.kept_layers:
        return with_history(network, history, options)
    commits = session.history.commits
    if commits is not None:
        return reading(at_film_time(network, commits.film, x, options), history.counts, commits.read(commits.current))
    kept = session.kept(history)
    if len(kept) < session.kept_layers:
        kept.clear()
        return with_history(network, history, keeping(options, history, kept))
    return reading(options, history.counts, kept)


class WanHistory:
    """Wan text-to-video reads history.

    It stands here because the name of its wrapper is among the settings by which a film on disk knows its model.
    """

    name = "Wan text-to-video"
    shows_pictures = True
    reads_once = True
    reads_hidden = True
    with_tokens = staticmethod(_with_tokens)

    def knows(self, model: ModelPatcher) -> bool:
        """Whether it is one of the plain classes; causal ones and variants are others."""
        plain = type(model.model) in (comfy.model_base.WAN21, comfy.model_base.WAN22)
        return plain and type(model.get_model_object("diffusion_model")) is comfy.ldm.wan.model.WanModel

    def shape(self, network: Any) -> tuple[int, int]:
        """Width and channels."""
        return network.dim, network.in_dim

    def layers(self, network: Any) -> int:
        """How many there are."""
        return len(network.blocks)

    def embed(self, network: Any, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """The host computes this embedding in float32."""
        embedded: Tensor = network.patch_embedding(latents.float())
        return embedded


FAMILIES: tuple[HistoryFamily, ...] = (WanHistory(), HunyuanHistory())
