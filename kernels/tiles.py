"""Tile shapes of the attention kernel, by architecture: chosen by compiled registers and spills, never at run time.

`longreel bench kernels --tune` measures them on a machine and leaves a local table there, which goes first.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .cache_folder import cache_folder
from .dispatch import triton_version

SMALLEST = 16  # rows or columns of a matrix instruction
LOCAL_TABLE = "attention_tiles.json"


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries and keys that a program holds, its warps, and the depth of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        whole = all(isinstance(size, int) and size > 0 for size in (self.queries, self.keys, self.warps, self.stages))
        if (
            not whole
            or min(self.queries, self.keys) < SMALLEST
            or self.queries & self.queries - 1
            or self.keys & self.keys - 1
        ):
            raise ValueError(
                f"A tile needs powers of two from {SMALLEST} on as queries and keys, and counts of warps and stages, got {self}."
            )

    def fitted(self, group_tokens: int, page_tokens: int) -> Tile:
        """The tile cut down to groups and pages of this size."""
        queries = min(self.queries, max(SMALLEST, power_of_two(group_tokens)))
        keys = min(self.keys, max(SMALLEST, power_of_two(page_tokens)))
        return Tile(queries, keys, self.warps if queries == self.queries else self.warps // 2, self.stages)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


# 128 queries in 4 warps spill on all of NVIDIA's, 256 in any number of warps.
NVIDIA = Tile(queries=128, keys=64, warps=8, stages=2)
ATTENTION_TILES = {
    "sm80": NVIDIA,
    "sm86": NVIDIA,
    "sm89": NVIDIA,
    "sm90": NVIDIA,
    "sm100": NVIDIA,
    "sm103": NVIDIA,
    "sm120": NVIDIA,
    "gfx942": Tile(queries=128, keys=64, warps=4, stages=2),
    "gfx1100": Tile(queries=64, keys=32, warps=8, stages=1),
    "gfx1201": Tile(queries=128, keys=64, warps=8, stages=1),
}
INTERPRETED = NVIDIA


def attention_tile(arch: str) -> Tile:
    """The tile of an architecture of the local or the built-in table, or of the interpreter."""
    return local_tiles(local_table()).get(arch) or ATTENTION_TILES.get(arch, INTERPRETED)


def local_table() -> Path:
    """Where the tiles of this machine are kept."""
    return cache_folder() / LOCAL_TABLE


@cache
def local_tiles(path: Path) -> dict[str, Tile]:
    """Tiles that were measured on this machine with the Triton that is here; with another one they mean nothing.

    Raises ValueError where the file is not what `save_local_tile` writes.
    """
    if not path.is_file():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        tiles = {arch: Tile(**shape) for arch, shape in kept["tiles"].items()}
        return tiles if kept["triton"] == _compiler() else {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} should hold tile shapes that `longreel bench kernels --tune` wrote, got {error}. Delete it."
        ) from error


def save_local_tile(arch: str, tile: Tile) -> Path:
    """Keep a measured tile in the local table, in one piece; gives the table's path."""
    path = local_table()
    tiles = {**local_tiles(path), arch: tile}
    kept = {"triton": _compiler(), "tiles": {name: asdict(shape) for name, shape in tiles.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    local_tiles.cache_clear()
    return path


def _compiler() -> str:
    return ".".join(map(str, triton_version()[0] or ()))
