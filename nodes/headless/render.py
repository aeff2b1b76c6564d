"""Render a workflow file, without a browser."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boot import DEVICES, boot_host
from .workflow import Prompt, WorkflowError, apply_setting, label, read_workflow, to_prompt

if TYPE_CHECKING:
    from .runner import Runner

NAME = "render"
INTERRUPTED_EXIT = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The workflow, its settings, and where the files go."""
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW.json", help="saved by ComfyUI, in UI or API form")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="NODE.INPUT=VALUE",
        help="change one input; NODE is an id, a title or a type; may be given many times",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where files are saved (default: ./output)")
    add_host_arguments(parser)


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that boots ComfyUI in this process takes."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto takes the GPU where there is one")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="ComfyUI's base folder: models, input, user")
    parser.add_argument("--verbose", action="store_true", help="show what ComfyUI logs")


def run(args: argparse.Namespace) -> int:
    """Render, and say where the files are."""
    workflow = read_workflow(args.workflow)
    return render(workflow, args.settings, args)


def render(workflow: dict[str, Any], settings: list[str], args: argparse.Namespace) -> int:
    """Boot ComfyUI as the arguments say, run the workflow, print progress and files; the exit code."""
    return render_each(workflow, [settings], args)


def render_each(workflow: dict[str, Any], runs: Sequence[list[str]], args: argparse.Namespace) -> int:
    """Render the workflow once with each list of settings, one after the other in one ComfyUI; the exit code."""
    set_logging(args.verbose)
    if args.out is not None:
        check_folder(args.out)
    host = boot_host(args.device, output=args.out, base=args.base)
    print(f"ComfyUI {host.version}: loading its nodes", file=sys.stderr)
    from .runner import Runner

    line = ProgressLine()
    runner = Runner(line.report)
    object_info = runner.object_info()
    prompts = []
    for settings in runs:
        prompt = to_prompt(workflow, object_info)
        for setting in settings:
            apply_setting(prompt, setting, object_info)
        prompts.append(prompt)
    for prompt in prompts:
        if code := _render_one(runner, line, prompt, workflow):
            return code
    return 0


def _render_one(runner: Runner, line: ProgressLine, prompt: Prompt, workflow: dict[str, Any]) -> int:
    from .runner import RenderError, RenderInterruptedError

    line.prompt = prompt
    start = time.monotonic()
    try:
        rendered = runner.run(prompt, workflow if "nodes" in workflow else None)
    except RenderInterruptedError as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED_EXIT
    except RenderError as error:
        raise WorkflowError(str(error)) from error
    finally:
        line.end()
    print(f"Done in {time.monotonic() - start:.1f} s.")
    for path in rendered.files:
        print(path)
    return 0


def check_folder(folder: Path) -> None:
    """Make the folder for the files; WorkflowError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WorkflowError(f"--out should be a folder that can be written to: {error}. Name another one.") from error


def set_logging(verbose: bool) -> None:
    """Everything ComfyUI logs, or nothing: errors are reported by the command itself."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.disable(logging.NOTSET if verbose else logging.CRITICAL)


class ProgressLine:
    """One line on a terminal that follows the running node; elsewhere one line a node."""

    def __init__(self) -> None:
        self.prompt: Prompt = {}
        self.live = sys.stderr.isatty()
        self.running = ""

    def report(self, event: str, data: Any) -> None:
        """Follow the events that a browser would get."""
        if event == "executing" and data.get("node") in self.prompt:
            self.running = label(self.prompt, data["node"])
            self.show(self.running)
        if event == "progress_state" and self.live:
            for node_id, state in data["nodes"].items():
                if state["state"] == "running" and state["max"] > 1 and node_id in self.prompt:
                    self.show(f"{label(self.prompt, node_id)}  {state['value']:.0f} of {state['max']:.0f}")

    def show(self, text: str) -> None:
        """Rewrite the line."""
        if self.live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line clean."""
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
