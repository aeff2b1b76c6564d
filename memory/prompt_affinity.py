"""How much one shot's prompt speaks of what another's does: late interaction, weighted by rarity.

Every token of the coming prompt looks for its best match in the other prompt (ColBERT, Khattab and Zaharia 2020), and
counts by how few prompts of the film say the same (inverse document frequency): a name in three shots of forty says
more than a forest in ten. Nothing has to be trained for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def prompt_affinity(prompts: Sequence[Tensor], film: int | None = None) -> Tensor:
    """Affinity `[prompts, film]` in 0..1 of each prompt (row) to those of earlier shots and its own, 0 to later ones.

    `prompts` are token vectors `[W, C]`; the first `film` of them are the shots', all where it is None, the others only ask,
    as if they came behind the film. What is rare follows from the film up to the shot that asks, so that a longer film
    begins as the shorter one. Padding (rows of zeros) does not count; a prompt that says nothing of its own is equally near
    to all.
    """
    film = len(prompts) if film is None else film
    real = [_real(prompt) for prompt in prompts]
    known: dict[bytes, int] = {}  # a prompt that comes again is compared once
    place = [known.setdefault(x.numpy().tobytes(), len(known)) for x in real[:film]]
    distinct = [real[place.index(at)] for at in range(len(known))]
    words = torch.zeros(len(distinct), max(map(len, distinct)), real[0].shape[-1])
    for row, tokens in enumerate(distinct):
        words[row, : len(tokens)] = tokens
    sums = torch.stack([normalize(x).sum(dim=0) for x in real[:film]]).cumsum(dim=0)
    rows = torch.zeros(len(prompts), film)
    for asking, own in enumerate(real):
        seen = place[: asking + 1]
        mean = normalize(sums[min(asking, film - 1)], dim=0)
        best = (_apart(words[: max(seen) + 1], mean) @ _apart(own, mean).T).amax(dim=1)  # [distinct so far, W]
        matches = best.clamp(0, 1)[torch.tensor(seen)]  # [shots so far, W]
        rarity = torch.log(len(seen) / matches.sum(dim=0).clamp_min(1))  # [W]
        weight = rarity / rarity.sum() if float(rarity.sum()) > 0 else torch.full_like(rarity, 1 / len(rarity))
        rows[asking, : len(seen)] = matches @ weight
    return rows


def _apart(tokens: Tensor, mean: Tensor) -> Tensor:
    # What all tokens share says nothing about any of them; text encoders have much of it. Padding stays 0.
    unit = normalize(tokens, dim=-1)
    return normalize(unit - (unit @ mean)[..., None] * mean, dim=-1)


def _real(prompt: Tensor) -> Tensor:
    prompt = prompt.detach().float().cpu()
    real = prompt[prompt.abs().amax(dim=-1) > 0]
    return real if len(real) else prompt[:1]
