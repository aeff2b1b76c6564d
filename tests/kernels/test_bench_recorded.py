"""What the bench takes from the tiny model: recorded tensors, lists as its heads choose, and what a selection keeps."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from numerics import CODE_ERROR, SAME_SUM
from torch import Tensor

from longreel.kernels.bench.lists import DRAWN, best_in_shortlist
from longreel.kernels.bench.quality import SELECTIONS, measure_quality, shortlist_kept
from longreel.kernels.bench.recorded import TENSORS, Recording, load_recording, save_recording


@pytest.fixture(scope="module")
def recording() -> Recording:
    return load_recording()


def alike(slots: Tensor) -> float:
    """The share of its pages that a group has in common with the next one; `slots` is `[H, groups, K]`."""
    return float((slots[:, 1:, :, None] == slots[:, :-1, None]).any(-1).float().mean())


def test_a_recording_is_kept_with_the_error_of_8_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(2, 3, 96, 16, generator=generator) for name in TENSORS}
    given = Recording(**tensors, facts={"frame_tokens": "48"})
    save_recording(tmp_path / "film.safetensors", given)
    kept = load_recording(tmp_path / "film.safetensors")
    assert kept.facts == given.facts
    for name in TENSORS:
        one, other = getattr(kept, name), getattr(given, name)
        code = other.abs().amax(dim=-1, keepdim=True) / 127
        assert ((one - other).abs() <= CODE_ERROR * code).all()


def test_time_turns_recorded_keys_and_their_products_know_distances_only(recording: Recording) -> None:
    q, k = recording.q[0][:, :48], recording.k[:, :48]
    near, far = (recording.in_time(q, first + 5) @ recording.in_time(k, first).mT for first in (0, 300))
    assert (near - far).norm() < SAME_SUM * near.norm()
    assert (near - q @ k.mT).norm() > 0.01 * near.norm()


@pytest.mark.parametrize("shortlist", [0, 40])
def test_recorded_and_clustered_lists_are_more_alike_than_random_ones(shortlist: int) -> None:
    shares = {}
    for name, draw in DRAWN.items():
        scores = draw(6, 30, 20, 10, torch.Generator().manual_seed(1))
        assert scores.shape == (6, 30, 200)
        slots = best_in_shortlist(scores, shortlist, 8)
        assert slots.shape == (6, 30, 8)
        assert (slots[..., 1:] > slots[..., :-1]).all()
        assert not shortlist or all(len(of_head.unique()) <= shortlist for of_head in slots)
        shares[name] = alike(slots)
    assert shares["random"] < 0.5 * shares["recorded"]
    assert shares["random"] < 0.5 * shares["clustered"]


def test_reading_more_keeps_more_and_everything_keeps_all() -> None:
    found: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for row in measure_quality():
        found[row.layer, row.step][row.selection] = (row.mass, row.output_error)
    assert len(found) == 6
    for selections in found.values():
        assert list(selections) == [selection.name for selection in SELECTIONS]
        mass = {name: kept for name, (kept, _) in selections.items()}
        assert mass["window alone"] < mass["1 frame's worth"] < mass["2.5 frames' worth"] < mass["everything"]
        assert all(
            mass[name] <= mass["1 frame's worth, the best there is"] for name in mass if name.startswith("1 frame")
        )
        assert mass["everything"] == pytest.approx(1.0)
        assert selections["everything"][1] < SAME_SUM


def test_a_shortlist_is_worth_keeping_from_step_to_step(recording: Recording) -> None:
    assert 0.2 < shortlist_kept(recording) <= 1.0
