"""Dispatch: needs are data, the first implementation that fits runs, and a refusal explains itself."""

from __future__ import annotations

import pytest
import torch
from hard_pages import BASE

from longreel.kernels import dispatch, merge_states, page_attention, page_copy, page_scores, page_write
from longreel.kernels.dispatch import Facts, NoImplementationError
from longreel.kernels.tiles import ATTENTION_TILES, attention_tile

OPERATIONS = [module.OPERATION for module in (merge_states, page_attention, page_copy, page_scores, page_write)]
CARD = Facts("cuda", "sm89", torch.bfloat16, 128)


def chosen(operation: dispatch.Operation, facts: Facts, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the implementation that a call with these facts would run, as if Triton 3.9 were there."""
    monkeypatch.setattr(dispatch, "triton_version", lambda: ((3, 9), ""))
    fitting = (one.name for one in operation.implementations if one.needs.refusal(facts) is None)
    return next(fitting)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_torch_serves_every_device_and_float_and_triton_what_it_compiles_for(
    operation: dispatch.Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("cpu", "mps", "xpu", "cuda", "interpreter"):
        assert chosen(operation, Facts(device, device, torch.float32, 12), monkeypatch) == "torch"
    assert chosen(operation, CARD, monkeypatch) == "triton"


def test_hopper_splits_attention_and_every_tile_is_of_a_known_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    for arch in ATTENTION_TILES:
        facts = Facts("cuda", arch, torch.bfloat16, 128)
        split = arch in ("sm90", "sm100", "sm103")
        assert chosen(page_attention.OPERATION, facts, monkeypatch) == ("split" if split else "triton")
        assert attention_tile(arch).fitted(15, 30).keys == 32
        assert attention_tile(arch).fitted(15, 30).queries == 16


def test_a_refusal_names_every_implementation_with_its_reason() -> None:
    with pytest.raises(NoImplementationError) as refused:
        page_attention.OPERATION.choose(Facts("cpu", "cpu", torch.float64, 128))
    text = str(refused.value)
    assert text.startswith("Nothing can run page_attention here:")
    assert "split: needs device cuda, got cpu" in text
    assert "triton: needs device cuda, got cpu" in text
    assert "torch: needs dtype torch.float16 or torch.bfloat16 or torch.float32, got torch.float64" in text
    assert "interpreted: needs device interpreter, got cpu" in text


def test_a_missing_or_old_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_version", lambda: (None, "needs Triton, which cannot be imported: no"))
    assert "cannot be imported: no" in refusal_of_triton()
    monkeypatch.setattr(dispatch, "triton_version", lambda: ((3, 3), ""))
    assert "needs Triton 3.6 or newer, got 3.3" in refusal_of_triton()


def refusal_of_triton() -> str:
    """What is said when Triton is asked for by name on a card."""
    with pytest.raises(NoImplementationError) as refused:
        page_attention.OPERATION.choose(CARD, "triton")
    return str(refused.value)


def test_an_implementation_that_is_asked_for_runs_or_says_why_not() -> None:
    q, pages, lists = BASE.build(torch.float32)
    sizes = {"dense_tokens": BASE.dense_tokens, "group_tokens": BASE.group_tokens}
    with pytest.raises(NoImplementationError, match="torch: triton was asked for"):
        page_attention.page_attention(q, pages, lists, **sizes, implementation="triton")
    named = page_attention.page_attention(q, pages, lists, **sizes, implementation="torch")
    assert torch.equal(named.out, page_attention.page_attention(q, pages, lists, **sizes).out)
