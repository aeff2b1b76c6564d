"""What an encoder takes at real sizes: the encoder's own module and the host's own networks, on the meta device."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from shipped import ROOT
from torch.utils.flop_counter import FlopCounterMode

from longreel.memory.encoded_history import History
from longreel.memory.encoder import token_positions
from longreel.memory.encoder_spec import RATES, EncoderSpec, Modulation, Rate
from longreel.nodes.headless.bench_context import (
    SECONDS,
    SEGMENT_FRAMES,
    WINDOW_FRAMES,
    call_cost,
    encoder_on_meta,
    tokens_of,
    training_cost,
)
from longreel.nodes.headless.cli import main
from longreel.nodes.headless.context_page import context_table, share
from longreel.nodes.headless.large_models import BF16, LARGE_MODELS, META, LargeModel
from longreel.nodes.host import hunyuan_history, wan_history
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH

PAGE = ROOT / "memory" / "training" / "ENCODER_COST.md"
FOUR = Rate(4, 4, 2)
both_families = pytest.mark.parametrize(
    "model", [LARGE_MODELS[0], LARGE_MODELS[-1]], ids=[LARGE_MODELS[0].name, LARGE_MODELS[-1].name]
)
every_model = pytest.mark.parametrize("model", LARGE_MODELS, ids=lambda model: model.name)


def named(name: str) -> LargeModel:
    return next(model for model in LARGE_MODELS if model.name == name)


def shallow(model: LargeModel) -> LargeModel:
    """The model at its real width with a layer of each kind."""
    return dataclasses.replace(model, layers=tuple(1 for _ in model.layers))


def test_twenty_seconds_of_hunyuan_video_are_the_5460_tokens_of_the_paper(host: object) -> None:
    model = named("HunyuanVideo")
    assert model.latents(model.frames(20), (480, 832)).shape == (1, 16, 120, 60, 104)
    assert EncoderSpec(model.width, FOUR).grid(120, 60, 104) == (60, 7, 13)
    assert tokens_of(model, model.network(), FOUR, (480, 832), 20) == 7 * 13 * 60 == 5460


def test_twenty_seconds_of_wan_are_the_tokens_of_the_papers_table(host: object) -> None:
    """But for 4x4x2, where the paper's 3.9 thousand does not round 7.5 rows down."""
    model = named("Wan 2.1 14B")
    network = model.network()
    told = {str(rate): tokens_of(model, network, rate, (480, 832), 20) for rate in RATES}
    assert told == {"4x4x2": 3_640, "2x2x2": 15_600, "2x2x4": 7_800, "2x2x1": 31_200, "2x2x8": 3_900, "4x4x4": 1_820}


@every_model
def test_the_page_tells_the_tokens_that_the_encoder_gives(host: object, model: LargeModel) -> None:
    network = model.network()
    _, _, chapter = PAGE.read_text(encoding="utf-8").partition(f"\n## {model.name}\n")
    for size in model.sizes:
        for rate in RATES:
            told = [tokens_of(model, network, rate, size, seconds) for seconds in SECONDS]
            whole = model.frame_tokens(size) * model.frames(SECONDS[-1])
            row = f"| {size[0]}x{size[1]} | {rate} | {' | '.join(f'{t:,}' for t in told)} | {share(told[-1], whole)} |"
            assert row in chapter.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("name", "billions"), [("Wan 2.1 1.3B", 1.42), ("Wan 2.1 14B", 14.29), ("Wan 2.2 5B", 5.0), ("HunyuanVideo", 12.82)]
)
def test_the_networks_are_the_published_ones(host: object, name: str, billions: float) -> None:
    assert round(sum(weight.numel() for weight in named(name).network().parameters()) / 1e9, 2) == billions


@every_model
def test_its_layers_see_the_frames_and_the_encoders_tokens_and_the_window(host: object, model: LargeModel) -> None:
    small, size, seconds, made = shallow(model), model.sizes[0], SECONDS[0], SEGMENT_FRAMES
    network: Any = small.network()
    latents = small.latents(small.frames(seconds), size)
    tokens = encoder_on_meta(small, FOUR)(latents, small.embed(network))
    window = small.embed(network)(latents[:, :, -WINDOW_FRAMES:]).flatten(2).transpose(1, 2)
    history = torch.cat([tokens, window], dim=1)
    positions = torch.empty(history.shape[1], 3, device=META)
    seen: list[tuple[int, ...]] = []

    def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append(tuple(args["img"].shape))
        out: dict[str, Any] = extra["original_block"](args)
        return out

    told = History(history, positions, Modulation.TARGET)
    if model.family == "wan":
        options = {"patches_replace": {"dit": {(wan_history.LAYER, 0): watch}}}
        joined = wan_history.with_history(network, told, options)
    else:
        options = {"patches_replace": {"dit": {(hunyuan_history.DOUBLE, 0): watch}}}
        call = hunyuan_history.Call(torch.empty(1, device=META), torch.empty(1, CLIP_WIDTH, device=META, dtype=BF16))
        joined = hunyuan_history.with_history(network, told, options, call)
    flow = small.call(network, small.latents(made, size), joined)
    own = small.frame_tokens(size)
    assert seen == [(1, (made + WINDOW_FRAMES) * own + tokens.shape[1], model.width)]
    assert flow.shape == (1, model.channels, made, *model.latent_size(size))
    spec = EncoderSpec(model.width, FOUR, channels=model.channels)
    grid = spec.grid(model.frames(seconds), *model.latent_size(size))
    assert tokens.shape[1] == len(token_positions(spec, grid))


@both_families
def test_what_a_call_takes_is_a_parabola_of_its_tokens_and_the_bend_is_attention(
    host: object, model: LargeModel
) -> None:
    small, size = shallow(model), model.sizes[0]
    network = small.network()
    cost = call_cost(small, network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.call(network, small.latents(7, size))
    assert cost.of(7 * small.frame_tokens(size)) == counter.get_total_flops()
    assert cost.pair == 4 * model.width * len(model.layers)


@both_families
def test_training_takes_the_call_and_the_lora_and_a_way_back(host: object, model: LargeModel) -> None:
    small = shallow(model)
    network = small.network()
    call, taken = call_cost(small, network), training_cost(peft, small)
    assert taken.weights == sum(weight.numel() for weight in network.parameters())
    assert taken.forward.pair == call.pair
    assert taken.backward.pair == 2.5 * call.pair  # five products of matrices in place of two
    assert taken.forward.token > call.token
    assert taken.forward.token < taken.backward.token < 2 * taken.forward.token
    assert 0 < taken.trained < taken.weights
    # At least what goes into a layer, what comes out, and four projections of it.
    assert taken.token_bytes > 6 * model.width * len(model.layers) * BF16.itemsize


def test_a_table_says_that_shorter_sequences_take_less(host: object) -> None:
    small = shallow(named("Wan 2.1 1.3B"))
    network = small.network()
    rows = [line.split(" | ") for line in context_table(small, network, call_cost(small, network)).splitlines()[2:]]
    assert [row[1] for row in rows] == 2 * ["everything", *map(str, RATES)]
    assert rows[0][5:] == ["100 %"] * 6 + ["100 % |"]  # tokens, attention and step
    attention = {row[1]: float(row[6].split()[0]) for row in rows[1:6]}
    assert attention["4x4x2"] < attention["2x2x8"] < attention["2x2x4"] < attention["2x2x2"] < attention["2x2x1"] < 100


def test_a_page_that_could_not_be_written_is_refused_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path / "gone" / "page.md", tmp_path):
        assert main(["bench", "context", "--out", str(out)]) == 1
        assert capsys.readouterr().err.startswith(f"error: --out needs a file in a folder that is there, got {out}")
