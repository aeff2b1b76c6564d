"""What the recall benchmark says: intervals, rows, paired differences, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from longreel.memory.frame_pages import FramePages
from longreel.memory.positions import PositionPolicy
from longreel.memory.presets import PRESETS
from longreel.memory.training.recall_plot import COLOURS, KEYS_READ, PAPER, budget_curve, draw_recall
from longreel.memory.training.recall_policies import (
    COMPARISONS,
    FRAME,
    FULL,
    FULL_CELLS,
    QUICK,
    REFERENCE,
    TRAINED_CHUNKS,
    WINDOW_AND_SINK,
    Cell,
    Geometry,
    RecallBench,
    recall_policies,
)
from longreel.memory.training.recall_report import RecallReport
from longreel.memory.training.recall_samples import Drift, Sample, Samples
from longreel.memory.training.recall_statistics import mean_interval, share_interval

SETTINGS = {"weights": "0123", "chunk_frames": 1, "characters": 5, "seed": 0, "levels": [1.0, 0.0]}
WANTED = {
    "policy", "chunks", "distance", "films", "identity_cosine", "identity_cosine_interval", "identity_psnr",
    "who_is_it", "who_is_it_interval", "background_psnr", "obedience", "dynamic_degree", "drift_db", "control_cosine",
    "control_cosine_interval", "name_swap", "name_swap_interval", "keys_read_fraction", "seconds_per_chunk",
    "peak_bytes",
}  # fmt: skip


FAR = Cell(12, 11)


def sample(policy: str, film: int, identity: float, cell: Cell = FAR) -> Sample:
    """A measurement that is dull but for its identity."""
    return Sample(
        policy, *cell, film,
        identity_cosine=identity, identity_psnr=20.0, who_is_it=float(identity > 0.5), background_psnr=25.0,
        obedience=1.0, dynamic_degree=0.5, control_cosine=0.0, name_swap=1.0, keys_read_fraction=0.25,
        seconds_per_chunk=0.1 * (1 + film), peak_bytes=1000 + film, averaging_cosine=0.4, ceiling_cosine=0.99,
        true_dynamic_degree=0.6,
    )  # fmt: skip


def report(samples: list[Sample], drifts: list[Drift]) -> RecallReport:
    """A report on these, with a header as the command makes it."""
    header = {
        "command": "longreel bench recall", "date": "today", "commits": ["abc"], "machine": {"device": "CPU"},
        "settings": {**SETTINGS, "sampler": "euler"}, "policies": list(recall_policies(1)), "chance": 0.2,
    }  # fmt: skip
    return RecallReport(header, samples, drifts)


def test_the_interval_of_two_values_is_what_drawing_them_with_replacement_gives() -> None:
    # Means of two draws from {0, 1}: 0 in a quarter of all cases, 1 in another, so 95 % need all of it.
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)
    assert mean_interval([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))


def test_the_interval_of_many_values_is_about_two_standard_errors_wide() -> None:
    # 0 to 99: standard deviation 28.866, standard error 2.887, times 1.96 to each side of 49.5.
    low, high = mean_interval([float(value) for value in range(100)])
    assert low == pytest.approx(49.5 - 5.66, abs=0.4)
    assert high == pytest.approx(49.5 + 5.66, abs=0.4)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Computed by hand for 8 of 10 and 10 of 10 (z^2 = 3.8415).
    assert share_interval([1.0] * 8 + [0.0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_interval([1.0] * 10) == pytest.approx((10 / 13.8415, 1.0), abs=1e-4)


def test_rows_hold_all_that_is_promised_and_go_through_json() -> None:
    samples = [sample(policy, film, 0.9) for policy in recall_policies(1) for film in range(3)]
    made = report(samples, [Drift("window", 0, (2, 5, 8, 11), (30.0, 29.0, 28.0, 20.0), (0.5, 0.5, 0.25, 0.25))])
    said = json.loads(json.dumps(made.to_dict()))
    assert len(said["rows"]) == len(recall_policies(1))
    for row in said["rows"]:
        assert set(row) >= WANTED
        assert (row["films"], row["chunks"], row["distance"]) == (3, 12, 11)
        assert (row["seconds_per_chunk"], row["peak_bytes"]) == (pytest.approx(0.2), 1002)
    drifts = [row["drift_db"] for row in said["rows"]]
    assert drifts == [pytest.approx(10.0), *[None] * (len(recall_policies(1)) - 1)]
    assert said["drift"][0]["background_psnr"] == [30.0, 29.0, 28.0, 20.0]


def test_differences_are_paired_film_by_film() -> None:
    identities = [0.1, 0.5, 0.9]  # films that differ much more than the policies do
    samples = [sample(REFERENCE, film, identity) for film, identity in enumerate(identities)]
    samples += [sample("window", film, identity + 0.05) for film, identity in enumerate(identities)]
    samples.append(sample("window", 7, -1.0))  # never measured with the reference
    (row,) = report(samples, []).differences()
    assert (row["policy"], row["against"], row["films"]) == ("window", REFERENCE, 3)
    assert row["identity_cosine"] == pytest.approx(0.05)
    assert row["identity_cosine_interval"] == pytest.approx((0.05, 0.05))


def test_films_are_compared_with_window_and_sink_too_where_it_was_measured() -> None:
    samples = [sample(policy, film, 0.9) for policy in (REFERENCE, WINDOW_AND_SINK, "OmniMem") for film in range(2)]
    rows = report(samples, []).differences()
    assert [(row["policy"], row["against"]) for row in rows] == [
        (WINDOW_AND_SINK, REFERENCE),
        ("OmniMem", REFERENCE),
        (REFERENCE, WINDOW_AND_SINK),
        ("OmniMem", WINDOW_AND_SINK),
    ]
    assert rows[-1]["dynamic_degree_interval"] == pytest.approx((0.0, 0.0))


def test_free_running_films_tell_how_much_moves_film_by_film() -> None:
    at, background = (2, 5, 8, 11), (30.0,) * 4
    still = [Drift(WINDOW_AND_SINK, film, at, background, (0.1 * film,) * 4) for film in range(3)]
    lively = [Drift("OmniMem", film, at, background, (0.1 * film, 0.1 * film + 0.2) * 2) for film in range(3)]
    made = report([], [*still, *lively])
    rows = {row["policy"]: row for row in made.drift_rows()}
    assert rows["OmniMem"]["dynamic_degree"] == pytest.approx(0.2)
    assert rows["OmniMem"]["against"][WINDOW_AND_SINK]["dynamic_degree_interval"] == pytest.approx((0.1, 0.1))
    assert not rows[WINDOW_AND_SINK]["against"]
    assert "moves against window + sink" in made.markdown()


def test_the_tables_name_chance_averaging_and_every_policy() -> None:
    samples = [sample(policy, film, 0.9) for policy in recall_policies(1) for film in range(2)]
    said = report(
        samples, [Drift("window", 0, (2, 5, 8, 11), (30.0, 29.0, 28.0, 20.0), (0.5, 0.5, 0.25, 0.25))]
    ).markdown()
    assert "Chance of who is it 0.20" in said
    assert "the average of all looks seen gives identity 0.40" in said
    assert all(f"| {policy} |" in said for policy in recall_policies(1))
    assert "| 30.0 | 29.0 | 28.0 | 20.0 |" in said
    assert report([], []).markdown()  # stopped before the first film


def test_what_was_measured_is_there_after_a_stop_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "recall.samples.jsonl"
    first = Samples(path, SETTINGS, "abc")
    first.add(sample("window", 0, 0.1))
    first.add(Drift("window", 0, (5, 11), (30.0, 20.0), (0.5, 0.25)))
    first.add(sample("window", 1, 0.2))
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-10], encoding="utf-8")
    again = Samples(path, SETTINGS, "def")
    assert list(again.samples.values()) == [sample("window", 0, 0.1)]
    assert list(again.drifts.values()) == [Drift("window", 0, (5, 11), (30.0, 20.0), (0.5, 0.25))]
    assert again.sources == ["abc", "def"]
    again.add(sample("window", 1, 0.2))
    assert set(Samples(path, SETTINGS, "def").samples) == {("window", 12, 11, 0), ("window", 12, 11, 1)}


@pytest.mark.parametrize("text", ["", "no JSON at all\n", '{"longreel_recall": 1, "settings": {"seed": 1}}\n'])
def test_measurements_of_other_settings_are_not_mixed_in(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recall.samples.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="Give --json another name"):
        Samples(path, SETTINGS, "abc")
    assert path.read_text(encoding="utf-8") == text


def test_policies_are_the_presets_at_the_trained_length() -> None:
    for chunk_frames in (1, 3):
        policies = recall_policies(chunk_frames)
        assert REFERENCE in policies
        assert policies["window"].window_frames == 3 * chunk_frames
        assert (policies["window"].sink_frames, policies["window + sink"].sink_frames) == (0, chunk_frames)
        full = [policy for policy in policies.values() if policy.window_frames is None]
        assert {policy.positions for policy in full} == set(PositionPolicy)
        assert {policy.trained_frames for policy in full} == {TRAINED_CHUNKS * chunk_frames}


def test_the_full_bench_goes_to_four_times_the_training_length_and_40_chunks_back() -> None:
    assert FULL.films >= 96
    assert {cell.chunks for cell in FULL_CELLS} == {TRAINED_CHUNKS, 2 * TRAINED_CHUNKS, 4 * TRAINED_CHUNKS}
    assert (min(FULL_CELLS, key=lambda c: c.distance).distance, max(c.distance for c in FULL_CELLS)) == (1, 40)
    assert set(QUICK.cells) <= set(FULL_CELLS)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"films": 1}, "at least 2 films, got 1"),
        ({"chunk_frames": 4}, "chunks of 1 to 3 frames, got 4"),
        ({"characters": 3}, "needs 4 to 11 characters a film, got 3"),
        ({"characters": 12}, "needs 4 to 11 characters a film, got 12"),
        ({"cells": (Cell(12, 12),)}, "after 1 to 11 chunks, got 12"),
        (
            {"policies": ("window", "half")},
            "--compare memories has no policy 'half'. Choose among: window; window . sink; ",
        ),
        ({"seed": -1}, "a seed from 0 to 99, got -1"),
        ({"steps": 0}, "at least 1 step, got 0"),
        ({"drift_films": -1}, "0 or more films for the drift, got -1"),
        (
            {"compare": "everything"},
            "compares memories, budgets, ablations, banks, encoders or transitions, got everything",
        ),
    ],
)
def test_a_bench_that_makes_no_sense_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(FULL, **wrong)


def test_an_ablation_needs_six_pages_a_frame_and_eight_groups_a_chunk() -> None:
    assert Geometry(3).refusal is None
    assert (Geometry(3).pages_per_frame, Geometry(3).groups_per_chunk) == (6, 36)
    assert (Geometry(1).groups_per_chunk, Geometry(1).refusal) == (12, None)
    assert "got 6 and 3" in (Geometry(1, dataclasses.replace(FRAME, group_tokens=16)).refusal or "")
    assert "got 5 and 8" in (Geometry(1, FramePages(tuple(range(40)), 8, 5)).refusal or "")


def test_every_comparison_has_the_full_memory_to_be_compared_with() -> None:
    for compare in COMPARISONS:
        policies = recall_policies(3, compare)
        assert REFERENCE in policies
        assert len(set(map(repr, policies.values()))) == len(policies)
    ours = recall_policies(1)["LongReel"]
    assert ours.bank == PRESETS["LongReel"].bank
    read = (ours.sink_frames + (ours.window_frames or 0) - 1 + 2.5) / 119
    assert read < 0.05  # of a film of 120 frames


def test_a_few_memories_are_measured_beside_the_one_that_all_are_compared_with() -> None:
    assert list(FULL.measured()) == list(recall_policies(1))
    assert list(dataclasses.replace(FULL, policies=("LongReel", "window")).measured()) == [
        "window",
        REFERENCE,
        "LongReel",
    ]


def test_the_plot_has_a_column_a_film_length_and_a_colour_a_policy() -> None:
    cells = (Cell(12, 1), Cell(12, 11), Cell(48, 40))
    samples = [
        sample(policy, film, 0.1 * film, cell) for policy in recall_policies(1) for film in range(3) for cell in cells
    ]
    picture = draw_recall(report(samples, []).rows(), 0.2)
    one = draw_recall(report([s for s in samples if s.chunks == 12], []).rows(), 0.2)
    assert picture.width > one.width
    colours = {colour for _, colour in picture.getcolors(picture.width * picture.height)}
    for colour in (*COLOURS[: len(recall_policies(1))], PAPER):
        assert Image.new("RGB", (1, 1), colour).getpixel((0, 0)) in colours


def test_budgets_are_one_curve_over_what_is_read_beside_the_memory_that_reads_everything() -> None:
    read = {"LongReel, 1 pages": 0.1, "LongReel, 2 pages": 0.2}
    samples = [dataclasses.replace(sample(REFERENCE, film, 0.9), keys_read_fraction=1.0) for film in range(3)]
    samples += [
        dataclasses.replace(sample(policy, film, 0.5), keys_read_fraction=keys)
        for policy, keys in read.items()
        for film in range(3)
    ]
    header = {**report([], []).header, "policies": [REFERENCE, *read]}
    rows = budget_curve(RecallReport(header, samples, []).rows())
    found = {(row["policy"], round(row["keys_read_fraction"], 6)): row["identity_cosine"] for row in rows}
    assert found == pytest.approx(
        {(REFERENCE, 0.1): 0.9, (REFERENCE, 0.2): 0.9, ("LongReel", 0.1): 0.5, ("LongReel", 0.2): 0.5}
    )
    picture = draw_recall(rows, 0.2, KEYS_READ)
    assert picture.size == draw_recall(rows, 0.2).size


def test_a_plot_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one measured row"):
        draw_recall([], 0.2)
    assert RecallBench().films == FULL.films
