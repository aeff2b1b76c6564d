"""Every node explains itself in the info panel of the front end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from shipped import ROOT

import longreel

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

PAGES = sorted((ROOT / longreel.WEB_DIRECTORY / "docs").glob("*.md"))


def test_every_node_has_a_page_and_every_page_a_node(runner: Runner) -> None:
    nodes = sorted(name for name in runner.object_info() if name.startswith("LongReel"))
    assert [page.stem for page in PAGES] == nodes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_every_input_and_output(page: Path, runner: Runner) -> None:
    node = runner.object_info()[page.stem]
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {node['display_name']}\n")
    for section in ("required", "optional"):
        for name in node["input"].get(section, {}):
            assert f"**{name}**" in text, f"{page.name} does not explain {name}"
    if len(node["output"]) > 1:
        for name in node["output_name"]:
            assert f"**{name}**" in text, f"{page.name} does not explain {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_an_example_or_says_what_to_connect_and_helps_in_trouble(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "## Example" in text or "## What to connect" in text
    assert "## When something is wrong" in text
    assert len(text.splitlines()) <= 60
