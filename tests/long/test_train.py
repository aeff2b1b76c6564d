"""Training as a user does it: stopped with Ctrl-C and gone on with, and in both stages of an encoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.render import INTERRUPTED_EXIT

pytestmark = pytest.mark.long
TRAIN = [
    sys.executable,
    "-c",
    "import sys; from longreel.nodes.headless.cli import main; sys.exit(main())",
    "train",
    "tiny",
]
PATIENCE = 600.0  # seconds; a step takes three on two free cores


def test_training_writes_weights_stops_when_asked_and_goes_on(tmp_path: Path, host: Host) -> None:
    environment = {**os.environ, "COMFYUI_PATH": str(host.path)}

    def train(steps: int) -> subprocess.Popen[str]:
        command = [*TRAIN, "--out", str(tmp_path), "--steps", str(steps), "--device", "cpu"]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell that was itself started in the background hands down an ignored Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def steps_logged() -> list[int]:
        log = tmp_path / "log.jsonl"
        return [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []

    first = train(1)
    said, complaint = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0, complaint
    weights = tmp_path / "tiny_wan.safetensors"
    assert str(weights) in said
    before = weights.read_bytes()

    going_on = train(1000)
    deadline = time.monotonic() + PATIENCE
    while len(steps_logged()) < 2:
        assert going_on.poll() is None, going_on.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    going_on.send_signal(signal.SIGINT)
    _, complaint = going_on.communicate(timeout=PATIENCE)
    assert going_on.returncode == INTERRUPTED_EXIT
    assert "Give the same command again and it goes on" in complaint
    assert "Traceback" not in complaint
    assert weights.read_bytes() == before

    second = train(2)
    _, complaint = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, complaint
    assert steps_logged() == [1, 2]
    assert weights.read_bytes() != before


def test_both_stages_of_an_encoder_write_files_that_the_loader_takes(tmp_path: Path, host: Host) -> None:
    environment = {**os.environ, "COMFYUI_PATH": str(host.path)}

    def train(stage: str, *arguments: str) -> str:
        command = [*TRAIN[:-1], "encoder", stage, "--out", str(tmp_path / stage), "--steps", "1", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Frames from anywhere in unseen films come back at" in train("pretrain")
    encoder = tmp_path / "pretrain" / "encoder.safetensors"
    train("finetune", "--encoder", str(encoder))
    from longreel.memory.encoder_file import read_encoder
    from longreel.memory.encoder_spec import RATES

    spec, _ = read_encoder(tmp_path / "finetune" / "encoder.safetensors")
    assert spec.rate is RATES[1]
    assert {"pretrain steps", "finetune steps"} <= spec.trained.keys()
    assert (tmp_path / "finetune" / "encoder_lora.safetensors").is_file()
    assert json.loads((tmp_path / "pretrain" / "retrieval.json").read_text()).keys() >= {"marked", "whole"}
