"""Matrices in 8 bits: which ones, how near they stay, and that everything else is as it was."""

from __future__ import annotations

import torch

from longreel.memory.training.eight_bit import LARGEST, in_eight_bits, out_of_eight_bits


def test_chosen_matrices_come_back_to_half_a_level_and_all_else_to_the_bit() -> None:
    g = torch.Generator().manual_seed(0)
    weights = {
        "txt_in.a.weight": torch.randn(6, 40, generator=g) * torch.logspace(-6, 3, 6)[:, None],
        "txt_in.a.bias": torch.randn(6, generator=g),
        "double_blocks.0.weight": torch.randn(6, 40, generator=g),
        "txt_in.silent.weight": torch.zeros(3, 4),
    }
    kept = in_eight_bits(weights, ("txt_in.",))
    assert kept["txt_in.a.weight"].dtype == torch.int8
    back = out_of_eight_bits(kept)
    assert back.keys() == weights.keys()
    for name in ("txt_in.a.bias", "double_blocks.0.weight"):
        assert torch.equal(back[name], weights[name])
    assert not back["txt_in.silent.weight"].any()
    whole = weights["txt_in.a.weight"]
    level = whole.abs().amax(1, keepdim=True) / LARGEST
    rounding = whole.abs() * torch.finfo(torch.bfloat16).eps  # what comes back is bf16
    assert ((back["txt_in.a.weight"].float() - whole).abs() <= level * 0.5 + rounding + level * 1e-3).all()


def test_without_a_part_nothing_changes() -> None:
    weights = {"txt_in.a.weight": torch.ones(2, 3)}
    assert in_eight_bits(weights, ()) == weights
    assert out_of_eight_bits(weights) == weights
