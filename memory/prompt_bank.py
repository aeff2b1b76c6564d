"""Which frames the coming prompt brings back.

MemFlow (arXiv 2512.14699) keeps a bank of a few past frames, chosen by the prompt of what comes next. Here nothing
is dropped for ever: every frame of the film stays in the store and may be chosen again in any later shot.

The frames are chosen together: each is worth what it adds to those that were taken before it. So a bank shows all that
a prompt speaks of, and not three times the place and never who is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

AGAIN = 0.25
"""What a word is worth where the bank shows already what it speaks of."""
LIKENESS_POOL = 64
"""Best frames whose looks are compared with those of the bank: each costs a product for each frame of the bank."""


class Scorer(Enum):
    """What decides how much of a prompt a frame shows."""

    LATE_INTERACTION = "late interaction"
    KEY_KEY = "key-key"
    ATTENTION_MASS = "attention mass"
    VISUAL_QUERY = "visual query"


@dataclass(frozen=True, slots=True)
class PromptBankConfig:
    """`frames` are brought back for each chunk. `variety` from 0 to 1 is how much a frame loses by looking like one that is
    in the bank already. With `anchors`, frames of shots that mention a character of the coming shot come first.

    `pins` and `vetoes` are moments of the film as an artist writes them, and are read beside these frames. Of every
    `record_every` frames the first may be brought back; with `newest` the last of these always is. With `per_layer` every
    layer of the model brings back its own frames by its own scores. `parts` above 0 reads of the bank, for each group of
    queries, so many frames' worth of the pages that concern it, and not all of it. Raises ValueError when a number makes no
    sense.
    """

    frames: int = 3
    variety: float = 0.3
    anchors: bool = False
    pins: str = ""
    vetoes: str = ""
    scorer: Scorer = Scorer.LATE_INTERACTION
    per_layer: bool = False
    record_every: int = 1
    newest: bool = False
    parts: float = 0.0

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"The prompt bank needs at least 1 frame, got {self.frames}. Turn 'bank' up.")
        if not 0 <= self.variety <= 1:
            raise ValueError(f"Variety needs to be from 0 to 1, got {self.variety}.")
        if self.record_every < 1:
            raise ValueError(f"The prompt bank needs to record every 1 or more frames, got {self.record_every}.")
        if not 0 <= self.parts <= self.frames:
            raise ValueError(
                f"Parts of the bank need to be from 0 to the {self.frames} frames that it holds, got {self.parts}. Turn "
                "'parts' down or 'bank' up."
            )
        if self.parts and self.per_layer:
            raise ValueError(
                "A bank of which parts are read needs to hold the same frames for all layers. Turn 'per_layer' off, or set "
                "'parts' to 0."
            )
        if self.per_layer and self.scorer is Scorer.LATE_INTERACTION:
            raise ValueError(
                "Words are the same for all layers, so 'late interaction' has nothing to say to each of them. Choose another "
                "scorer, or turn 'per_layer' off."
            )


NOTHING = torch.zeros(1, 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Wish:
    """What a chunk would like to see.

    `evidence` `[layers, rows, W]` is what each word of its prompt finds in a row, 0 or more, for each layer or once for all
    of them; frame f is `rows[f]`. `anchored` frames show who is mentioned; `pinned` ones it must read, `vetoed` ones it
    must not.
    """

    evidence: Tensor = NOTHING
    rows: Sequence[int] = ()
    pinned: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()
    anchored: frozenset[int] = frozenset()

    @property
    def layers(self) -> int:
        """How many layers wish for frames of their own, or 1."""
        return len(self.evidence)

    def score(self, frame: int) -> float | None:
        """How well a frame answers the prompt, over all layers; None where nobody asked."""
        if frame >= len(self.rows):
            return None
        return round(float(self.evidence[:, self.rows[frame]].sum(dim=-1).mean()), 4)


class Brought(NamedTuple):
    """Why a frame was brought back: `pin`, `anchor` or `prompt`, and its score, None where nothing was scored."""

    why: str
    score: float | None


Likeness = Callable[[Sequence[int], Sequence[int]], Tensor]
"""Cosine `[A, B]`, 0 to 1, of what two lists of frames look like."""


def choose_bank(
    frames: Sequence[int], wish: Wish, config: PromptBankConfig, likeness: Likeness, layer: int = 0
) -> tuple[int, ...]:
    """At most `config.frames` of these frames, oldest first: those that together show most of what the prompt speaks of.

    A frame adds what it shows of each word beyond those in the bank, and `AGAIN` of the rest; it loses by looking like one of
    them. Among equals the newer frame wins.
    """
    free = sorted({frame for frame in frames if frame % config.record_every == 0 and frame not in wish.vetoed})[::-1]
    taken = [free.pop(0)] if config.newest and free else []
    evidence = _evidence_of(wish, layer, taken + free)
    shown = evidence[: len(taken)].amax(dim=0) if taken else torch.zeros(evidence.shape[1])  # [W]
    evidence = evidence[len(taken) :]
    waiting = torch.tensor(free, dtype=torch.long)
    anchored = torch.tensor([float(frame in wish.anchored) for frame in free])
    while len(waiting) and len(taken) < config.frames:
        new = (evidence - shown).clamp_min(0).sum(dim=1)
        worth = new + AGAIN * (evidence.sum(dim=1) - new) + anchored
        best = int(worth.argmax())  # the first of equals, which is the newest
        if config.variety > 0 and taken:
            pool = worth.argsort(descending=True, stable=True)[:LIKENESS_POOL]
            alike = likeness(waiting[pool].tolist(), taken).amax(dim=1)
            best = int(pool[(worth[pool] * (1 - config.variety * alike)).argmax()])
        taken.append(int(waiting[best]))
        shown = torch.maximum(shown, evidence[best])
        rest = torch.arange(len(waiting)) != best
        waiting, evidence, anchored = waiting[rest], evidence[rest], anchored[rest]
    return tuple(sorted(taken))


def _evidence_of(wish: Wish, layer: int, frames: Sequence[int]) -> Tensor:
    """Evidence `[F, W]` of these frames for a layer; nothing where nobody asked."""
    if not wish.rows:
        return torch.zeros(len(frames), 1)
    return wish.evidence[layer, torch.tensor([wish.rows[frame] for frame in frames], dtype=torch.long)]
