"""Where gates begin: as near as gates alone can bring their branches to what one softmax over everything answers.

For a token and a head whose gated branches are b_i and whose answer less the ungated branches is t, the error of gates g is
|sum_i g_i b_i - t|^2: a quadratic form, whose coefficients are all that has to be kept of a film.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, linear, scaled_dot_product_attention

from ..gates import Gates
from .clips import ClipBatch
from .gated_reader import GatedReader

CHARACTER_WEIGHT = 4.0
"""How much more tokens of a character count, as in the loss of all training here."""
PENALTY = 1e-4
"""Of the squares of the weights of a gate, against the share of the answers that is missed."""
MOST_ROUNDS = 200


class Mixture(NamedTuple):
    """What the gates of a layer are fitted to, of N tokens, H heads and b gated branches."""

    x: Tensor  # [N, C], the hidden state
    products: Tensor  # [N, H, b, b], of the branches with each other
    wanted: Tensor  # [N, H, b], of the branches with what is asked for
    norm: Tensor  # [N, H], of what is asked for with itself
    weight: Tensor  # [N]


class MixtureRecorder:
    """Takes the place of a `GatedReader`: reads everything with one softmax, and keeps what gates would have to mix."""

    def __init__(self, reader: GatedReader, batch: ClipBatch, copies: int) -> None:
        self._reader, self._copies = reader, copies
        mask = batch.mask.repeat_interleave(copies, dim=0)
        self._weight = 1 + (CHARACTER_WEIGHT - 1) * (avg_pool2d(mask, 2).flatten(1) > 0.5).float()  # [B * copies, L]
        self.mixtures: dict[int, list[Mixture]] = {}

    def read(self, chunk: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Output `[B * copies, H, L, D]` of a chunk's queries over everything."""
        answer = scaled_dot_product_attention(q, k, v)
        found = self._reader.branches(chunk, q, k, v)
        gated = self._reader.gates.form.branches
        if all(name in found for name in gated):
            tokens = q.shape[2]
            layer, x = self._reader.heard(chunk, tokens)
            ungated = [branch for name, branch in found.items() if name not in gated]
            asked = answer - torch.stack(ungated).sum(0) if ungated else answer
            branches = torch.stack([found[name] for name in gated], dim=-2)  # [B * copies, H, L, b, D]
            parts = (
                x[:, :, None],
                (branches @ branches.mT).transpose(1, 2),
                (branches @ asked[..., None])[..., 0].transpose(1, 2),
                asked.square().sum(-1).transpose(1, 2),
                self._weight[:, chunk * tokens : (chunk + 1) * tokens],
            )
            # The first copy is the clean history itself, which nobody draws. Gates are fitted on the CPU.
            noisy = torch.arange(len(x)) % self._copies > 0
            kept = Mixture(*(part.cpu()[noisy].flatten(0, 1) for part in parts))
            self.mixtures.setdefault(layer, []).append(kept._replace(x=kept.x[:, 0]))
        return answer


def fit_gates(start: Gates, recorders: Iterable[MixtureRecorder]) -> Gates:
    """The gates that miss least of the answers in `recorders`, found layer by layer from `start`."""
    found = list(recorders)
    fitted = []
    for layer, (weights, biases) in enumerate(zip(start.weights, start.biases, strict=True)):
        recorded = (mixture for recorder in found for mixture in recorder.mixtures[layer])
        mixture = Mixture(*(torch.cat(parts) for parts in zip(*recorded, strict=True)))
        fitted.append(_fit_layer(weights, biases, mixture))
    return Gates(start.form, *(torch.stack(parts) for parts in zip(*fitted, strict=True)))


def missed_share(weights: Tensor, biases: Tensor, mixture: Mixture) -> Tensor:
    """Share of the answers that gates of these `weights` `[H x b, C]` and `biases` `[H x b]` miss."""
    g = linear(mixture.x, weights, biases).sigmoid().unflatten(-1, mixture.wanted.shape[1:])  # [N, H, b]
    error = mixture.norm + ((mixture.products @ g[..., None])[..., 0] * g).sum(-1) - 2 * (mixture.wanted * g).sum(-1)
    of_token = mixture.weight[:, None]
    share: Tensor = (error * of_token).sum() / (mixture.norm * of_token).sum()
    return share


def _fit_layer(weights: Tensor, biases: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    parts = [weights.clone().requires_grad_(), biases.clone().requires_grad_()]
    optimiser = torch.optim.LBFGS(parts, max_iter=MOST_ROUNDS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = missed_share(parts[0], parts[1], mixture) + PENALTY * parts[0].square().sum() / len(parts[0])
        loss.backward()
        return loss

    step: Callable[..., Any] = optimiser.step
    step(closure)
    return parts[0].detach(), parts[1].detach()
