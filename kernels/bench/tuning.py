"""Which tile shape is fastest on this GPU, and a local table that says so."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ..dispatch import architecture, triton_version
from ..page_attention import OPERATION
from ..tiles import Tile, attention_tile, save_local_tile
from .cases import WAN_1_3B, Inputs, build_inputs
from .exact import allowed_error, relative_error, sample_exactly, sampled
from .measure import Effort, Times, measure
from .report import shown, table

CANDIDATES = tuple(Tile(*shape) for shape in product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3)))
CASE = replace(WAN_1_3B, frames=60)
EFFORT = Effort(5, 20)


class NothingToTuneError(RuntimeError):
    """There is no kernel of ours on this machine whose tiles could be measured."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured: milliseconds of each tile that is right, None for what was wrong or could not run, and where it was kept."""

    arch: str
    before: Tile
    best: Tile
    times: dict[Tile, float | None]
    kept_in: Path

    def table(self) -> str:
        """For people, the fastest first."""
        ordered = sorted(self.times.items(), key=lambda item: (item[1] is None, item[1] or 0.0))
        lines = [
            (
                str(tile.queries),
                str(tile.keys),
                str(tile.warps),
                str(tile.stages),
                shown(time) or "wrong, or cannot run",
            )
            for tile, time in ordered
        ]
        said = f"The best tile of {self.arch} was {self.before}, is {self.best}, and is kept in {self.kept_in}"
        return table(("queries", "keys", "warps", "stages", "ms"), lines) + f"\n\n{said}"


def tune() -> Tuning:
    """Measure every candidate on this GPU, each after it was right, and keep the fastest in the local table.

    Raises NothingToTuneError without a GPU or Triton.
    """
    if not torch.cuda.is_available():
        raise NothingToTuneError(
            "There is nothing to tune here: tile shapes belong to the Triton kernel, which needs a GPU, and this machine "
            "has none that torch can use."
        )
    version, absence = triton_version()
    if version is None:
        raise NothingToTuneError(f"There is nothing to tune here: our attention kernel {absence}.")
    device = torch.device("cuda")
    arch = architecture(device)
    times = time_tiles(build_inputs(CASE, device), CANDIDATES, arch)
    timed = {tile: time for tile, time in times.items() if time is not None}
    if not timed:
        raise NothingToTuneError("There is nothing to tune here: no tile shape gives a right result on this GPU.")
    best = min(timed, key=timed.__getitem__)
    before = attention_tile(arch)
    return Tuning(arch, before, best, times, save_local_tile(arch, best))


def time_tiles(inputs: Inputs, tiles: Sequence[Tile], arch: str) -> dict[Tile, float | None]:
    """Milliseconds of the kernel with each tile, as this architecture uses it: all in one, or for the lists alone."""
    case = inputs.case
    kernel = importlib.import_module("..page_attention.triton_kernel", __package__)
    errors = importlib.import_module("triton.runtime.errors")
    splits = any(found.name == "split" and arch in found.needs.archs for found in OPERATION.implementations)
    exact, plain = sample_exactly(inputs, "lists")
    runs: dict[str, Callable[[], object]] = {}

    def attend(tile: Tile, dense_tokens: int) -> Tensor:
        lists = (inputs.pages, inputs.lists)
        out: Tensor = kernel.page_attention(inputs.q, *lists, dense_tokens, case.group_tokens, tile).out
        return out

    for tile in tiles:
        try:
            error = relative_error(sampled(attend(tile, case.dense_tokens), case), exact)
        except (errors.TritonError, RuntimeError):
            continue  # more shared memory or registers than there are
        if error <= allowed_error(case.dtype, plain):
            runs[str(tile)] = partial(attend, tile, 0 if splits else case.dense_tokens)
    found: dict[str, Times] = measure(runs, EFFORT, inputs.q.device)
    return {tile: found[str(tile)].milliseconds if str(tile) in found else None for tile in tiles}
