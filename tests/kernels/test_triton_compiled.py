"""Triton's kernels compile for every architecture of the table, without spills and with their pipeline intact.

No GPU is needed: a lost asynchronous copy or a spilled register shows in what the compiler writes.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longreel.kernels.tiles import ATTENTION_TILES

# KiB of shared memory that a program may have, and the matrix instruction that it should use.
TARGETS = {
    "sm80": (163, "mma.sync"),
    "sm86": (99, "mma.sync"),
    "sm89": (99, "mma.sync"),
    "sm90": (227, "wgmma.mma_async"),
    "sm100": (227, "tcgen05.mma"),
    "sm120": (99, "mma.sync"),
    "gfx942": (64, "v_mfma"),
    "gfx1100": (64, "v_wmma"),
    "gfx1201": (64, "v_wmma"),
}
ON_LINUX = sys.platform == "linux"  # elsewhere the package index has no Triton
ALIGNED = re.compile(r"_(head|row)$")  # strides of tensors whose rows are multiples of 16 elements
INT8 = dict.fromkeys(("k", "v"), "*i8")
OUTERMOST = ("sm80", "gfx1100")  # the oldest, and the one with the fewest registers to give
MEMORIES = {"page 64": (128, 64), "OmniMem": (15, 30)}
CASES = [(arch, memory) for memory in MEMORIES for arch in (TARGETS if memory == "page 64" else OUTERMOST)]
# Attention leaves 4 copies of keys and 4 of values to each of 2 stages, and fetches slots and lengths ahead.
ASYNCHRONOUS_COPIES = 16


def compile_for(
    arch: str, module: str, kernel: str, types: dict[str, str | None], warps: int, stages: int, **constants: int
) -> Any:
    """A kernel of ours, compiled for an architecture: `types` of pointers, None for those that are left out."""
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    backend = importlib.import_module("triton.backends.compiler")
    function = getattr(importlib.import_module(f"longreel.kernels.{module}.triton_kernel"), kernel)
    amd = arch.startswith("gfx")
    target = backend.GPUTarget(*(("hip", arch, 64 if arch == "gfx942" else 32) if amd else ("cuda", int(arch[2:]), 32)))
    fixed = {**constants, **{name: None for name, kind in types.items() if kind is None}}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in function.arg_names}
    aligned = [
        index for index, (name, kind) in enumerate(signature.items())
        if str(kind).startswith("*") or (kind == "i32" and ALIGNED.search(name))
    ]  # fmt: skip
    source = compiler.ASTSource(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(name),): value for name, value in fixed.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def spills(compiled: Any, tmp_path: Path) -> int:
    """Bytes of stack (NVIDIA) or registers (AMD) that did not fit."""
    if "amdgcn" in compiled.asm:
        return sum(int(count) for count in re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"]))
    tool = Path(importlib.import_module("triton").__file__).parent / "backends/nvidia/bin/cuobjdump"
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [tool, "-res-usage", tmp_path / "kernel.cubin"], check=True, capture_output=True, text=True
    ).stdout
    return int(re.findall(r"STACK:(\d+)", usage)[0])


def test_every_architecture_of_the_table_is_compiled_for() -> None:
    assert set(ATTENTION_TILES) - {"sm103"} == set(TARGETS)  # sm103 is compiled as sm100


@pytest.mark.parametrize(("arch", "memory"), CASES if ON_LINUX else ())
def test_attention_fits_its_registers_and_keeps_its_pipeline(arch: str, memory: str, tmp_path: Path) -> None:
    group, page = MEMORIES[memory]
    tile = ATTENTION_TILES[arch].fitted(group, page)
    types = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"lse": "*fp32", "scale": "fp32"}
    compiled = compile_for(
        arch, "page_attention", "_attend", types | dict.fromkeys(("lengths", "slots", "counts"), "*i32"),
        tile.warps, tile.stages, GROUP=group, PAGE=page, D=128, QUERIES=tile.queries, KEYS=tile.keys,
    )  # fmt: skip
    most_shared, instruction = TARGETS[arch]
    code = compiled.asm["ptx" if "ptx" in compiled.asm else "amdgcn"]
    assert spills(compiled, tmp_path) == 0
    assert compiled.metadata.shared <= most_shared * 1024
    if memory == "page 64":
        assert instruction in code
    if "ptx" in compiled.asm:
        assert code.count("cp.async.c") >= ASYNCHRONOUS_COPIES


INDICES = dict.fromkeys(("source", "slots", "lengths", "turns", "first_rows", "chosen"), "*i32")
FLOATS = dict.fromkeys(("a_lse", "b_lse", "lse", "queries", "scores", "rotation", "k_mean"), "*fp32")
HALVES = dict.fromkeys(
    ("k", "v", "k_pages", "v_pages", "k_means", "k_out", "v_out", "a_out", "b_out", "out", "summaries"), "*bf16"
)
SCALES = dict.fromkeys(("k_scale", "v_scale"), "*fp32")
AS_IT_IS: dict[str, str | None] = dict.fromkeys(("k_scale", "v_scale", "k_mean"))
PAGE = {"PAGE": 64, "D": 128, "D_TILE": 128, "TOKENS": 32, "SLOTS": 4096}
MOVES: dict[str, tuple[str, str, dict[str, str | None], dict[str, int]]] = {
    "merge": ("merge_states", "_merge", {}, {"D": 128, "D_TILE": 128, "ROWS": 32}),
    "score": ("page_scores", "_score", {}, {"D": 128, "CHANNELS": 32, "PAGES": 64, "GROUPS": 16}),
    "select": ("page_scores", "_select", {}, {"PAGES": 1024}),
    "write": ("page_write", "_write", {**AS_IT_IS, "v_means": None}, PAGE),
    "write 8 bits": (
        "page_write", "_write", {**SCALES, "k_pages": "*i8", "v_pages": "*i8", "v_means": "*bf16"}, PAGE,
    ),
    "copy": ("page_copy", "_copy", AS_IT_IS, {**PAGE, "PAIRS": 22}),
    "copy 8 bits": ("page_copy", "_copy", {**SCALES, **INT8}, {**PAGE, "PAIRS": 22}),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("arch", OUTERMOST if ON_LINUX else ())
def test_the_other_kernels_fit_their_registers(arch: str, move: str, tmp_path: Path) -> None:
    module, kernel, types, constants = MOVES[move]
    compiled = compile_for(arch, module, kernel, {**INDICES, **FLOATS, **HALVES, **types}, 4, 2, **constants)
    assert spills(compiled, tmp_path) == 0
    assert compiled.metadata.shared <= TARGETS[arch][0] * 1024
