"""The long tier keeps what it measured: one JSON file with every test's outcome and numbers."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from longreel.nodes.headless.boot import Host

RESULTS = pytest.StashKey[dict[str, dict[str, object]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Start with no results."""
    config.stash[RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note outcome, seconds and the numbers that the test recorded with `record_property`."""
    report = yield
    if report.when == "call" or report.failed:
        result: dict[str, object] = {"outcome": report.outcome, "seconds": round(report.duration, 1)}
        item.config.stash[RESULTS][item.nodeid] = result | dict(report.user_properties)
    return report


@pytest.fixture(scope="session", autouse=True)
def results_file(host: Host, pytestconfig: pytest.Config) -> Generator[None, None, None]:
    """Write everything to $LONGREEL_LONG_JSON at the end."""
    yield
    if path := os.environ.get("LONGREEL_LONG_JSON"):
        machine = {
            "comfyui": host.version,
            "torch": torch.__version__,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        content = {"machine": machine, "tests": pytestconfig.stash[RESULTS]}
        Path(path).write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
