"""How much one shot's prompt speaks of what another's does: late interaction, weighted by rarity.

Every token of the coming prompt looks for its best match in the other prompt (ColBERT, Khattab and Zaharia 2020), and
counts by how few prompts of the film say the same (inverse document frequency): a name in three shots of forty says
more than a forest in ten. Nothing has to be trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import normalize


class PromptAffinity:
    """The prompts of a film, as token vectors `[W, C]`; padding (rows of zeros) does not count.

    The first `film` of them are the shots', all where it is None, the others only ask, as if they came behind the film.
    What is rare follows from the film up to the shot that asks, so that a longer film begins as the shorter one.
    """

    def __init__(self, prompts: Sequence[Tensor], film: int | None = None) -> None:
        self.film = len(prompts) if film is None else film
        self.real = [real_tokens(prompt) for prompt in prompts]
        self._tokens = [
            prompt.detach().float().cpu()[real] for prompt, real in zip(prompts, self.real, strict=True)
        ]  # [W, C]
        known: dict[bytes, int] = {}  # a prompt that comes again is compared once
        self._place = [known.setdefault(x.numpy().tobytes(), len(known)) for x in self._tokens[: self.film]]
        self._answered: tuple[int, Tensor] | None = None

    def evidence(self, asking: int) -> Tensor:
        """What each token of a prompt finds in the prompts of earlier shots and its own: `[shots so far, W]`, 0 to its weight.

        Weights add up to 1, so a row's sum is the affinity, 0..1; a prompt that says nothing of its own is equally near to
        all.
        """
        if self._answered is None or self._answered[0] != asking:  # asked for every chunk of a shot
            self._answered = asking, self._evidence(asking)
        return self._answered[1]

    def matches(self, asking: int, other: int) -> Tensor:
        """Cosine `[W of the other, W]`, 0 to 1, of the tokens of two prompts, what the film's tokens share left out."""
        mean = self._mean(asking)
        return (_apart(self._tokens[other], mean) @ _apart(self._tokens[asking], mean).T).clamp(0, 1)

    def _evidence(self, asking: int) -> Tensor:
        seen = self._place[: asking + 1]
        mean = self._mean(asking)
        tokens = _apart(self._distinct[: max(seen) + 1], mean) @ _apart(self._tokens[asking], mean).T
        matches = tokens.amax(dim=1).clamp(0, 1)[torch.tensor(seen)]  # [shots so far, W]
        rarity = torch.log(len(seen) / matches.sum(dim=0).clamp_min(1))  # [W]
        weight = rarity / rarity.sum() if float(rarity.sum()) > 0 else torch.full_like(rarity, 1 / len(rarity))
        return matches * weight

    @cached_property
    def _distinct(self) -> Tensor:
        """Prompts that differ, `[prompts, longest W, C]`, padded."""
        distinct = [self._tokens[self._place.index(at)] for at in range(max(self._place) + 1)]
        words = torch.zeros(len(distinct), max(map(len, distinct)), distinct[0].shape[-1])
        for row, tokens in enumerate(distinct):
            words[row, : len(tokens)] = tokens
        return words

    @cached_property
    def _sums(self) -> Tensor:
        return torch.stack([normalize(x).sum(dim=0) for x in self._tokens[: self.film]]).cumsum(dim=0)

    def _mean(self, asking: int) -> Tensor:
        return normalize(self._sums[min(asking, self.film - 1)], dim=0)


def real_tokens(prompt: Tensor) -> Tensor:
    """Which rows `[W]` of a prompt are no padding; the first one of an empty prompt."""
    real = prompt.detach().abs().amax(dim=-1).cpu() > 0
    return real if bool(real.any()) else torch.arange(len(real)) == 0


def _apart(tokens: Tensor, mean: Tensor) -> Tensor:
    # What all tokens share says nothing about any of them; text encoders have much of it. Padding stays 0.
    unit = normalize(tokens, dim=-1)
    return normalize(unit - (unit @ mean)[..., None] * mean, dim=-1)
