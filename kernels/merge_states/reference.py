"""Join attention over two disjoint sets of keys into attention over both (FlashInfer, "recursive attention", eq. 2)."""

from __future__ import annotations

import torch

from ..state import AttentionState


def merge_states(a: AttentionState, b: AttentionState) -> AttentionState:
    """Attention over both sets, in float32 or better: outputs weighted by their shares of all exponentials."""
    out = torch.stack((a.out, b.out)).to(torch.promote_types(a.out.dtype, torch.float32))  # [2, L, H, D]
    lse = torch.stack((a.lse, b.lse)).to(out.dtype)  # [2, L, H]
    largest = lse.amax(0).nan_to_num(neginf=0.0)
    share = (lse - largest).exp()  # [2, L, H]
    total = share.sum(0)
    weight = torch.where(total > 0, share / total, 0.0)
    return AttentionState((weight[..., None] * out).sum(0), largest + total.log())
