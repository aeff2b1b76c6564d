"""The `longreel` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...memory.trace import TraceError
from ...memory.whole_file import ProjectError
from . import bench, demo, inspect_command, render, serve, show_host, train
from .embedded import HostError
from .render import INTERRUPTED_EXIT
from .workflow import WorkflowError

COMMANDS = (show_host, serve, render, demo, inspect_command, bench, train)
"""One module a command: its name is NAME, and it has `add_arguments(parser)` and `run(args) -> int`."""

INSTALL = (
    "With LongReel's own copy of ComfyUI, run `pip install -e \".[host]\"` in LongReel's folder. With a ComfyUI of yours, "
    "run `longreel` with that ComfyUI's Python."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the number is the process's exit code."""
    parser = argparse.ArgumentParser(prog="longreel", description="Films from storyboards, without a browser.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        summary = (command.__doc__ or "").strip().splitlines()[0]
        subparser = subparsers.add_parser(command.NAME, help=summary, description=summary)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (HostError, WorkflowError, ProjectError, TraceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed in this environment. {INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT
