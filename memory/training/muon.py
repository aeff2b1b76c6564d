"""Muon for the matrices of a small model: momentum whose singular values are all made about 1.

After K. Jordan et al., "Muon: an optimizer for hidden layers" (2024), with the step size of J. Liu et al., "Muon is
scalable for LLM training" (2025), so that AdamW's learning rates fit. torch's own works in bfloat16, which a CPU
without matrix units does four times slower; this one stays in float32 and takes all matrices of a shape at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS_OF_ADAMW = 0.2


def orthogonalise(matrices: Tensor) -> Tensor:
    """Newton-Schulz iterations that bring the singular values of `[N, A, B]` near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.transpose(1, 2) if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Steps 2-D parameters; all of one shape are orthogonalised together."""

    def __init__(self, matrices: Any, lr: float, momentum: float = 0.95) -> None:
        """Keep one momentum buffer for each of `matrices`: parameters, or groups of them."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step with Nesterov momentum."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                ahead = [self._nesterov(matrix, group["momentum"]) for matrix in matrices]
                updates = orthogonalise(torch.stack(ahead)) * (RMS_OF_ADAMW * max(shape) ** 0.5)
                torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"])

    def _nesterov(self, matrix: Tensor, momentum: float) -> Tensor:
        gradient = matrix.grad
        if gradient is None:
            raise ValueError("Muon needs a gradient for every matrix, got none. Call backward() before step().")
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)
