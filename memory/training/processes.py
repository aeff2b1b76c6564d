"""Training in several processes at once, one for each GPU: each sees films of its own, and all learn the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """The processes of a training: this one alone, or those that `accelerate launch` started.

    `accelerator` is accelerate's own, handed over because that package is there for several processes alone. `device` is where
    a process that is alone trains.
    """

    def __init__(self, accelerator: Any = None, device: str = "cpu") -> None:
        self._accelerator = accelerator
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.rank: int = 0 if accelerator is None else accelerator.process_index
        self.device = torch.device(device) if accelerator is None else accelerator.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def batch_number(self, step: int) -> int:
        """Which of all batches this process sees at a step: together they see those of as many steps of a single one."""
        return step * self.count + self.rank

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its mean over all processes; one that is missing counts as 0."""
        if self.count == 1:
            return
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        joined = self.average(torch.cat([gradient.flatten() for gradient in own]))
        parts = joined.split([gradient.numel() for gradient in own])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count == 1:
            return value
        mean: Tensor = self._accelerator.reduce(value, reduction="mean")
        return mean

    def part(self) -> None:
        """Training is over: what follows the first process does alone."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()
            self._accelerator.end_training()

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """What is done here the first process does before all others, which find on disk what it wrote."""
        if self.count == 1:
            yield
            return
        with self._accelerator.main_process_first():
            yield


ALONE = Processes()
