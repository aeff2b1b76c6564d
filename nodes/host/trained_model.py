"""Models that ComfyUI users have, as memory encoders are trained beside them: recognised and loaded by the host's own loaders.

A model stays frozen and in its own type; what is trained is in float32. Its layers are run again on the way back (gradient
checkpointing), so that of each only what goes in is kept.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...memory.encoded_history import History
from ...memory.training.adds_apart import AddsApart
from ...memory.training.encoder_family import EncoderFamily, Family
from .build import HostModules, host_modules
from .build_hunyuan import hunyuan_modules
from .encoder_model import WanHistory
from .history_family import HistoryFamily
from .hunyuan_history import HunyuanHistory
from .hunyuan_training import TrainedHunyuan, kept_apart, with_pooled

TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SUFFIXES = (".safetensors", ".sft")
_SLICES, _SLICE_BYTES = 16, 1 << 16


@dataclass(frozen=True, slots=True)
class TrainedKind:
    """A kind of published models beside which encoders are trained, and the files that belong to it.

    `image_model` is the host's own name for it, `layers` are what is run again on the way back, `vaes` the classes of its VAEs,
    `texts` tell the files of its text encoder by the weights, `prompt` makes one tensor `[W, C]` of words `[W, C]` and what the host
    gives beside them, `fps` is how many pictures a second its films have, by the channels of its latents. `files` names model, VAE and
    text encoder for an artist.
    """

    name: Family
    image_model: str
    history: HistoryFamily
    modules: Callable[[], HostModules]
    layers: Callable[[Any], Iterable[nn.Module]]
    vaes: tuple[type[nn.Module], ...]
    text: comfy.sd.CLIPType
    texts: tuple[Callable[[Mapping[str, Tensor]], bool], ...]
    prompt: Callable[[Tensor, Mapping[str, Any]], Tensor]
    fps: Mapping[int, int]
    files: tuple[str, str, str]


def _is_umt5(state: Mapping[str, Tensor]) -> bool:
    return comfy.sd.detect_te_model(state) is comfy.sd.TEModel.T5_XXL and "spiece_model" in state


def _is_clip_l(state: Mapping[str, Tensor]) -> bool:
    return comfy.sd.detect_te_model(state) is comfy.sd.TEModel.CLIP_L


def _is_llama3(state: Mapping[str, Tensor]) -> bool:
    return comfy.sd.detect_te_model(state) is comfy.sd.TEModel.LLAMA3_8


def _words_alone(words: Tensor, extras: Mapping[str, Any]) -> Tensor:
    return words


def _words_and_pooled(words: Tensor, extras: Mapping[str, Any]) -> Tensor:
    return with_pooled(words, extras["pooled_output"][0])


def _large_hunyuan() -> HostModules:
    return hunyuan_modules()._replace(family=TrainedHunyuan(kept_apart))


KINDS = (
    TrainedKind(
        name="wan",
        image_model="wan2.1",
        history=WanHistory(),
        modules=host_modules,
        layers=lambda network: network.blocks,
        vaes=(comfy.ldm.wan.vae.WanVAE, comfy.ldm.wan.vae2_2.WanVAE),
        text=comfy.sd.CLIPType.WAN,
        texts=(_is_umt5,),
        prompt=_words_alone,
        fps={16: 16, 48: 24},
        files=(
            "a Wan text-to-video model, such as wan2.1_t2v_1.3B_bf16.safetensors",
            "Wan's VAE, wan_2.1_vae.safetensors (wan2.2_vae.safetensors for Wan 2.2 5B)",
            "Wan's text encoder, such as umt5_xxl_fp16.safetensors",
        ),
    ),
    TrainedKind(
        name="hunyuan",
        image_model="hunyuan_video",
        history=HunyuanHistory(),
        modules=_large_hunyuan,
        layers=lambda network: (*network.double_blocks, *network.single_blocks),
        vaes=(comfy.ldm.models.autoencoder.AutoencoderKL,),
        text=comfy.sd.CLIPType.HUNYUAN_VIDEO,
        texts=(_is_clip_l, _is_llama3),
        prompt=_words_and_pooled,
        fps={16: 24},
        files=(
            "a HunyuanVideo text-to-video model, such as hunyuan_video_t2v_720p_bf16.safetensors",
            "HunyuanVideo's VAE, hunyuan_video_vae_bf16.safetensors",
            "HunyuanVideo's two text encoders, clip_l.safetensors and llava_llama3_fp16.safetensors",
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk that encoders can be trained for; `shell` is the host's model without numbers."""

    path: Path
    kind: TrainedKind
    shell: Any

    @property
    def name(self) -> str:
        """What the encoder's file calls it."""
        return self.path.stem

    @property
    def network(self) -> Any:
        """The host's network without numbers."""
        return self.shell.diffusion_model

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return self.kind.history.shape(self.network)[0]

    @property
    def channels(self) -> int:
        """Channels of its latents."""
        return int(self.shell.latent_format.latent_channels)

    @property
    def pixels(self) -> int:
        """Pixels that become one latent, each way."""
        return int(self.shell.latent_format.spacial_downscale_ratio)

    @property
    def layers(self) -> int:
        """How many layers read history."""
        return self.kind.history.layers(self.network)

    @property
    def fps(self) -> int:
        """Pictures of a second of its films."""
        return self.kind.fps[self.channels]


def recognise(path: Path) -> ModelFile:
    """What the model in this file is; reads no weights. Raises ValueError for one that encoders are not trained for here."""
    needed = " or ".join(kind.files[0] for kind in KINDS)
    state, metadata = _read("--model", path, needed)
    prefix = comfy.model_detection.unet_prefix_from_state_dict(state)
    state = comfy.utils.state_dict_prefix_replace(dict(state), {prefix: ""}, filter_keys=True) or state
    state, metadata = comfy.utils.convert_old_quants(state, "", metadata=metadata)
    try:
        config = comfy.model_detection.model_config_from_unet(state, "", metadata=metadata)
    except (KeyError, IndexError, TypeError) as error:  # the host takes some files for what they are not
        raise ValueError(
            f"--model needs {needed}, got {path}, which ComfyUI cannot read as a model ({error!r})."
        ) from error
    if config is None or config.unet_config.get("image_model") not in {kind.image_model for kind in KINDS}:
        got = "no model that ComfyUI knows" if config is None else f"a model of type {type(config).__name__}"
        raise ValueError(f"--model needs {needed}, got {path}: {got}. Name that file of models/diffusion_models.")
    if config.quant_config is not None or any(
        weight.is_floating_point() and weight.itemsize == 1 for weight in state.values()
    ):
        raise ValueError(
            f"--model needs weights of 16 or 32 bits, got {path}, whose weights are quantised. Take the bf16 or fp16 file of this "
            "model."
        )
    config.set_inference_dtype(torch.float32, None)
    shell = config.get_model(state, "", device=torch.device("meta"))
    patcher = comfy.model_patcher.ModelPatcher(shell, torch.device("cpu"), torch.device("cpu"))
    for kind in KINDS:
        if kind.history.knows(patcher):
            _, channels = kind.history.shape(shell.diffusion_model)
            if channels == shell.latent_format.latent_channels:
                return ModelFile(path, kind, shell)
    raise ValueError(
        f"--model needs {needed}, got {path}: a model of type {type(config).__name__}, which reads no encoder or takes pictures beside "
        "the film. Name the text-to-video model that it was made from."
    )


def load_network(file: ModelFile, dtype: torch.dtype) -> Any:
    """The host's network of this file in `dtype`, in ordinary memory."""
    patcher = comfy.sd.load_diffusion_model(str(file.path), model_options={"dtype": dtype}, disable_dynamic=True)
    return patcher.model.diffusion_model


def large_modules(file: ModelFile, dtype: torch.dtype, checkpoints: bool) -> HostModules:
    """What training needs from the host for a network of this kind in `dtype`."""
    modules = file.kind.modules()
    return modules._replace(family=LargeFamily(modules.family, file.kind.layers, dtype, checkpoints))


class LargeFamily:
    """A family as its large networks are trained: everything that goes in is cast to the network's `dtype`, the flow that comes out is
    float32, and where it `checkpoints`, layers keep nothing but what goes in."""

    def __init__(
        self, family: EncoderFamily, layers: Callable[[Any], Iterable[nn.Module]], dtype: torch.dtype, checkpoints: bool
    ) -> None:
        self._family, self._layers, self._dtype, self._checkpoints = family, layers, dtype, checkpoints

    @property
    def lora_targets(self) -> str:
        """See `EncoderFamily`."""
        return self._family.lora_targets

    def embedding(self, network: Any) -> nn.Module:
        """See `EncoderFamily`. Wan's is in float32 in every model, HunyuanVideo's in the model's own type."""
        return _InOwnType(self._family.embedding(network))

    def flow(self, network: Any, history: History | None, x: Tensor, levels: Tensor, text: Tensor) -> Tensor:
        """See `EncoderFamily`."""
        again = self._checkpoints and torch.is_grad_enabled()
        if history is not None and history.cross is not None:
            history = history._replace(cross=partial(_crossed, history.cross, again))
        with layers_for_training(self._layers(network), again) if torch.is_grad_enabled() else nullcontext():
            made = self._family.flow(network, history, x.to(self._dtype), levels, text.to(self._dtype))
        return made.to(x)


class _InOwnType(nn.Module):
    """A layer of the model's, given everything in the type of its own weights."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = layer
        self.weight: Tensor = layer.get_parameter("weight")
        self.bias: Tensor = layer.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self._layer(x.to(self.weight.dtype))
        return made


def _crossed(cross: Callable[[int, Tensor], Tensor], again: bool, layer: int, x: Tensor) -> Tensor:
    """What hidden states add to a layer: weights that are trained are float32, whatever the network is."""
    read: Tensor = checkpoint(cross, layer, x.float(), use_reentrant=False) if again else cross(layer, x.float())
    return read.to(x)


@contextmanager
def layers_for_training(layers: Iterable[nn.Module], again: bool) -> Iterator[None]:
    """Calls of these layers made here add to nothing that is there, and are run `again` on the way back.

    The layers themselves are wrapped, as the host's own training node does it: a replacement patch would call whichever layer the
    host's loop stood at last. HunyuanVideo's add to what they get and to what they keep, which the way back needs as it was.
    """
    wrapped: list[Any] = list(layers)
    for layer in wrapped:
        apart = partial(_adding_apart, layer.forward)
        layer.forward = partial(checkpoint, apart, use_reentrant=False, preserve_rng_state=False) if again else apart
    try:
        yield
    finally:
        for layer in wrapped:
            del layer.forward


def _adding_apart(layer: Callable[..., Any], *given: Any, **named: Any) -> Any:
    with AddsApart():
        return layer(*given, **named)


class ModelVae:
    """The VAE of a model. Raises ValueError for a file that is none, or another model's."""

    def __init__(self, path: Path, model: ModelFile) -> None:
        needed = model.kind.files[1]
        state, metadata = _read("--vae", path, needed)
        self._model, self._vae = model, comfy.sd.VAE(sd=state, metadata=metadata)
        fits = isinstance(self._vae.first_stage_model, model.kind.vaes) and self._vae.latent_dim == 3  # of videos
        if not fits or self._vae.latent_channels != model.channels:
            got = f"one of {self._vae.latent_channels} channels" if fits else "another, or none"
            raise ValueError(
                f"--vae needs {needed}, of {model.channels} channels, got {path}: {got}. Name the file of models/vae that belongs to "
                "the model."
            )

    def encode(self, video: Tensor) -> Tensor:
        """`[1, 3, 4 (T - 1) + 1, H, W]` in -1..1 to normalised latents `[1, C, T, h, w]` of 16 bits, as the model takes them."""
        made = self._vae.encode(video[0].movedim(0, -1).add(1).div_(2))
        latents: Tensor = self._model.shell.process_latent_in(made)
        return latents.half()


class ModelText:
    """The text encoder of a model, of one file or several in any order, loaded when the first prompt has to be embedded.

    Raises ValueError for too few or too many files, and for one that is none of it, or another model's.
    """

    def __init__(self, paths: Sequence[Path], kind: TrainedKind) -> None:
        needed, self._kind = kind.files[2], kind
        self._clip: comfy.sd.CLIP | None = None
        if len(paths) != len(kind.texts):
            raise ValueError(
                f"--text-encoder needs {needed}, each named with a --text-encoder of its own, got {len(paths)}: "
                f"{', '.join(map(str, paths))}. Name {len(kind.texts)}."
            )
        found: dict[int, Path] = {}
        for path in paths:
            state, _ = _read("--text-encoder", path, needed)
            known = [number for number, is_text in enumerate(kind.texts) if is_text(state)]
            if not known:
                raise ValueError(
                    f"--text-encoder needs {needed}, got {path}, which is another. Name that file of models/text_encoders."
                )
            if known[0] in found:
                raise ValueError(
                    f"--text-encoder needs {needed}, got {found[known[0]]} and {path}, which are of one kind. Name the other, too."
                )
            found[known[0]] = path
        self._paths = [found[number] for number in sorted(found)]

    @property
    def digest(self) -> str:
        """Stands for its files, in whichever order they were named."""
        return " ".join(file_digest(path) for path in self._paths)

    def embed(self, prompt: str) -> Tensor:
        """The prompt as `[W, C]`, filled up or cut as the model's text is; where the model reads one vector for all words, that is behind
        them."""
        if self._clip is None:
            self._clip = comfy.sd.load_clip([str(path) for path in self._paths], clip_type=self._kind.text)
        ((words, extras),) = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(prompt))
        return self._kind.prompt(words[0], extras).float().cpu()


def free_memory() -> None:
    """Let go of everything that the host still holds and nobody uses."""
    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()


def _read(option: str, path: Path, needed: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(
            f"{option} needs {needed}, got {path}, which is no .safetensors. Take the file that ComfyUI loads."
        )
    try:
        state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{option} needs {needed}, got {path}, which is damaged ('{str(error).splitlines()[0]}'). Fetch it again."
        ) from error
    return state, metadata


def file_digest(path: Path) -> str:
    """Sixteen digits that stand for a large file: of its size, and of slices of it from beginning to end."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SLICES):
            file.seek(max(0, size - _SLICE_BYTES) * number // (_SLICES - 1))
            digest.update(file.read(_SLICE_BYTES))
    return digest.hexdigest()[:16]
