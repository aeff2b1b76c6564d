"""The command itself: what it says when it cannot, and the real server it starts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from longreel.nodes.headless.boot import Host
from longreel.nodes.headless.cli import COMMANDS, main

COMMAND = [sys.executable, "-c", "import sys; from longreel.nodes.headless.cli import main; sys.exit(main())"]


@pytest.mark.parametrize("command", COMMANDS, ids=[command.NAME for command in COMMANDS])
def test_every_command_explains_itself(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command.NAME, "--help"])
    assert caught.value.code == 0
    assert command.__doc__.strip().splitlines()[0] in " ".join(capsys.readouterr().out.split())


def test_host_names_the_comfyui_and_what_differs(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"ComfyUI {host.version}\n  folder  {host.path}\n  why     {host.reason}")


def test_an_unusable_host_is_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert main(["host"]) == 1
    assert capsys.readouterr().err.startswith("error: COMFYUI_PATH should be the folder of a ComfyUI")


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path, host: Host) -> None:
    (tmp_path / "workflow.json").write_text("{}")
    code = "import sys; sys.modules['torch'] = None; " + COMMAND[-1].removeprefix("import sys; ")
    environment = {**os.environ, "COMFYUI_PATH": str(host.path)}
    result = subprocess.run(
        [sys.executable, "-c", code, "render", "workflow.json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: torch is not installed in this environment. With LongReel's own copy")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "workflow.json").write_text("{}")
    (tmp_path / "file").write_text("")
    assert main(["render", str(tmp_path / "workflow.json"), "--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: --out should be a folder that can be written to")


def test_the_real_server_loads_the_pack_answers_and_ends_with_the_command(tmp_path: Path, host: Host) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--no-frontend", "--port", str(port), "--base", "base", "--out", "films"]
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)
    try:
        info = wait_for(f"http://127.0.0.1:{port}/object_info/LongReelStoryboard", server)
        assert info["LongReelStoryboard"]["display_name"] == "Storyboard"
        assert wait_for(f"http://127.0.0.1:{port}/system_stats", server)["system"]["comfyui_version"] == host.version
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
    text = log.read_text()
    assert not re.search(r"IMPORT FAILED\S*: .*longreel|Error while calling comfy_entrypoint", text), text
    assert re.search(r"seconds: .*longreel", text)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=5)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> dict[str, object]:
    """The JSON at an address, once the server listens."""
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                found: dict[str, object] = json.load(response)
                return found
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer; the server ended with {server.poll()}")


def test_without_the_page_serve_says_how_to_get_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['comfyui_frontend_package'] = None; " + COMMAND[-1].removeprefix("import sys; ")
    environment = {**os.environ, "COMFYUI_PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code, "serve"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "--no-frontend" in result.stderr
