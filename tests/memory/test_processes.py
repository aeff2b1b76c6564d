"""Several processes train as one that sees the films of all: two on the CPU, over gloo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import peft
import torch
from encoder_runs import SHORT, SPEC, new_encoder, orthogonal_codec
from numerics import SAME_SUM, relative_error
from torch import nn

from longreel.memory.training.encoder_training import train_encoder
from longreel.memory.training.processes import ALONE, Processes
from longreel.nodes.host.build import host_modules

PATIENCE = 120.0  # seconds; torch and accelerate are imported twice
PROCESS = """
import sys, torch
from accelerate import Accelerator
from longreel.memory.training.processes import Processes
processes = Processes(Accelerator(cpu=True))
rank = float(processes.rank)
layer, unused = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
(layer(torch.tensor([[rank, 1.0]])).sum() + (unused(torch.ones(1, 1)).sum() if rank else 0)).backward()
processes.average_gradients([layer.weight, unused.weight])
with processes.one_first():
    if processes.leads:
        torch.save("mine", sys.argv[1] + "/first")
    seen = torch.load(sys.argv[1] + "/first")
found = [layer.weight.grad.tolist(), unused.weight.grad.tolist(), processes.average(torch.tensor(rank)).item(), seen]
found += [processes.count, processes.leads, [processes.batch_number(step) for step in range(3)]]
processes.part()
torch.save(found, f"{sys.argv[1]}/found-{processes.rank}")
"""


def launch(out: Path) -> None:
    """Two processes with what `accelerate launch` and `torchrun` give them."""
    with socket.socket() as door:
        door.bind(("localhost", 0))
        port = str(door.getsockname()[1])
    common = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true"}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(out)],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        for process in running:
            _, complaint = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, complaint
    finally:
        for process in running:
            process.kill()


def test_two_processes_average_their_gradients_and_one_goes_first(tmp_path: Path) -> None:
    launch(tmp_path)
    first, second = (torch.load(tmp_path / f"found-{rank}", weights_only=True) for rank in (0, 1))
    # Only the second process used `unused`: where it is missing it counts as 0.
    assert first == [[[0.5, 1.0]], [[0.5]], 0.5, "mine", 2, True, [0, 2, 4]]
    assert second == [[[0.5, 1.0]], [[0.5]], 0.5, "mine", 2, False, [1, 3, 5]]


def test_a_process_that_is_alone_changes_nothing() -> None:
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad
    ALONE.average_gradients(list(layer.parameters()))
    assert layer.weight.grad is before
    assert [ALONE.batch_number(step) for step in range(3)] == [0, 1, 2]
    assert ALONE.leads


def test_only_the_first_of_several_processes_writes(host: object, tmp_path: Path) -> None:
    modules = host_modules()

    def train(folder: str, rank: int) -> nn.Module:
        processes, network, encoder = Processes(), modules.new_wan(SPEC), new_encoder()
        processes.rank = rank
        train_encoder(
            SHORT, modules, peft, network, encoder, orthogonal_codec(), tmp_path / folder, processes=processes
        )
        return encoder

    first, second = train("first", 0), train("second", 1)
    assert (tmp_path / "first" / "checkpoint.pt").is_file()
    assert not list((tmp_path / "second").iterdir())
    assert (
        relative_error(first.state_dict()["high.project.weight"], second.state_dict()["high.project.weight"]) > SAME_SUM
    )
