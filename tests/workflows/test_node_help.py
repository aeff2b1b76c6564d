"""Every node explains itself in the info panel of the front end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def messages() -> Iterator[str]:
    """Every text that the pack hands to a call, as an error or otherwise, with `...` for what is filled in."""
    for path in [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "memory").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for argument in call.args if isinstance(call, ast.Call) else ():
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "..."
                    for text in ast.walk(argument)
                    if isinstance(text, ast.JoinedStr | ast.Constant)
                    for part in (text.values if isinstance(text, ast.JoinedStr) else [text])
                    if not isinstance(part, ast.Constant) or isinstance(part.value, str)
                )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_an_error_that_a_page_quotes_is_one_that_the_pack_can_give(page: Path) -> None:
    """Quotes are the italics that begin an item of the last section; `...` stands for what is filled in."""
    trouble = page.read_text(encoding="utf-8").split("## When something is wrong")[1]
    known = list(messages())
    quotes = re.findall(r"^- \*([^*]+)\*", trouble, re.MULTILINE)
    assert not [quote for quote in quotes if not any(quote in message for message in known)]
