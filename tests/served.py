"""`longreel serve` as a process of its own, and what a client says to it."""

from __future__ import annotations

import copy
import hashlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from shipped import API_FOLDER, TINY, read_json

COMMAND = [sys.executable, "-c", "import sys; from longreel.nodes.headless.cli import main; sys.exit(main())", "serve"]
START_SECONDS = 240
RENDER_SECONDS = 600


class RefusedError(Exception):
    """The server answered with an error status; `answer` is what it said."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer


class Server:
    """The real server on a free loopback port, with all of its folders in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.output, self.log_path = folder, folder / "output", folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = [
            "--port",
            str(self.port),
            "--base",
            str(folder / "base"),
            "--out",
            str(self.output),
            *arguments,
        ]

    def __enter__(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(COMMAND + self.arguments, stdout=log, stderr=subprocess.STDOUT)
        self.wait_for(self.answers, START_SECONDS, "the server to start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)

    @property
    def log(self) -> str:
        """What the server printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL for the server and the command that started it: nobody gets to clean up."""
        processes = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(timeout=60)

    def answers(self) -> bool:
        """Whether the server takes requests by now."""
        if self.process.poll() is not None:
            raise AssertionError(f"The server ended with {self.process.returncode}:\n{self.log[-4000:]}")
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def wait_for(self, done: Callable[[], Any], seconds: float, what: str) -> Any:
        """The first true answer of `done`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if answer := done():
                return answer
            time.sleep(0.05)
        raise AssertionError(f"Waited {seconds} s for {what}.\n{self.log[-4000:]}")

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, data: Any) -> Any:
        """The JSON that a path answers with, None where it answers with nothing; raises RefusedError."""
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RefusedError(json.load(error)) from error
        return json.loads(text) if text else None

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt; its id. Raises RefusedError."""
        return str(self.post("/prompt", {"prompt": prompt, "client_id": "longreel-tests"})["prompt_id"])

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The history of a prompt once it has ended."""
        history = self.wait_for(lambda: self.get(f"/history/{prompt_id}"), RENDER_SECONDS, "the prompt to end")
        ended: dict[str, Any] = history[prompt_id]
        return ended

    def render(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The history of a prompt that is rendered to its end."""
        ended = self.wait(self.queue(prompt))
        assert ended["status"]["status_str"] == "success", ended["status"]["messages"]
        return ended

    def finished_chunks(self, project: str) -> int:
        """How many chunks the manifest of a film vouches for."""
        path = self.output / "longreel" / project / "manifest.json"
        return len(read_json(path)["chunks"]) if path.is_file() else 0


def tiny_prompt(text: str, project: str, **changes: Any) -> dict[str, Any]:
    """The shipped tiny workflow as a prompt, with its storyboard shortened and its pictures made smaller."""
    prompt: dict[str, Any] = copy.deepcopy(read_json(API_FOLDER / TINY.name))
    inputs = {node["class_type"]: node["inputs"] for node in prompt.values()}
    inputs["LongReelStoryboard"]["text"] = text
    inputs["LongReelChunkedARSampler"] |= {"project": project, "width": 64, "height": 48, **changes}
    return prompt


def errors_of(ended: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors of a prompt that has ended."""
    return [data for event, data in ended["status"]["messages"] if event == "execution_error"]


def hashes(film: Path) -> dict[str, str]:
    """Every file of a film that its pictures are made of, by its bytes."""
    files = [*sorted(film.glob("chunks/*")), *sorted(film.glob("segments/*")), film / "film.mp4"]
    return {str(path.relative_to(film)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
