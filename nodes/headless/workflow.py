"""Workflow files: reading them, and setting inputs of their nodes by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]
"""A workflow in API form: node id -> {class_type, inputs, _meta}."""


class WorkflowError(ValueError):
    """A workflow file or a setting for it cannot be used; the message says what to change."""


def read_workflow(path: Path) -> dict[str, Any]:
    """The JSON object in a workflow file, in UI or API form."""
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"The workflow file cannot be read: {error}.") from error
    except ValueError as error:
        raise WorkflowError(f"{path} should be a workflow saved by ComfyUI, and is not JSON: {error}.") from error
    if not isinstance(workflow, dict):
        raise WorkflowError(f"{path} should hold one JSON object, a workflow saved by ComfyUI.")
    return workflow


def to_prompt(workflow: dict[str, Any], object_info: Mapping[str, Any]) -> Prompt:
    """The workflow in API form; a file saved from the browser (UI form) is converted."""
    if all(isinstance(node, dict) and "class_type" in node for node in workflow.values()):
        return workflow
    from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api

    try:
        prompt: Prompt = convert_ui_to_api(workflow, object_info)
    except WorkflowConversionError as error:
        raise WorkflowError(f"The workflow cannot be converted: {error}") from error
    return prompt


def apply_setting(prompt: Prompt, setting: str, object_info: Mapping[str, Any]) -> None:
    """Change one input in place, as "node.input=value" says; a node goes by its id, its title or its type."""
    target, equals, text = setting.partition("=")
    if not equals:
        raise WorkflowError(f"A setting looks like node.input=value, and this one is {setting!r}.")
    node_id, name = find_input(prompt, target, object_info)
    node = prompt[node_id]
    spec = declared_inputs(node, object_info).get(name)
    node["inputs"][name] = parse_value(text, spec, node["inputs"].get(name), f"{label(prompt, node_id)}.{name}")


def find_input(prompt: Prompt, target: str, object_info: Mapping[str, Any]) -> tuple[str, str]:
    """The node id and input name that "node.input" means; both parts may contain dots."""
    known: list[str] = []
    for node_name, input_name in splits(target):
        found = [node_id for node_id in prompt if node_name in names(prompt, node_id)]
        if len(found) > 1:
            raise WorkflowError(f"{len(found)} nodes are called {node_name!r}; use an id: {', '.join(found)}.")
        for node_id in found:
            inputs = {**declared_inputs(prompt[node_id], object_info), **prompt[node_id]["inputs"]}
            if input_name in inputs:
                return node_id, input_name
            known.append(
                f"{label(prompt, node_id)} has no input {input_name!r}. It has: {', '.join(inputs) or 'none'}."
            )
    if known:
        raise WorkflowError(known[0])
    nodes = "\n  ".join(label(prompt, node_id) for node_id in prompt)
    raise WorkflowError(f"No node of this workflow fits {target!r}. Its nodes are:\n  {nodes}")


def splits(target: str) -> Iterator[tuple[str, str]]:
    """Every way to read "a.b.c" as a node and an input."""
    parts = target.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count]), ".".join(parts[count:])


def names(prompt: Prompt, node_id: str) -> tuple[str, str, str]:
    """What a node may be called on the command line."""
    node = prompt[node_id]
    return node_id, str(node.get("_meta", {}).get("title", "")), str(node.get("class_type", ""))


def label(prompt: Prompt, node_id: str) -> str:
    """A node as errors and progress name it."""
    _, title, class_type = names(prompt, node_id)
    return f"{node_id} {title or class_type}" + (f" ({class_type})" if title not in ("", class_type) else "")


def declared_inputs(node: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """Input name -> its declaration, for a node of a known type."""
    declared = object_info.get(str(node.get("class_type")), {}).get("input", {})
    return {**declared.get("required", {}), **declared.get("optional", {})}


def parse_value(text: str, spec: Any, current: Any, where: str) -> Any:
    """The value of the type that an input takes."""
    kind = spec[0] if spec else type(current).__name__
    if isinstance(kind, list):
        return choose(text, kind)
    if kind in PARSERS:
        try:
            return PARSERS[kind](text)
        except ValueError as error:
            raise WorkflowError(f"{where} should be {KIND_WORDS[kind]}, and is {text!r}.") from error
    if str(kind).startswith("COMFY_"):
        return text
    raise WorkflowError(f"{where} is a connection ({kind}) and cannot be set to a value.")


def choose(text: str, options: list[Any]) -> Any:
    """The option that reads like the text; an unknown one is left for ComfyUI's own check."""
    return next((option for option in options if str(option) == text), text)


def parse_switch(text: str) -> bool:
    """On or off."""
    switches = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    if text.lower() not in switches:
        raise ValueError(text)
    return switches[text.lower()]


PARSERS: dict[str, Callable[[str], Any]] = {
    "INT": int,
    "int": int,
    "FLOAT": float,
    "float": float,
    "BOOLEAN": parse_switch,
    "bool": parse_switch,
    "STRING": str,
    "str": str,
    "COMBO": str,
}
KIND_WORDS = {
    "INT": "a whole number",
    "int": "a whole number",
    "FLOAT": "a number",
    "float": "a number",
    "BOOLEAN": "true or false",
    "bool": "true or false",
}
