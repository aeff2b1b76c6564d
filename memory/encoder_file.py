"""Memory encoders on disk: safetensors that say what they are, and are believed only when all of it is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .encoder import MemoryEncoder
from .encoder_spec import EncoderSpec
from .whole_file import explained, whole_file

FORMAT, VERSION = "longreel memory encoder", "1"
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""What weights may be written in: not in types that torch only packs, such as those of four bits."""
_REMEDY = "Take a file that `longreel train encoder` wrote, or one that says it is a LongReel memory encoder."


def save_encoder(path: Path, spec: EncoderSpec, weights: Mapping[str, Tensor]) -> None:
    """Write an encoder, whole or not at all. Raises ProjectError where the disk refuses."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with explained(f"write into {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "version": VERSION, "spec": spec.to_json()})


def read_spec(path: Path) -> EncoderSpec:
    """What an encoder file says it is; reads no weights. Raises ValueError as `read_encoder` does."""
    spec, _ = _read(path, weights=False)
    return spec


def read_encoder(path: Path) -> tuple[EncoderSpec, dict[str, Tensor]]:
    """An encoder's spec and weights. Raises ValueError unless the file is one, with every weight there, fitting and finite."""
    return _read(path, weights=True)


def _read(path: Path, weights: bool) -> tuple[EncoderSpec, dict[str, Tensor]]:
    try:
        with explained(f"read {path}"), safe_open(path, framework="pt") as file:
            spec = _spec(path, file.metadata() or {})
            names = set(file.keys())
            _check_shapes(path, spec, {name: tuple(file.get_slice(name).get_shape()) for name in names})
            loaded = {name: file.get_tensor(name) for name in sorted(names)} if weights else {}
    except SafetensorError as error:
        raise ValueError(f"{path.name} needs to be a safetensors file, got '{error}'. {_REMEDY}") from error
    if odd := odd_weight(loaded):
        raise ValueError(
            f"The weights of {path.name} need to be finite numbers, but {odd} has others: the "
            "training that made it went wrong, or the file is damaged. Fetch it again, or take another one."
        )
    return spec, loaded


def odd_weight(weights: Mapping[str, Tensor]) -> str | None:
    """The first of these weights that is not finite numbers, and its type; None where all are."""
    for name, tensor in weights.items():
        if tensor.dtype not in NUMBERS or not torch.isfinite(tensor.float()).all():
            return f"{name} ({tensor.dtype})"
    return None


def _spec(path: Path, metadata: Mapping[str, str]) -> EncoderSpec:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path.name} does not say that it is a LongReel memory encoder. {_REMEDY}")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path.name} needs to be a memory encoder of version {VERSION}, got {metadata.get('version')!r:.20}. Update "
            "LongReel, or take another file."
        )
    try:
        return EncoderSpec.from_json(metadata.get("spec", ""))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path.name} describes an encoder that cannot be: {error} {_REMEDY}") from error


def _check_shapes(path: Path, spec: EncoderSpec, found: Mapping[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        needed = {name: tuple(tensor.shape) for name, tensor in MemoryEncoder(spec).state_dict().items()}
    missing, strange = sorted(needed.keys() - found.keys()), sorted(found.keys() - needed.keys())
    if missing or strange:
        what = f"without {missing[0]}" if missing else f"with {strange[0]}, which no encoder has"
        raise ValueError(
            f"{path.name} needs the {len(needed)} weights of a {spec.rate} encoder, got {len(found)} {what}. {_REMEDY}"
        )
    for name, shape in needed.items():
        if found[name] != shape:
            raise ValueError(
                f"{path.name} says that it is for a model of width {spec.width}, so {name} needs the shape {list(shape)}, "
                f"got {list(found[name])}. {_REMEDY}"
            )
