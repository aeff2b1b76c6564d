"""The interface of our nodes: saved workflows depend on it, so it only ever grows at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from shipped import SNAPSHOT, check_written, read_json

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

Interface = dict[str, Any]


@pytest.fixture(scope="module")
def interfaces(runner: Runner) -> dict[str, Interface]:
    """Node id -> its inputs and outputs, as the host states them."""
    info = runner.object_info()
    return {name: interface(node) for name, node in info.items() if name.startswith("LongReel")}


def interface(node: dict[str, Any]) -> Interface:
    """What a saved workflow relies on: names, order, types, defaults and choices."""
    inputs = []
    for section in ("required", "optional"):
        for name, (kind, *details) in node["input"].get(section, {}).items():
            settings = details[0] if details else {}
            kept = {key: settings[key] for key in ("default", "min", "max", "step", "options") if key in settings}
            inputs.append({"name": name, "type": kind, "needed": section == "required", **kept})
    outputs = [{"name": name, "type": kind} for name, kind in zip(node["output_name"], node["output"], strict=True)]
    return {"inputs": inputs, "outputs": outputs, "output_node": node["output_node"]}


def frozen(entry: dict[str, Any]) -> dict[str, Any]:
    """What may never change of an input; limits may widen and choices may be added."""
    return {key: entry.get(key) for key in ("name", "type", "needed", "default")}


def test_saved_workflows_still_fit_the_nodes(interfaces: dict[str, Interface]) -> None:
    """Existing ids, inputs, defaults, choices and outputs stay as and where they are; new ones follow and are optional.

    A saved workflow keeps widget values by position, and a prompt without a newly required input is refused.
    """
    for name, before in read_json(SNAPSHOT).items():
        assert name in interfaces, f"The node {name} is gone, and saved workflows use it."
        now = interfaces[name]
        assert now["output_node"] == before["output_node"]
        known = len(before["inputs"])
        assert [frozen(entry) for entry in now["inputs"][:known]] == [frozen(entry) for entry in before["inputs"]]
        for entry, old in zip(now["inputs"], before["inputs"], strict=False):
            assert set(old.get("options", ())) <= set(entry.get("options", ())), f"{name}.{old['name']} lost a choice"
            assert entry.get("min") == old.get("min") or entry["min"] < old["min"]
            assert entry.get("max") == old.get("max") or entry["max"] > old["max"]
        assert not [entry["name"] for entry in now["inputs"][known:] if entry["needed"]]
        assert now["outputs"][: len(before["outputs"])] == before["outputs"]


def test_the_snapshot_knows_everything_that_was_added(interfaces: dict[str, Interface]) -> None:
    check_written(SNAPSHOT, interfaces)


def test_every_setting_and_output_has_a_tooltip(runner: Runner) -> None:
    for name, node in runner.object_info().items():
        if not name.startswith("LongReel"):
            continue
        assert node["description"]
        assert all(node["output_tooltips"])
        for section in ("required", "optional"):
            for input_name, (_, *details) in node["input"].get(section, {}).items():
                assert details[0].get("tooltip"), f"{name}.{input_name} has no tooltip"
