"""Gates: found by their keys, refused when they are broken, and read as the mathematics says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gated_reference import Frame, gated_attention
from numerics import FORWARD_ERROR, relative_error
from tensors_held import bytes_of, nan_memory, tensors_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longreel.memory.config import BankConfig, KVSpec, MemoryConfig
from longreel.memory.frame_pages import PageShape
from longreel.memory.gates import GateForm, Gates, find_gates, fresh_gates
from longreel.memory.kv_memory import KVMemory
from longreel.memory.positions import PositionPolicy
from longreel.memory.session import LayerCall, RunSession

LAYERS, HEADS, DIM, TIME_CHANNELS, WIDTH = 2, 2, 16, 4, 32
THETA = 10_000.0


def gates_of(form: GateForm, seed: int = 0) -> Gates:
    made = fresh_gates(form, LAYERS, HEADS, WIDTH, torch.Generator().manual_seed(seed))
    return replace(made, weights=made.weights * 300)


def spec_of(rows: int = 6, columns: int = 8) -> KVSpec:
    return KVSpec(LAYERS, HEADS, DIM, rows, columns, TIME_CHANNELS, THETA, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("form", GateForm)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "generator.model."])
def test_gates_come_back_from_a_checkpoint_under_any_prefix(form: GateForm, prefix: str) -> None:
    gates = gates_of(form)
    state = {prefix + key: tensor.to(torch.bfloat16) for key, tensor in gates.named().items()}
    found = find_gates({**state, f"{prefix}blocks.0.self_attn.q.weight": torch.zeros(1)})
    assert found is not None
    assert found.form is form
    assert torch.equal(found.weights, gates.weights.to(torch.bfloat16).float())
    assert torch.equal(found.biases, gates.biases)


def test_gates_of_omnimem_are_known_by_the_name_that_its_training_code_gives_them() -> None:
    gates = gates_of(GateForm.OMNIMEM)
    found = find_gates({key.replace("omnimem_gates", "g_proj"): tensor for key, tensor in gates.named().items()})
    assert found is not None
    assert found.form is GateForm.OMNIMEM
    assert torch.equal(found.weights, gates.weights)


def test_a_checkpoint_without_gates_has_none() -> None:
    assert find_gates({"blocks.0.self_attn.q.weight": torch.zeros(2, 2), "head.g_proj.weight": torch.zeros(1)}) is None


KEY = "blocks.1.self_attn.omnimem_gates"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{KEY}.weight": None}, r"2 whole layers, got none for blocks\.1\.self_attn\.omnimem_gates\.weight"),
        ({f"{KEY}.bias": torch.zeros(5)}, r"omnimem_gates\.bias to be \[6\], got \[5\]"),
        ({f"{KEY}.weight": torch.zeros(6, 31)}, r"omnimem_gates\.weight to be \[6, 32\], got \[6, 31\]"),
        ({f"{KEY}.weight": torch.full((6, 32), torch.nan)}, r"finite numbers, got others in blocks\.1"),
        (
            {"blocks.0.self_attn.decmem_gates.bias": torch.zeros(2)},
            r"gates of one kind, got decmem_gates and omnimem_gates",
        ),
        (
            {f"blocks.{i}.self_attn.omnimem_gates.{part}": torch.zeros(shape) for i in (0, 1) for part, shape in (("weight", (5, 32)), ("bias", (5,)))},
            r"need 3 rows a head, got 5 rows",
        ),
    ],
)  # fmt: skip
def test_broken_gates_are_refused_with_the_place_and_a_remedy(changed: dict[str, Tensor | None], message: str) -> None:
    state = {**gates_of(GateForm.OMNIMEM).named(), **changed}
    with pytest.raises(ValueError, match=message) as refusal:
        find_gates({key: tensor for key, tensor in state.items() if tensor is not None})
    assert "set 'gates' of Sparse KV Memory to 'off'" in str(refusal.value)


def test_gates_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need 3 layers of weights \[6, 32\], got 2 of \[6, 32\]"):
        gates_of(GateForm.OMNIMEM).check(replace(spec_of(), layers=3))


def test_a_gate_ends_at_a_logit_of_ten_either_way() -> None:
    gates = replace(gates_of(GateForm.DECMEM), biases=torch.tensor([[1e4, -1e4]] * LAYERS))
    values = gates.values(1, torch.zeros(1, 3, WIDTH))
    assert values.shape == (1, 3, HEADS, 1)
    assert torch.equal(values[0, 0, :, 0], torch.tensor([10.0, -10.0]).sigmoid())


def turned(x: Tensor, time: int) -> Tensor:
    """Queries or keys `[N, D]`, as complex numbers, turned to this time."""
    pairs = torch.view_as_complex(x[..., :TIME_CHANNELS].double().unflatten(-1, (-1, 2)).contiguous())
    frequency = THETA ** (-torch.arange(TIME_CHANNELS // 2, dtype=torch.float64) * 2 / TIME_CHANNELS)
    spun = torch.view_as_real(pairs * torch.exp(1j * time * frequency)).flatten(-2)
    return torch.cat([spun.to(x.dtype), x[..., TIME_CHANNELS:]], dim=-1)


def drawn(frames: range, spec: KVSpec, seed: int) -> tuple[Tensor, dict[int, Frame]]:
    """Queries `[L, H, D]` and the keys and values of each frame, free of time."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, len(frames) * spec.frame_tokens, HEADS, DIM, generator=generator).unbind(0)
    parts = zip(frames, k.split(spec.frame_tokens), v.split(spec.frame_tokens), strict=True)
    return q, {frame: (k_frame, v_frame) for frame, k_frame, v_frame in parts}


def in_time(parts: list[Tensor], frames: range, turn: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.cat([turn(part, frame) for part, frame in zip(parts, frames, strict=True)])


@pytest.mark.parametrize("shape", PageShape)
@pytest.mark.parametrize("size", [(6, 8), (5, 9)], ids=["whole pages", "a short last page"])
@pytest.mark.parametrize("chunks", [0, 1, 4])
@pytest.mark.parametrize("form", GateForm)
def test_the_branches_of_the_product_are_those_of_the_reference(
    form: GateForm, chunks: int, size: tuple[int, int], shape: PageShape
) -> None:
    """Before, at and beyond the end of the window; nothing uninitialised is read."""
    spec, length, window = spec_of(*size), 2, 4
    config = MemoryConfig(window, 0, bank=BankConfig(0.4, shape))
    gates = gates_of(form)
    with nan_memory():
        memory = KVMemory(spec, config, 1, length, (chunks + 1) * length, gates=form)
        memory.allocate()
    session = RunSession(memory, gates=gates)
    older: dict[int, Frame] = {}
    for chunk in range(chunks):
        frames = range(chunk * length, (chunk + 1) * length)
        _, made = drawn(frames, spec, seed=chunk)
        memory.begin(frames)
        memory.reserve(frames)
        k, v = (torch.cat([made[frame][part] for frame in frames]) for part in (0, 1))
        for layer in range(LAYERS):
            memory.write(layer, 0, k, v)
        memory.publish()
        older |= made
    frames = range(chunks * length, (chunks + 1) * length)
    q, own = drawn(frames, spec, seed=99)
    session.begin(frames)
    x = torch.randn(1, len(q), WIDTH, generator=torch.Generator().manual_seed(5))
    values = gates.values(1, x)

    def host_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return out.transpose(1, 2).flatten(2)

    k_turned = in_time([own[frame][0] for frame in frames], frames, turned)
    q_turned = in_time(list(q.split(spec.frame_tokens)), frames, turned)
    v = torch.cat([own[frame][1] for frame in frames])
    assert not session.idle
    call = LayerCall(1, (0,), q_turned[None], k_turned[None], v[None], q[None], None, host_attention, values)
    pages = max(1, round(0.4 * memory.frame.count))
    expected = gated_attention(form, values[0], q, turned, older, own, frames.start - 2, memory.frame, pages)
    assert relative_error(session.attend(call)[0].unflatten(-1, (HEADS, -1)), expected) < FORWARD_ERROR


@pytest.mark.parametrize("slice_pages", [1, 7, 10_000])
def test_how_many_means_go_through_the_card_at_a_time_does_not_matter(
    slice_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longreel.memory.compression.SLICE_PAGES", slice_pages)
    test_the_branches_of_the_product_are_those_of_the_reference(GateForm.OMNIMEM, 4, (5, 9), PageShape.STRIP)


@pytest.mark.parametrize("form", GateForm)
def test_the_announced_bytes_of_a_gated_memory_are_the_bytes_that_are_taken(form: GateForm) -> None:
    gates = gates_of(form)
    memory = KVMemory(spec_of(), MemoryConfig(6, 0, bank=BankConfig(shortlist=20)), 2, 3, 60, gates=form)
    session = RunSession(memory, gates=gates)
    memory.allocate()
    assert bytes_of(tensors_of(memory)) == memory.peak_bytes + memory.host_bytes
    assert session.peak_bytes == memory.peak_bytes + bytes_of([gates.weights, gates.biases])
    memory.release()
    assert bytes_of(tensors_of(memory)) == 0


def test_the_bytes_on_the_card_do_not_grow_with_a_gated_film() -> None:
    """Wan 1.3B at 832x480."""
    wan = KVSpec(30, 12, 128, 30, 52, 44, THETA, torch.bfloat16, torch.device("meta"))
    config = MemoryConfig(9, 0, bank=BankConfig(16 / 52, PageShape.STRIP, shortlist=512))
    memories = [KVMemory(wan, config, 1, 3, frames, gates=GateForm.OMNIMEM) for frames in (240, 2400, 14_400)]
    assert len({memory.peak_bytes for memory in memories}) == 1
    plain = KVMemory(wan, config, 1, 3, 240)
    assert plain.peak_bytes < memories[0].peak_bytes < plain.peak_bytes + 64 * 2**20
    assert memories[0].host_bytes - plain.host_bytes == 30 * 12 * 240 * 52 * 128 * 2


def test_a_film_that_is_clamped_in_time_turns_means_as_it_turns_keys() -> None:
    """A page that is read as a whole, at the edge of the trained length: the mean of its turned keys."""
    spec = spec_of()
    config = MemoryConfig(2, 0, PositionPolicy.CLAMPED, 4, BankConfig(0.4, PageShape.SIXTH))
    memory = KVMemory(spec, config, 1, 2, 12, gates=GateForm.OMNIMEM)
    memory.allocate()
    for chunk in range(5):
        frames = range(2 * chunk, 2 * chunk + 2)
        _, made = drawn(frames, spec, seed=chunk)
        memory.begin(frames)
        memory.reserve(frames)
        for layer in range(LAYERS):
            memory.write(layer, 0, *(torch.cat([made[frame][part] for frame in frames]) for part in (0, 1)))
        memory.publish()
    memory.begin(range(10, 12))
    q, own = drawn(range(10, 12), spec, seed=99)
    k, v = (torch.cat([own[frame][part] for frame in (10, 11)]) for part in (0, 1))
    assert memory.compression is not None
    got = memory.compression.attend(0, 0, q, k, v)
    parts = []
    for frame in range(10):
        _, made = drawn(range(frame - frame % 2, frame - frame % 2 + 2), spec, seed=frame // 2)
        keys, values = made[frame]
        parts.append((torch.stack([turned(keys[:, h], max(frame, 8)) for h in range(HEADS)], dim=1), values))
    parts += [own[10], own[11]]
    order = list(memory.frame.order)
    k_means, v_means = (
        torch.cat([part[at][order].unflatten(0, (memory.frame.count, -1)).mean(1) for part in parts]) for at in (0, 1)
    )
    for head in range(HEADS):
        expected = (q[:, head] @ k_means[:, head].T / DIM**0.5).softmax(-1) @ v_means[:, head]
        assert relative_error(got[:, head], expected) < FORWARD_ERROR
