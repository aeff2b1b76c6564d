"""The page's modules under node, and that both sides of the border read a storyboard's pins in the same way."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from longreel.memory.chunks import Plan, plan_chunks
from longreel.memory.film_moments import read_moments
from longreel.memory.storyboard_parser import read_storyboard

pytestmark = pytest.mark.long

MODULE_TESTS = Path(__file__).with_name("web")
SECONDS = 120
SHOTS = (4, 3, 5)  # chunks of each
TEXTS = (
    "[1s] anna\n[1s] ben\n[1s] cleo\n",
    "style: ink\npin: shot 2\nveto: 0.2s-0.9s, shot 3\n[1s] anna\n[1s] ben\n[1s] cleo\n",
    '{"longreel_storyboard": 1, "pins": "shot 1", "shots": [{"text": "anna"}, {"text": "ben"}, {"text": "cleo"}]}',
)


def node(*arguments: str, said: str | None = None) -> str:
    """What node prints; its errors are the failure."""
    program = shutil.which("node")
    assert program, "Install Node.js 18 or newer: the long tier runs the page's modules with it."
    done = subprocess.run(
        [program, *arguments], input=said, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


def test_the_modules_pass_their_own_tests() -> None:
    report = node("--test", *(str(path) for path in sorted(MODULE_TESTS.glob("*.test.mjs"))))
    assert "not ok" not in report


@pytest.mark.parametrize("fps", [1.0, 12.5, 16.0, 23.98, 24.0, 119.88])
@pytest.mark.parametrize("seeded", [0, 1])
def test_the_film_pins_exactly_the_frame_that_was_clicked(fps: float, seeded: int) -> None:
    plan = plan_chunks(SHOTS, 3, seeded_frames=seeded)
    draw = random.Random(int(fps))
    wanted: list[dict[str, Any]] = [
        {
            "text": draw.choice(TEXTS),
            "kind": draw.choice(("pin", "veto")),
            "frame": frame,
            "film": film_facts(plan, fps),
        }
        for frame in range(plan.total_frames)
    ]
    written = json.loads(node(str(MODULE_TESTS / "write_marks.mjs"), said=json.dumps(wanted)))
    for change, text in zip(wanted, written, strict=True):
        before, after = (marks(source, plan, fps) for source in (change["text"], text))
        other = "veto" if change["kind"] == "pin" else "pin"
        assert after[change["kind"]] == before[change["kind"]] | {change["frame"]}
        assert after[other] == before[other] - {change["frame"]}


def film_facts(plan: Plan, fps: float) -> dict[str, Any]:
    """What the picture knows of a film."""
    shots = [{"frames": [chunks[0].frames.start, chunks[-1].frames.stop]} for chunks in plan.shots()]
    return {"fps": fps, "shots": shots}


def marks(text: str, plan: Plan, fps: float) -> dict[str, frozenset[int]]:
    """Pinned and vetoed frames as the film reads them."""
    board = read_storyboard(text)
    return {"pin": read_moments(board.pins, plan, fps), "veto": read_moments(board.vetoes, plan, fps)}
