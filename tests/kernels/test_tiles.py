"""Tile shapes: a local table goes before the built-in one, the tuner finds what is fastest, and says when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from longreel.kernels import tiles
from longreel.kernels.bench import NothingToTuneError, tune
from longreel.kernels.tiles import ATTENTION_TILES, Tile, attention_tile, local_table, local_tiles, save_local_tile
from longreel.nodes.headless.cli import main

FOUND = Tile(queries=64, keys=32, warps=4, stages=3)
# In a process of its own: Triton decides when it is imported whether it interprets or compiles.
INTERPRETED = """
import json, torch
from dataclasses import replace
from longreel.kernels.bench import tuning
from longreel.kernels.bench.cases import TINY, build_inputs
from longreel.kernels.bench.measure import Effort
from longreel.kernels.tiles import Tile
tuning.EFFORT = Effort(0, 1)
case = replace(TINY, heads=1, chunk_frames=1, frames=6, dense_frames=2, page_tokens=64, listed=2, shortlist=0)
shapes = [Tile(64, 64, 4, 2), Tile(32, 32, 4, 1)]
times = tuning.time_tiles(build_inputs(case, torch.device("cpu")), shapes, "sm90")
print(json.dumps([times[shape] for shape in shapes]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own."""
    monkeypatch.setenv("LONGREEL_CACHE", str(tmp_path / "cache"))
    local_tiles.cache_clear()
    yield tmp_path / "cache"
    local_tiles.cache_clear()


def test_a_tile_of_the_local_table_goes_first() -> None:
    assert attention_tile("sm89") == ATTENTION_TILES["sm89"]
    assert save_local_tile("sm89", FOUND) == local_table()
    save_local_tile("sm90", FOUND)
    assert attention_tile("sm89") == attention_tile("sm90") == FOUND
    assert attention_tile("sm80") == ATTENTION_TILES["sm80"]


def test_what_another_triton_measured_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    save_local_tile("sm89", FOUND)
    monkeypatch.setattr(tiles, "triton_version", lambda: ((99, 0), ""))
    local_tiles.cache_clear()
    assert attention_tile("sm89") == ATTENTION_TILES["sm89"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"triton": "", "tiles": {"sm89": {"queries": 3, "keys": 64, "warps": 8, "stages": 2}}}']
)
def test_a_table_that_is_none_is_named_with_its_remedy(cache: Path, text: str) -> None:
    cache.mkdir()
    local_table().write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"attention_tiles\.json should hold .* Delete it"):
        attention_tile("sm89")


def test_without_a_gpu_there_is_nothing_to_tune(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NothingToTuneError):
        tune()
    assert main(["bench", "kernels", "--tune"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("There is nothing to tune here: ")
    assert said.count("\n") == 1
    assert not cache.exists()


@pytest.mark.parametrize("script", [INTERPRETED] if sys.platform == "linux" else [])  # elsewhere there is no Triton
def test_the_tuner_times_every_tile_that_is_right(script: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert all(time > 0 for time in json.loads(said.stdout))


def test_kept_numbers_are_shown_again_and_a_file_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"profile": "smoke", "machine": {"device": "a card"}, "bytes": {}, "quality": [], "rows": []}
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(kept), encoding="utf-8")
    assert main(["bench", "kernels", "--show", str(file)]) == 0
    assert "| device | a card |" in capsys.readouterr().out
    file.write_text("[]", encoding="utf-8")
    assert main(["bench", "kernels", "--show", str(file)]) == 1
    assert "--show needs a file that" in capsys.readouterr().err
