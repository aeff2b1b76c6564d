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
    """Affinity `[prompts, film]` in 0..1 of each prompt (row) to those of the film's shots, from token vectors `[W, C]`.

    The first `film` prompts are the shots', all of them where it is None; others ask, but say nothing about what is rare.

    Padding (rows of zeros) does not count; a prompt that says nothing of its own is equally near to all.
    """
    film = len(prompts) if film is None else film
    real = [_real(prompt) for prompt in prompts]
    mean = normalize(torch.cat([normalize(x) for x in real[:film]]).mean(dim=0), dim=0)
    known: dict[bytes, int] = {}  # a prompt that comes again is compared once
    place = [known.setdefault(x.numpy().tobytes(), len(known)) for x in real]
    apart = [_apart(real[place.index(at)], mean) for at in range(len(known))]
    shots = sorted(set(place[:film]))
    words = torch.zeros(len(shots), max(len(apart[at]) for at in shots), real[0].shape[-1])
    for row, at in enumerate(shots):
        words[row, : len(apart[at])] = apart[at]
    columns = torch.tensor([shots.index(at) for at in place[:film]])
    rows = []
    for own in apart:
        best = (words.flatten(0, 1) @ own.T).unflatten(0, words.shape[:2]).amax(dim=1)
        matches = best.clamp(0, 1)[columns]  # [film, W]
        rarity = torch.log(film / matches.sum(dim=0).clamp_min(1))  # [W]
        weight = rarity / rarity.sum() if float(rarity.sum()) > 0 else torch.full_like(rarity, 1 / len(rarity))
        rows.append(matches @ weight)
    return torch.stack([rows[at] for at in place])


def _apart(tokens: Tensor, mean: Tensor) -> Tensor:
    # What all tokens share says nothing about any of them; text encoders have much of it.
    unit = normalize(tokens)
    return normalize(unit - (unit @ mean)[:, None] * mean)


def _real(prompt: Tensor) -> Tensor:
    prompt = prompt.detach().float().cpu()
    real = prompt[prompt.abs().amax(dim=-1) > 0]
    return real if len(real) else prompt[:1]
