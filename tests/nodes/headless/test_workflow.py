"""Reading workflow files and setting their inputs by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from longreel.nodes.headless.workflow import Prompt, WorkflowError, apply_setting, read_workflow

OBJECT_INFO: dict[str, Any] = {
    "Painter": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "steps": ["INT", {"default": 4}],
                "cfg": ["FLOAT", {"default": 1.0}],
                "text": ["STRING", {"multiline": True}],
                "tiled": ["BOOLEAN", {}],
                "size": [[256, 512], {}],
                "policy": ["COMFY_DYNAMICCOMBO_V3", {}],
            },
            "optional": {"mode": ["COMBO", {"options": ["slow", "fast"]}]},
        }
    }
}
PROMPT: Prompt = {
    "3": {"class_type": "Painter", "inputs": {"model": ["4", 0], "policy.k": 3}, "_meta": {"title": "Shot v1.5"}},
    "12:4": {"class_type": "Painter", "inputs": {}, "_meta": {"title": "Second"}},
}


def after(setting: str) -> dict[str, Any]:
    """All inputs of the prompt's nodes after one setting."""
    prompt = copy.deepcopy(PROMPT)
    apply_setting(prompt, setting, OBJECT_INFO)
    return {f"{node_id}.{name}": value for node_id, node in prompt.items() for name, value in node["inputs"].items()}


@pytest.mark.parametrize(
    ("setting", "name", "value"),
    [
        ("3.steps=8", "3.steps", 8),
        ("Shot v1.5.steps=8", "3.steps", 8),
        ("Second.cfg=2.5", "12:4.cfg", 2.5),
        ("12:4.tiled=on", "12:4.tiled", True),
        ("3.text=[0s-5s] @anna: a = b", "3.text", "[0s-5s] @anna: a = b"),
        ("3.text=", "3.text", ""),
        ("3.size=512", "3.size", 512),
        ("3.mode=fast", "3.mode", "fast"),
        ("3.policy=topk", "3.policy", "topk"),
        ("3.policy.k=7", "3.policy.k", 7),
    ],
)
def test_an_input_is_set_by_id_title_or_type_with_its_own_type(setting: str, name: str, value: object) -> None:
    found = after(setting)[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("3.steps", "A setting looks like node.input=value"),
        ("3.steps=many", "3 Shot v1.5 .Painter..steps should be a whole number, and is 'many'"),
        ("3.tiled=maybe", "should be true or false"),
        ("3.model=x", "is a connection .MODEL. and cannot be set"),
        ("3.step=8", "has no input 'step'. It has: model, steps, cfg"),
        ("9.steps=8", "No node of this workflow fits '9.steps'. Its nodes are:\n  3 Shot v1.5"),
        ("Painter.steps=8", "2 nodes are called 'Painter'; use an id: 3, 12:4"),
    ],
)
def test_a_setting_that_fits_nothing_names_the_candidates(setting: str, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        after(setting)


def test_a_file_that_is_no_workflow_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(WorkflowError, match="cannot be read"):
        read_workflow(tmp_path / "none.json")
    with pytest.raises(WorkflowError, match="is not JSON"):
        read_workflow(tmp_path / "a.json")
    with pytest.raises(WorkflowError, match="should hold one JSON object"):
        read_workflow(tmp_path / "b.json")
