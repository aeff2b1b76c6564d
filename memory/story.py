"""What a film's prompts say about its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .chunks import Plan
from .film_moments import read_moments
from .prompt_affinity import prompt_affinity
from .prompt_bank import PromptBankConfig, Wish

PRESENT_SHOT = 0.5
"""What the present shot has shown is worth less than an earlier one that its prompt speaks of, or it would fill the bank of
a long shot and crowd out who was brought back; and more than one that has little to do with it."""


@dataclass(frozen=True, slots=True)
class Story:
    """The shot of each frame, and how near prompts are to each other.

    `affinity[a][b]` is how much shot b shows of what the prompt of shot a asks for; `cast[a]` are the characters that shot
    a mentions.
    """

    shots: Sequence[int]
    affinity: Sequence[Sequence[float]]
    cast: Sequence[frozenset[str]] = ()
    pinned: frozenset[int] = frozenset()
    vetoed: frozenset[int] = frozenset()

    def wish(self, shot: int) -> Wish:
        """What a chunk of this shot would like to see: first who it mentions, then what its prompt speaks of."""
        mentioned = self.cast[shot] if self.cast else frozenset()
        worth = list(self.affinity[shot])
        for past, there in enumerate(self.cast):
            worth[past] += not mentioned.isdisjoint(there)
        if shot < len(worth):
            worth[shot] = PRESENT_SHOT
        scores = {frame: worth[past] for frame, past in enumerate(self.shots)}
        # A shot that went wrong may see itself while it is made; nobody else may.
        vetoed = frozenset(frame for frame in self.vetoed if self.shots[frame] != shot)
        return Wish(scores, self.pinned, vetoed)


def make_story(
    plan: Plan, prompts: Sequence[Tensor], cast: Sequence[frozenset[str]], fps: float, config: PromptBankConfig
) -> Story:
    """The story of a plan whose shots have these prompts, as token vectors `[W, C]`, and these characters.

    Prompts behind those of the shots ask the film, too, but are not part of it. Raises ValueError as `find_moments` does.
    """
    pinned, vetoed = find_moments(plan, fps, config)
    shots = [0] * plan.total_frames
    for chunk in plan.chunks:
        for frame in chunk.frames:
            shots[frame] = chunk.shot
    affinity = prompt_affinity(prompts, len(plan.shots())).tolist()
    return Story(shots, affinity, tuple(cast) if config.anchors else (), pinned, vetoed)


def find_moments(plan: Plan, fps: float, config: PromptBankConfig) -> tuple[frozenset[int], frozenset[int]]:
    """Pinned and vetoed frames.

    Raises ValueError for moments outside the film, that contradict each other, or that are more than the bank holds.
    """
    pinned, vetoed = (_moments(name, text, plan, fps) for name, text in (("pin", config.pins), ("veto", config.vetoes)))
    both = sorted(pinned & vetoed)
    if both:
        raise ValueError(
            f"{len(both)} latent frames are pinned and vetoed, the first one is frame {both[0]}. Take them out of one list."
        )
    if len(pinned) > config.frames:
        raise ValueError(
            f"The pins need {len(pinned)} latent frames, but the bank holds {config.frames}. Turn 'bank' up, or pin single "
            "moments, as in 12.5s."
        )
    return pinned, vetoed


def _moments(name: str, text: str, plan: Plan, fps: float) -> frozenset[int]:
    try:
        return read_moments(text, plan, fps)
    except ValueError as problem:
        raise ValueError(f"In '{name}' of the Prompt-Retrieved Memory Bank: {problem}") from problem
