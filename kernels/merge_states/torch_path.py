"""Merge of states with torch operations, on any device."""

from __future__ import annotations

import torch

from ..state import AttentionState


def merge_states(a: AttentionState, b: AttentionState) -> AttentionState:
    """As the reference, in the type of the outputs."""
    weight = torch.sigmoid(b.lse - a.lse).nan_to_num(0.0)  # of b; not a number where both sets are empty
    out = torch.lerp(a.out.float(), b.out.float(), weight[..., None])
    return AttentionState(out.to(a.out.dtype), torch.logaddexp(a.lse, b.lse))
