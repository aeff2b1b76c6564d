"""Training of gates: all but the attention stays as it is, a stop changes no bit, gradients reach every branch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longreel.memory.gates import GateForm, find_gates, fresh_gates
from longreel.memory.training.causal import predict_flow
from longreel.memory.training.clips import TileCodec, clip_batch
from longreel.memory.training.gate_fit import Mixture, MixtureRecorder, fit_gates, missed_share
from longreel.memory.training.gate_training import GateTraining, clip_spec, gated_reader, recorded, train_gates
from longreel.memory.training.tiny_training import Stage, training_films
from longreel.memory.whole_file import ProjectError
from longreel.nodes.host.build import TinyWanSpec, host_modules

SPEC = TinyWanSpec(width=128, layers=2, ffn=128)
SHORT_STAGES = (Stage(0, 1, 5, (1,), 1, 1, 2, 6, 0.5, 0.5, 5.0, 0.0),)


@pytest.fixture(scope="module")
def codec() -> TileCodec:
    """Orthogonal directions, not a fitted VAE: what is tested here does not depend on which."""
    basis = torch.linalg.qr(torch.randn(768, 16, generator=torch.Generator().manual_seed(0))).Q
    return TileCodec(basis, torch.zeros(16), basis.T.contiguous(), torch.zeros(768))


def settings(form: str, steps: int = 3) -> GateTraining:
    return GateTraining(form, steps, SHORT_STAGES, fit_batches=1, warm_up=1, cool_down=1, noisy_copies=1, save_every=1)


@pytest.mark.parametrize("form", ["omnimem", "decmem"])
def test_an_interrupted_training_of_gates_ends_with_the_same_bits(
    host: object, codec: TileCodec, tmp_path: Path, form: str
) -> None:
    modules = host_modules()
    network = modules.new_wan(SPEC)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    unbroken = train_gates(settings(form), modules, network, codec, tmp_path / "unbroken")
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)
    gates = find_gates(unbroken)
    assert gates is not None
    assert (gates.biases != 0).all()  # a gradient reached each branch of each head
    assert unbroken.keys() == gates.named().keys() | {name for name in before if ".self_attn." in name}

    def stop(row: dict[str, float]) -> None:
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_gates(settings(form), modules, modules.new_wan(SPEC), codec, tmp_path / "broken", tell=stop)
    resumed = train_gates(settings(form), modules, modules.new_wan(SPEC), codec, tmp_path / "broken")
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    rows = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (tmp_path / "broken" / "curve.png").stat().st_size > 0


def test_a_run_of_other_gates_is_not_continued(host: object, codec: TileCodec, tmp_path: Path) -> None:
    modules = host_modules()
    train_gates(settings("decmem", steps=1), modules, modules.new_wan(SPEC), codec, tmp_path)
    with pytest.raises(ProjectError, match=r"form=decmem, got omnimem"):
        train_gates(settings("omnimem"), modules, modules.new_wan(SPEC), codec, tmp_path)


@pytest.mark.parametrize("form", ["omnimem", "decmem"])
def test_gates_begin_nearer_to_one_softmax_than_halves_and_than_the_window_alone(
    host: object, codec: TileCodec, form: str
) -> None:
    modules, config = host_modules(), settings(form)
    network = modules.new_wan(SPEC).eval().requires_grad_(False)
    spec = clip_spec(network, modules.time_channels(network.dim // network.num_heads))
    halves = fresh_gates(GateForm(form), spec.layers, spec.heads, network.dim, torch.Generator().manual_seed(0))
    with modules.training():
        (recorder,) = recorded(config, halves, network, codec, spec, "cpu")
        fitted = fit_gates(halves, [recorder])
    for layer, mixtures in recorder.mixtures.items():
        mixture = Mixture(*(torch.cat(parts) for parts in zip(*mixtures, strict=True)))
        ours, before = (missed_share(g.weights[layer], g.biases[layer], mixture) for g in (fitted, halves))
        window = torch.zeros(len(fitted.biases[layer]))
        window[len(halves.form.branches) - 1 :: len(halves.form.branches)] = 10.0 if form == "omnimem" else -10.0
        alone = missed_share(torch.zeros_like(fitted.weights[layer]), window, mixture)
        assert ours < before
        assert ours < alone


def test_recording_what_gates_would_mix_changes_nothing_that_is_read(host: object, codec: TileCodec) -> None:
    modules, config = host_modules(), settings("omnimem")
    network = modules.new_wan(SPEC).eval().requires_grad_(False)
    spec = clip_spec(network, modules.time_channels(network.dim // network.num_heads))
    gates = fresh_gates(GateForm.OMNIMEM, spec.layers, spec.heads, network.dim, torch.Generator().manual_seed(0))
    films, chunk_frames = training_films(config.films, 0)
    batch = clip_batch(films, codec, chunk_frames)
    reader = gated_reader(gates, chunk_frames, spec)
    recorder = MixtureRecorder(reader, batch, 2)
    x = torch.randn(2, *batch.latents.shape[1:], generator=torch.Generator().manual_seed(1))
    sigmas = torch.full((2, x.shape[2]), 0.5)
    with modules.training(), torch.no_grad(), reader.listening(network):
        plain, recording = (predict_flow(network, x, sigmas, batch, reader=r) for r in (None, recorder))
    assert torch.equal(plain, recording)
    assert recorder.mixtures.keys() == {0, 1}
