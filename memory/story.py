"""What a film's prompts say about its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .chunks import Plan
from .film_moments import NO_MOMENTS, Moments
from .prompt_affinity import prompt_affinity
from .prompt_bank import PromptBankConfig, Wish

PRESENT_SHOT = 0.5
"""What the present shot has shown is worth less than an earlier one that its prompt speaks of, or it would fill the bank of
a long shot and crowd out who was brought back; and more than one that has little to do with it."""


@dataclass(frozen=True, slots=True)
class Story:
    """The shot of each frame, and how near prompts are to each other.

    `affinity[a][b]` is how much shot b shows of what the prompt of shot a asks for; `cast[a]` are the characters that shot
    a mentions. Without them nothing is asked for but what is pinned.
    """

    shots: Sequence[int]
    affinity: Sequence[Sequence[float]] = ()
    cast: Sequence[frozenset[str]] = ()
    moments: Moments = NO_MOMENTS

    def wish(self, shot: int) -> Wish:
        """What a chunk of this shot would like to see: first who it mentions, then what its prompt speaks of."""
        scores: dict[int, float] = {}
        if self.affinity:
            worth = list(self.affinity[shot])
            if shot < len(worth):
                worth[shot] = PRESENT_SHOT
            scores = {frame: worth[past] for frame, past in enumerate(self.shots)}
        mentioned = self.cast[shot] if shot < len(self.cast) else frozenset()
        showing = {past for past, there in enumerate(self.cast) if past != shot and not mentioned.isdisjoint(there)}
        anchored = frozenset(frame for frame, past in enumerate(self.shots) if past in showing)
        # A shot that went wrong may see itself while it is made; nobody else may.
        vetoed = frozenset(frame for frame in self.moments.vetoed if self.shots[frame] != shot)
        return Wish(scores, self.moments.pinned, vetoed, anchored)


def make_story(
    plan: Plan,
    prompts: Sequence[Tensor],
    cast: Sequence[frozenset[str]],
    moments: Moments,
    config: PromptBankConfig | None,
) -> Story:
    """The story of a plan whose shots have these prompts, as token vectors `[W, C]`, and these characters.

    Prompts behind those of the shots ask the film, too, but are not part of it. Without a `config` nobody listens to them.
    """
    shots = [0] * plan.total_frames
    for chunk in plan.chunks:
        for frame in chunk.frames:
            shots[frame] = chunk.shot
    if config is None:
        return Story(shots, moments=moments)
    affinity = prompt_affinity(prompts, len(plan.shots())).tolist()
    return Story(shots, affinity, tuple(cast) if config.anchors else (), moments)
