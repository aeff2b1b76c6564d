"""`longreel bench kernels --record`: what is recorded is what the product itself remembers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from numerics import CODE_ERROR
from torch import Tensor

from longreel.kernels.bench.recorded import TENSORS, load_recording
from longreel.memory.session import LayerCall, RunSession
from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.kernels_record import CHUNKS, LAYERS


def test_recorded_keys_are_those_that_the_product_keeps(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[int, list[Tensor]] = {layer: [] for layer in LAYERS}
    attend = RunSession.attend

    def listening(self: RunSession, call: LayerCall) -> Tensor:
        if call.layer in kept and call.k_timeless is not None:
            kept[call.layer].append(call.k_timeless[0].clone())
        return attend(self, call)

    monkeypatch.setattr(RunSession, "attend", listening)
    assert main(["bench", "kernels", "--record", str(tmp_path / "film.safetensors")]) == 0
    recording, ships = load_recording(tmp_path / "film.safetensors"), load_recording()
    assert recording.facts.keys() == ships.facts.keys()
    assert all(getattr(recording, name).shape == getattr(ships, name).shape for name in TENSORS)
    heads = recording.k.shape[0] // len(LAYERS)
    for at, layer in enumerate(LAYERS):
        assert len(kept[layer]) == CHUNKS
        product = torch.cat(kept[layer]).transpose(0, 1)  # [H, T, D], the last chunk behind the history
        ours = torch.cat([recording.k, recording.own_k[-1]], dim=1)[at * heads : (at + 1) * heads]
        code = product.abs().amax(dim=-1, keepdim=True) / 127
        assert ((ours - product).abs() <= CODE_ERROR * code).all()
