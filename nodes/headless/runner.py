"""The host's own validation and execution of a workflow in this process. Import it after `boot_host`."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import comfy.model_management
import comfy.utils
import execution
import folder_paths
import nodes as host_nodes
import server
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from .boot import pack_folder
from .embedded import HostError
from .workflow import Prompt, label

OUR_PREFIX = "LongReel"
# ComfyUI's own defaults for a small machine: GiB of RAM to keep free while running, and when idle.
CACHE_ARGUMENTS = {"lru": 0, "ram": 2.0, "ram_inactive": 2.0}

Report = Callable[[str, Any], None]
"""Takes the name and data of each event that a browser would be sent."""


class RenderError(RuntimeError):
    """The host refused the workflow or a node failed; the message names the node."""


class RenderInterruptedError(RuntimeError):
    """The run was stopped before its end."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a run left."""

    files: tuple[Path, ...]
    """Files in the output and temporary folders that nodes announced, in the order of the nodes."""
    outputs: dict[str, Any]
    """Node id -> what the node showed in the browser."""


class QuietServer(server.PromptServer):
    """The host's server object without a socket: nodes find it, and its messages go to a report."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        self.report = report
        super().__init__(loop)

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        """Hand an event to the report."""
        if isinstance(event, str):
            self.report(event, data)


class Runner:
    """All nodes of the host loaded, ours among them. One a process, as the host's server object."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.loop = asyncio.new_event_loop()
        self.server = QuietServer(self.loop, lambda event, data: self.report(event, data))
        self.loop.run_until_complete(load_nodes())
        comfy.utils.set_progress_bar_enabled(False)  # the samplers' own bars on stderr, not the events
        comfy.utils.set_progress_bar_global_hook(show_progress)
        self.executor = execution.PromptExecutor(
            self.server, cache_type=execution.CacheType.RAM_PRESSURE, cache_args=CACHE_ARGUMENTS
        )

    def object_info(self) -> dict[str, Any]:
        """What a browser gets at /object_info: every node type with its inputs and outputs."""
        handler = next(route.handler for route in self.server.routes if route.path == "/object_info")
        response = self.loop.run_until_complete(handler(None))
        info: dict[str, Any] = json.loads(response.text)
        return info

    def run(self, prompt: Prompt, workflow: dict[str, Any] | None = None) -> Rendered:
        """Validate and execute; `workflow` is the UI form that nodes embed in what they save.

        Raises RenderError or RenderInterruptedError.
        """
        prompt_id = uuid.uuid4().hex
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
        if not valid or node_errors:
            raise RenderError(explain_refusal(prompt, error, node_errors))
        # A client id makes the host report each node as it does for a browser.
        extra = {"client_id": "longreel", "extra_pnginfo": {"workflow": workflow} if workflow else {}}
        with interrupt_on_ctrl_c():
            self.executor.execute(prompt, prompt_id, extra, outputs)
        event, data = self.executor.status_messages[-1]
        if event == "execution_interrupted":
            raise RenderInterruptedError("Stopped. What was finished is kept.")
        if event == "execution_error":
            message = str(data["exception_message"]).strip()
            raise RenderError(f"{label(prompt, data['node_id'])}: {message} [{data['exception_type']}]")
        shown = self.executor.history_result["outputs"]
        return Rendered(tuple(announced_files(shown)), shown)


async def load_nodes() -> None:
    """The host's built-in nodes, the user's packs, and ours unless it is among those."""
    await host_nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False)
    if has_our_nodes():
        return
    if not await host_nodes.load_custom_node(str(pack_folder()), module_parent="custom_nodes") or not has_our_nodes():
        raise HostError("ComfyUI could not load LongReel's own nodes; run again with --verbose to see why.")


def has_our_nodes() -> bool:
    """Whether the host knows nodes of this pack."""
    return any(name.startswith(OUR_PREFIX) for name in host_nodes.NODE_CLASS_MAPPINGS)


def show_progress(
    value: float, total: float, preview: Any, prompt_id: str | None = None, node_id: str | None = None
) -> None:
    """The host's progress bars end here: stop if asked to, then tell the progress registry."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    context = get_executing_context()
    node = node_id or (context.node_id if context is not None else None)
    if node is not None:
        get_progress_state().update_progress(node, value, total, preview)


@contextmanager
def interrupt_on_ctrl_c() -> Iterator[None]:
    """Ctrl-C asks the host to stop, as its cancel button does; pressing it again stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        host_nodes.interrupt_processing()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def explain_refusal(prompt: Prompt, error: dict[str, Any] | None, node_errors: dict[str, Any]) -> str:
    """The host's validation errors, one line a node."""
    lines = [
        f"{label(prompt, node_id)}: " + "; ".join(f"{one['message']}: {one['details']}" for one in found["errors"])
        for node_id, found in node_errors.items()
    ]
    if not lines and error is not None:
        lines = [": ".join(part for part in (error["message"], error["details"]) if part)]
    return "ComfyUI refuses this workflow.\n  " + "\n  ".join(lines)


def announced_files(outputs: dict[str, Any]) -> Iterator[Path]:
    """The files on disk that nodes named in what they showed."""
    shown = (
        item for output in outputs.values() for items in output.values() if isinstance(items, list) for item in items
    )
    for item in shown:
        if isinstance(item, dict) and "filename" in item and item.get("type") in ("output", "temp"):
            folder = Path(folder_paths.get_directory_by_type(item["type"]))
            yield folder / item.get("subfolder", "") / item["filename"]
