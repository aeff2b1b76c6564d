"""Records what the tiny model's heads ask and keep at the end of a film. Import it after `boot_host`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...kernels.bench.recorded import Recording, turned
from ...kernels.page_copy import time_rotation
from ...memory.chunks import plan_chunks
from ...memory.config import MemoryConfig
from ...memory.training.recall import SAMPLING_STEPS, recall_film
from ...memory.training.tiny_vae import FIRST_TEST_SEED
from ..host.attach import attach_memory
from ..host.film_sampler import SeededNoise
from ..host.wan import time_channels
from .bench_recall import LATENT_SIZE, TinyModel

CHUNKS, CHUNK_FRAMES, CHARACTERS = 12, 3, 5
LAYERS = (1, 3)  # those that were taught to read
STEPS = (0, SAMPLING_STEPS - 1, SAMPLING_STEPS)  # the first, the last, and the commit
ROWS, COLUMNS = (size // 2 for size in LATENT_SIZE)
PARTS = ("norm_q", "norm_k", "v")


class Ears:
    """Hears what the parts of some layers' self-attention give, call after call."""

    def __init__(self, network: nn.Module) -> None:
        """Listens until `close`."""
        self.heard: dict[tuple[int, str], list[Tensor]] = {(layer, part): [] for layer in LAYERS for part in PARTS}
        layers = network.get_submodule("blocks")
        self._hooks = [
            layers.get_submodule(f"{layer}.self_attn.{part}").register_forward_hook(self._hear(layer, part))
            for layer, part in self.heard
        ]

    def _hear(self, layer: int, part: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hear(_module: nn.Module, _given: object, out: Tensor) -> None:
            self.heard[layer, part].append(out[0].float().cpu())

        return hear

    def close(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()

    def heads(self, part: str, calls: slice, head_dim: int) -> Tensor:
        """`[calls, layers x heads, L, D]` of a part."""
        layers = [torch.stack(self.heard[layer, part][calls]) for layer in LAYERS]  # [calls, L, C] each
        return torch.cat([x.unflatten(-1, (-1, head_dim)).transpose(1, 2) for x in layers], dim=1)


def record(model: TinyModel) -> Recording:
    """The end of a held-out film whose returning character was last seen in its first chunk, everything read."""
    film = recall_film(FIRST_TEST_SEED, CHUNKS, CHUNK_FRAMES, CHARACTERS)
    history = model.encode(film)[:, :, :-CHUNK_FRAMES]
    network: nn.Module = model.model.get_model_object("diffusion_model")
    spec: dict[str, int] = {name: int(getattr(network, name)) for name in ("dim", "num_heads")}
    head_dim = spec["dim"] // spec["num_heads"]
    ears = Ears(network)
    try:
        model.draw(
            attach_memory(model.model, MemoryConfig(None, 0)),
            plan_chunks([1] * CHUNKS, CHUNK_FRAMES),
            [shot.prompt for shot in film.shots],
            history,
            SeededNoise((0,) * CHUNKS),
        )
    finally:
        ears.close()
    past, last = slice(0, CHUNKS - 1), slice(CHUNKS - 1, None)
    in_space = space_rotation(head_dim)
    q, own_k = (turned_in_space(ears.heads(part, last, head_dim), in_space) for part in ("norm_q", "norm_k"))
    k = turned_in_space(ears.heads("norm_k", past, head_dim), in_space)
    steps = torch.tensor(STEPS)
    return Recording(
        q[steps],
        k.transpose(0, 1).flatten(1, 2),
        ears.heads("v", past, head_dim).transpose(0, 1).flatten(1, 2),
        own_k[steps],
        ears.heads("v", last, head_dim)[steps],
        {
            "frame_tokens": str(ROWS * COLUMNS),
            "chunk_frames": str(CHUNK_FRAMES),
            "time_channels": str(time_channels(head_dim)),
            "theta": "10000.0",
            "layers": " ".join(map(str, LAYERS)),
            "steps": " ".join(map(str, STEPS)),
            "weights": model.fingerprint,
        },
    )


def space_rotation(head_dim: int) -> Tensor:
    """Wan's turn of a chunk's tokens by row and column, `[L, pairs, 2, 2]`."""
    channels = (head_dim - time_channels(head_dim)) // 2
    row, column = (time_rotation(range(n), channels, 10_000.0, torch.device("cpu")) for n in (ROWS, COLUMNS))
    of_row = row[:, None].expand(-1, COLUMNS, -1, -1, -1)
    frame = torch.cat([of_row, column.expand(ROWS, -1, -1, -1, -1)], dim=2).flatten(0, 1)
    return frame.repeat(CHUNK_FRAMES, 1, 1, 1)


def turned_in_space(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys `[..., L, D]` with their place in the picture."""
    first = x.shape[-1] - 2 * rotation.shape[1]
    return torch.cat([x[..., :first], turned(x[..., first:], rotation)], dim=-1)
