"""Trains gates for a tiny Wan, and its self-attention with them; everything else of it stays as it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import KVSpec
from ..frame_pages import cut_frame
from ..gates import GateForm, Gates, fresh_gates
from ..presets import GATED_PRESETS, PRESETS
from .causal import predict_flow
from .clips import COLUMNS, ROWS, TileCodec, clip_batch
from .gate_fit import MixtureRecorder, fit_gates
from .gated_reader import GatedReader
from .muon import Muon
from .recall_policies import WINDOW_CHUNKS
from .run_folder import RunFolder, generator_for
from .tiny_training import Stage, TinyTraining, flow_loss, rate_factor, training_films

GATE_STAGES = (
    Stage(0, 4, 8, (1,), 1, 4, 6, 24, 0.0, 0.1, 8.0, 0.0),
    Stage(350, 2, 16, (1,), 1, 4, 6, 24, 0.0, 0.1, 8.0, 0.0),
)
"""Films like those of the last stretch of the tiny Wan's own training, without its lesson; longer ones in the end, because a branch
over the means of all pages that only knew short films is lost in long ones."""

TRAINED_WITH_GATES = ".self_attn."
"""Part of the names of the weights that learn to be read in branches."""


@dataclass(frozen=True, slots=True)
class GateTraining:
    """How gates of a `form` (a value of `GateForm`) are trained, averaged over the last steps.

    They begin as `gate_fit` finds them on the films of `fit_batches` steps. `rate` is AdamW's for the gates, `vector_rate` for the vectors of the self-attention, `matrix_rate` Muon's for its
    matrices. Films, noise and loss are those of `TinyTraining`. `start` names the weights that the model has. Raises ValueError
    where a count makes no sense.
    """

    form: str
    steps: int = 600
    stages: tuple[Stage, ...] = GATE_STAGES
    fit_batches: int = 12
    rate: float = 3e-3
    matrix_rate: float = 1e-3
    vector_rate: float = 1e-3
    warm_up: int = 20
    cool_down: int = 200
    noisy_copies: int = 2
    average_decay: float = 0.98
    seed: int = 0
    save_every: int = 10
    start: str = "shipped"

    def __post_init__(self) -> None:
        _ = self.films  # has the same rules
        if self.fit_batches < 1:
            raise ValueError(f"Gates need at least 1 batch to begin with, got {self.fit_batches}. Raise fit_batches.")

    @property
    def films(self) -> TinyTraining:
        """The settings that the model's own training shares; ValueError where they make no sense."""
        return TinyTraining(
            steps=self.steps,
            stages=self.stages,
            warm_up=self.warm_up,
            cool_down=self.cool_down,
            noisy_copies=self.noisy_copies,
            seed=self.seed,
            save_every=self.save_every,
        )


def gated_reader(gates: Gates, chunk_frames: int, spec: KVSpec) -> GatedReader:
    """Reads clips as the preset of the gates does, with a window of as many chunks as the recall bench has."""
    preset = PRESETS[GATED_PRESETS[gates.form]]
    assert preset.bank is not None
    config = replace(preset, window_frames=WINDOW_CHUNKS * chunk_frames)
    frame = cut_frame(spec.rows, spec.columns, preset.bank.pages)
    return GatedReader(gates, config, frame, chunk_frames, spec.time_channels, spec.theta)


def clip_spec(network: Any, time_channels: int) -> KVSpec:
    """Keys and values of a host Wan at the size of training clips."""
    return KVSpec(
        layers=len(network.blocks),
        heads=network.num_heads,
        head_dim=network.dim // network.num_heads,
        rows=ROWS // 2,
        columns=COLUMNS // 2,
        time_channels=time_channels,
        theta=float(network.rope_embedder.theta),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def train_gates(
    config: GateTraining,
    modules: Any,
    network: Any,
    codec: TileCodec,
    out: Path,
    device: str = "cpu",
    tell: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, Tensor]:
    """Train gates and self-attention of `network` (or continue the run in `out`); what was trained, averaged, by its keys.

    Arguments, resuming and errors are those of `train_tiny`.
    """
    run = RunFolder(out, config)
    spec = clip_spec(network, modules.time_channels(network.dim // network.num_heads))
    width, form = spec.heads * spec.head_dim, GateForm(config.form)
    gates = fresh_gates(form, spec.layers, spec.heads, width, generator_for(config.seed, "gates", 0))
    network.to(device).eval().requires_grad_(False)
    state = run.load()
    if state is None:
        with modules.training():
            gates = fit_gates(gates, recorded(config, gates, network, codec, spec, device))
    gates = gates.to(torch.device(device))
    attention = {name: part for name, part in network.named_parameters() if TRAINED_WITH_GATES in name}
    parts = [gates.weights, gates.biases, *attention.values()]
    for part in parts:
        part.requires_grad_()
    optimisers = _optimisers(config, parts[:2], list(attention.values()))
    average = [part.detach().clone() for part in parts]
    first = 0
    if state is not None:
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        with torch.no_grad():
            for part, saved in zip(parts, state["parts"], strict=True):
                part.copy_(saved)
        average = [part.to(device) for part in state["average"]]
        first = int(state["step"])
    films = config.films
    clock = time.monotonic()
    with modules.training():
        for step in range(first, config.steps):
            clips, chunk_frames = training_films(films, step)
            reader = gated_reader(gates, chunk_frames, spec)
            with reader.listening(network):
                loss = flow_loss(
                    network,
                    clip_batch(clips, codec, chunk_frames),
                    films,
                    step,
                    device,
                    partial(predict_flow, reader=reader),
                )
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["full_rate"] * rate_factor(films, step)
                optimiser.zero_grad(set_to_none=True)
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(parts, 1.0)
            for optimiser in optimisers:
                optimiser.step()
            decay = min(config.average_decay, step / (step + 10))
            torch._foreach_lerp_(average, [part.detach() for part in parts], 1 - decay)
            row = {"step": step + 1, "loss": loss.total.item(), "character_loss": loss.character.item()}
            row |= {"norm": norm.item(), "seconds": time.monotonic() - clock}
            if not math.isfinite(row["loss"]):
                raise ValueError(f"The loss became {row['loss']} at step {step + 1}. Start anew with half the rates.")
            run.log(row)
            tell(row)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                kept = {"parts": [part.detach() for part in parts], "optimisers": [o.state_dict() for o in optimisers]}
                run.save({"step": step + 1, "average": average, **kept})
                run.draw_curve("loss")
    weights, biases, *rest = average
    return Gates(form, weights, biases).named() | dict(zip(attention, rest, strict=True))


@torch.no_grad()
def recorded(
    config: GateTraining, gates: Gates, network: Any, codec: TileCodec, spec: KVSpec, device: str
) -> Iterator[MixtureRecorder]:
    """What gates would have to mix in the films of the first steps, read by the network as it is."""
    films = config.films
    for step in range(config.fit_batches):
        clips, chunk_frames = training_films(films, step)
        batch = clip_batch(clips, codec, chunk_frames)
        reader = gated_reader(gates, chunk_frames, spec)
        recorder = MixtureRecorder(reader, batch, 1 + films.noisy_copies)
        with reader.listening(network):
            flow_loss(network, batch, films, step, device, partial(predict_flow, reader=recorder))
        yield recorder


def _optimisers(config: GateTraining, gates: list[Tensor], attention: list[Tensor]) -> list[torch.optim.Optimizer]:
    matrices = [part for part in attention if part.ndim == 2]
    vectors = [part for part in attention if part.ndim == 1]
    adam = torch.optim.AdamW(
        [{"params": gates, "full_rate": config.rate}, {"params": vectors, "full_rate": config.vector_rate}],
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    return [adam, Muon([{"params": matrices, "full_rate": config.matrix_rate}], lr=config.matrix_rate)]
