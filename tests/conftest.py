"""What every test shares: the real ComfyUI, started once on the CPU, and the hypothesis profiles."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from longreel.nodes.headless.boot import Host, boot_host

if TYPE_CHECKING:
    from longreel.nodes.headless.runner import Runner

HOST = pytest.StashKey[Host]()

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=200)
settings.register_profile("dev", deadline=None, max_examples=50)


def pytest_configure(config: pytest.Config) -> None:
    """Start ComfyUI before any test module imports it, with all of its folders in a temporary one."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
    base = Path(tempfile.mkdtemp(prefix="longreel-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(base, ignore_errors=True))
    config.stash[HOST] = boot_host("cpu", base=base, output=base / "output")


@pytest.fixture(scope="session")
def host(pytestconfig: pytest.Config) -> Host:
    """The ComfyUI that the tests run in."""
    return pytestconfig.stash[HOST]


@pytest.fixture(scope="session")
def runner(host: Host) -> Runner:
    """The host with all nodes loaded and its server object made, without a socket. One a process."""
    from longreel.nodes.headless.runner import Runner

    return Runner(lambda event, data: None)
