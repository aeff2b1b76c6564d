"""MemFlow's bank as its published code fills it, for the benchmark alone: what is compared must be what was released.

What it does (read in KlingTeam/MemFlow 7ed5147, told in our own words): every third chunk the first frame waits to be taken
in. Before every chunk, and once more where the prompt changes, the two best frames of the bank and the waiting one become
the new bank. So one frame is taken in several times, and may fill the bank; and where the prompt changes, its keys have
just been zeroed, so all frames score alike and the first two stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

BANK = 3
RECORD_EVERY = 3
"""Chunks."""

Scores = Callable[[Sequence[int]], Sequence[float]]


class ReleasedBank:
    """Frames of the bank, as often as they are in it."""

    def __init__(self) -> None:
        self.frames: list[int] = []
        self._waiting: int | None = None
        self._recorded = 0

    def finish(self, chunk: int, first_frame: int) -> None:
        """A chunk was committed."""
        if chunk % RECORD_EVERY == 0:
            self._waiting = first_frame
            self._recorded += 1

    def begin(self, scores: Scores, switched: bool) -> None:
        """A chunk is about to be made; `scores` are what its prompt says of frames, unless it has just been `switched`."""
        if self._waiting is None:
            return
        if self._recorded <= BANK:
            self.frames = [*self.frames[: self._recorded - 1], self._waiting]
            return
        for _ in range(2 if switched else 1):
            said = torch.zeros(len(self.frames)) if switched else torch.tensor(scores(self.frames))
            kept = said.topk(BANK - 1).indices.tolist()
            self.frames = [*(self.frames[index] for index in kept), self._waiting]
