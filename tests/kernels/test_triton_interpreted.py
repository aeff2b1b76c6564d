"""Triton's kernels pass the tests of their operations without a GPU, in Triton's interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longreel.kernels.dispatch import triton_version

HERE = Path(__file__).parent
# Elsewhere the package index has no Triton: torch's path is what runs there, and what is tested.
TESTS = ("merge_states", "moving_pages", "page_attention", "page_scores") if sys.platform == "linux" else ()
ALONE = {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def test_triton_is_there_where_it_can_be() -> None:
    version, absence = triton_version()
    assert version is not None or not TESTS, absence


@pytest.mark.parametrize("name", TESTS)
def test_triton_kernels_pass_the_same_tests_in_the_interpreter(name: str) -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets or compiles."""
    pytest_alone = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--noconftest"]
    result = subprocess.run(
        [*pytest_alone, "--hypothesis-profile=ci", str(HERE / f"test_{name}.py")],
        env={**os.environ, **ALONE},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    for dtype in ("float32", "float16"):
        assert re.search(rf"interpreted-cpu-{dtype}\S* PASSED", result.stdout), result.stdout
