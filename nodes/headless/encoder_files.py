"""What a training of memory encoders leaves in its folder: one encoder or two, and the LoRA that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ...memory.encoder_spec import EncoderSpec
    from ...memory.training.encoder_chain import Encoders
    from ...memory.training.encoder_settings import EncoderTraining

ENCODER_FILE, BESIDE_FILE, LORA_FILE = "encoder.safetensors", "encoder_beside.safetensors", "encoder_lora.safetensors"


class EncoderOnDisk(NamedTuple):
    """An encoder's file, what it says that it is, and how many of the newest latent frames it was trained to tell; None is all."""

    path: Path
    spec: EncoderSpec
    longest_frames: int | None = None


def encoders_in(folder: Path) -> list[EncoderOnDisk]:
    """The encoders that a training left here, in the order in which a film reads them; none where there is no encoder.

    One beside the first counts only where the first says that it was trained so: it may be left of an earlier training. Raises
    ValueError for a file that is no encoder.
    """
    from ...memory.encoder_file import read_spec
    from ...memory.training.encoder_chain import BESIDE, REACH

    first, second = folder / ENCODER_FILE, folder / BESIDE_FILE
    if not first.is_file():
        return []
    found = [EncoderOnDisk(first, read_spec(first))]
    if BESIDE in found[0].spec.trained and second.is_file():
        spec = read_spec(second)
        reach = spec.trained.get(REACH)
        found.append(EncoderOnDisk(second, spec, reach if type(reach) is int and reach > 0 else None))
    return found


def read_encoders(files: list[EncoderOnDisk]) -> Encoders:
    """Those encoders with their weights, to be read and not to be trained."""
    from ...memory.encoder import MemoryEncoder
    from ...memory.encoder_file import read_encoder
    from ...memory.training.encoder_chain import EncoderChain

    encoders = []
    for path, spec, _ in files:
        encoder = MemoryEncoder(spec).requires_grad_(False)
        encoder.load_state_dict(read_encoder(path)[1])
        encoders.append(encoder)
    return encoders[0] if len(files) == 1 else EncoderChain(encoders, [longest for _, _, longest in files])


def with_small_videos(encoders: Encoders, modules: Any, out: Path, chunk_frames: int) -> Encoders:
    """The encoders, and what makes smaller videos of films that go on by so many frames where one of them looks at those."""
    from ...memory.training.encoder_chain import EncoderChain, tellers_of
    from ...memory.training.small_video_codec import SmallVideoCodec
    from .train import tiny_vae

    tellers = tellers_of(encoders)
    if not any(teller.encoder.spec.looks_at_pictures for teller in tellers):
        return encoders
    small = SmallVideoCodec(tiny_vae(modules, out), modules.latent_mean, modules.latent_std, chunk_frames)
    return EncoderChain([teller.encoder for teller in tellers], [teller.longest_frames for teller in tellers], small)


def save_encoders(out: Path, config: EncoderTraining, network: Any, encoders: Encoders) -> list[Path]:
    """Write the encoders, with what is worth knowing of this training, and the adapters; the files of the encoders."""
    from ...memory.encoder_file import save_encoder
    from ...memory.training.encoder_chain import tellers_of, trained_specs
    from ...memory.training.lora import save_lora

    specs = trained_specs(encoders, config)
    files = [out / name for name in (ENCODER_FILE, BESIDE_FILE)[: len(specs)]]
    for path, teller, spec in zip(files, tellers_of(encoders), specs, strict=True):
        save_encoder(path, spec, teller.encoder.state_dict())
    save_lora(out / LORA_FILE, network)
    return files
