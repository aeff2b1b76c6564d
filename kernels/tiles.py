"""Tile shapes of the attention kernel, by architecture: chosen by compiled registers and spills, never at run time."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST = 16  # rows or columns of a matrix instruction


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries and keys that a program holds, its warps, and the depth of its pipeline."""

    queries: int
    keys: int
    warps: int
    stages: int

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
    """The tile of an architecture of the table, or of the interpreter."""
    return ATTENTION_TILES.get(arch, INTERPRETED)
