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


def prompt_affinity(prompts: Sequence[Tensor]) -> Tensor:
    """Affinity `[shots, shots]` in 0..1 of each prompt (row) to each (column), from token vectors `[W, C]` of the shots.

    Padding (rows of zeros) does not count; a prompt that says nothing of its own is equally near to all.
    """
    tokens = [normalize(_real(prompt)) for prompt in prompts]
    mean = normalize(torch.cat(tokens).mean(dim=0), dim=0) if tokens else torch.empty(0)
    # What all tokens share says nothing about any of them; text encoders have much of it.
    apart = [normalize(x - (x @ mean)[:, None] * mean) for x in tokens]
    rows = []
    for own in apart:
        matches = torch.stack([(own @ other.T).amax(dim=1).clamp(0, 1) for other in apart])  # [shots, W]
        rarity = torch.log(len(apart) / matches.sum(dim=0).clamp_min(1))  # [W]
        weight = rarity / rarity.sum() if float(rarity.sum()) > 0 else torch.full_like(rarity, 1 / len(rarity))
        rows.append(matches @ weight)
    return torch.stack(rows)


def _real(prompt: Tensor) -> Tensor:
    prompt = prompt.detach().float().cpu()
    real = prompt[prompt.abs().amax(dim=-1) > 0]
    return real if len(real) else prompt[:1]
