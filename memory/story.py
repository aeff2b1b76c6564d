"""What a film's prompts say about its frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .chunks import Plan
from .film_moments import NO_MOMENTS, Moments
from .prompt_affinity import PromptAffinity
from .prompt_bank import PromptBankConfig, Scorer, Wish
from .text_record import TextRecord, by_attention, by_keys, by_queries

PRESENT_SHOT = 0.5
"""What the present shot has shown is worth less than an earlier one that its prompt speaks of, or it would fill the bank of
a long shot and crowd out who was brought back; and more than one that has little to do with it."""


def _no_keys(prompt: int) -> Tensor:
    raise RuntimeError(f"The words of prompt {prompt} need the model to be heard.")


@dataclass(frozen=True, slots=True)
class Story:
    """The shot of each frame, and how near prompts are to each other.

    `cast[a]` are the characters that shot a mentions. Without an `affinity` nothing is asked for but what is pinned.
    `text_keys` gives the model's own keys `[layers, H, D]` of a prompt, as means over its words.
    """

    shots: Sequence[int]
    affinity: PromptAffinity | None = None
    cast: Sequence[frozenset[str]] = ()
    moments: Moments = NO_MOMENTS
    text_keys: Callable[[int], Tensor] = _no_keys
    _heard: dict[int, Tensor] = field(default_factory=dict)

    def wish(self, shot: int) -> Wish:
        """What a chunk of this shot would like to see, by the words of the prompts: each of an earlier shot's, or its own."""
        wish = self._marked(shot)
        if self.affinity is None:
            return wish
        evidence = self.affinity.evidence(shot)
        worth = torch.ones(len(evidence), 1)
        worth[shot:] = PRESENT_SHOT
        rows = [min(past, len(evidence) - 1) for past in self.shots]  # of later shots nothing is remembered yet
        return replace(wish, evidence=(evidence * worth)[None], rows=rows)

    def wish_by(
        self,
        record: TextRecord,
        frames: Sequence[int],
        shot: int,
        means: Callable[[], Tensor],
        config: PromptBankConfig,
    ) -> Wish:
        """The same, by what the model itself says of the remembered `frames`: each of them is a row.

        `means` gives their mean keys `[layers, H, F, D]`. The new prompt is heard before anything is chosen.
        """
        wish = self._marked(shot)
        if not frames:
            return wish
        if config.scorer is Scorer.ATTENTION_MASS:
            assert self.affinity is not None
            evidence = by_attention(record, frames, self.affinity, shot)
        elif config.scorer is Scorer.VISUAL_QUERY:
            heard = torch.stack([self._hear(prompt) for prompt in range(shot + 1)])
            evidence = by_queries(heard, record.queries(frames))
        else:
            evidence = by_keys(self._hear(shot), means())
        if config.scorer is not Scorer.KEY_KEY:
            own = torch.tensor([self.shots[frame] == shot for frame in frames])
            evidence = torch.where(own[:, None], PRESENT_SHOT * evidence, evidence)
        if not config.per_layer:
            evidence = evidence.mean(dim=0, keepdim=True)
        rows = [0] * (frames[-1] + 1)
        for row, frame in enumerate(frames):
            rows[frame] = row
        return replace(wish, evidence=evidence, rows=rows)

    def _marked(self, shot: int) -> Wish:
        """Pins, vetoes and who is mentioned, without what the prompt asks for."""
        mentioned = self.cast[shot] if shot < len(self.cast) else frozenset()
        showing = {past for past, there in enumerate(self.cast) if past != shot and not mentioned.isdisjoint(there)}
        anchored = frozenset(frame for frame, past in enumerate(self.shots) if past in showing)
        # A shot that went wrong may see itself while it is made; nobody else may.
        vetoed = frozenset(frame for frame in self.moments.vetoed if self.shots[frame] != shot)
        return Wish(pinned=self.moments.pinned, vetoed=vetoed, anchored=anchored)

    def _hear(self, prompt: int) -> Tensor:
        if prompt not in self._heard:
            self._heard[prompt] = self.text_keys(prompt).float().cpu()
        return self._heard[prompt]


def make_story(
    plan: Plan,
    prompts: Sequence[Tensor],
    cast: Sequence[frozenset[str]],
    moments: Moments,
    config: PromptBankConfig | None,
    text_keys: Callable[[int], Tensor] = _no_keys,
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
    affinity = PromptAffinity(prompts, len(plan.shots()))
    return Story(shots, affinity, tuple(cast) if config.anchors else (), moments, text_keys)
