"""What is right: samples of attention in float64, and how far PyTorch itself is from them in the type of a case."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..page_attention.reference import read_tokens
from .cases import Inputs, KernelCase

SAMPLES = 6
ERROR_FACTOR = 2.0  # against PyTorch in the same type, as in the tests
SUM_ERROR = 1e-5  # sums in float32, in another order


def allowed_error(dtype: torch.dtype, torch_error: float = 0.0) -> float:
    """The largest relative error with which something may still be timed."""
    return max(ERROR_FACTOR * torch_error, torch.finfo(dtype).eps)


def sampled_parts(case: KernelCase) -> list[tuple[slice, int]]:
    """Queries of a group and a head, some of all."""
    pairs = [(i * case.groups // SAMPLES, i * case.heads // SAMPLES) for i in range(SAMPLES)]
    size = case.group_tokens
    return [(slice(group * size, min((group + 1) * size, case.tokens)), head) for group, head in pairs]


def sampled(out: Tensor, case: KernelCase) -> Tensor:
    """The samples of an output `[L, H, D]`."""
    return torch.cat([out[part] for part in sampled_parts(case)])


def sample_exactly(inputs: Inputs, reads: str) -> tuple[Tensor, float]:
    """What attention gives for the sampled queries in float64, and the error of PyTorch in the type of the case."""
    case = inputs.case
    exact, plain = [], []
    for rows, head in sampled_parts(case):
        q, k, v = inputs.q[rows, head], inputs.k[head], inputs.v[head]
        if reads == "window":
            k, v = k[: case.dense_tokens], v[: case.dense_tokens]
        elif reads == "lists":
            group = rows.start // case.group_tokens
            k, v = (
                read_tokens(x[head], inputs.pages, inputs.lists, case.dense_tokens, head, group)
                for x in inputs.pages[:2]
            )
        scores = q.double() @ k.double().T / math.sqrt(case.head_dim)
        exact.append(scores.softmax(dim=-1) @ v.double())
        plain.append(scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0])
    expected = torch.cat(exact)
    return expected, relative_error(torch.cat(plain), expected)


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    right = exact.double()
    return float((out.double() - right).norm() / right.norm())
