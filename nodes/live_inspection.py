"""The Memory Inspector's picture while the film is made: messages to the browser, few and small."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..memory.inspection import inspect_chunk, inspect_header
from .thumbnail_address import thumbnail_addresses

EVENT = "longreel.inspection"
SECONDS_BETWEEN = 0.5


class LiveInspection:
    """Tells the browser that queued the film about finished chunks, at most twice a second; use it in a `with`.

    A message holds what the ones before did not: `{"sampler": ..., "prompt_id": ..., "inspection": the header, "chunks":
    [...], "thumbnails": [...]}`. Where nobody listens nothing is done.
    """

    def __init__(self, sampler: str, now: Callable[[], float] = time.monotonic) -> None:
        self._sampler, self._now = sampler, now
        self._sent_at = -SECONDS_BETWEEN
        self._header: dict[str, Any] = {}
        self._folder = Path()
        self._waiting: list[dict[str, Any]] = []

    def finished(self, folder: Path, header: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """One more chunk of the film in this folder, as its trace tells it."""
        if PromptServer.instance.client_id is None:
            return
        self._folder, self._header = folder, inspect_header(header)
        self._waiting.append(inspect_chunk(header, event))
        if self._now() - self._sent_at >= SECONDS_BETWEEN:
            self._send()

    def __enter__(self) -> LiveInspection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send()

    def _send(self) -> None:
        if not self._waiting:
            return
        addresses = thumbnail_addresses(self._folder, [chunk["index"] for chunk in self._waiting])
        running = get_executing_context()
        message = {
            "sampler": self._sampler,
            "prompt_id": None if running is None else running.prompt_id,
            "inspection": self._header,
            "chunks": self._waiting,
            "thumbnails": [{"chunk": chunk, "src": src} for chunk, src in addresses.items()],
        }
        PromptServer.instance.send_sync(EVENT, message, PromptServer.instance.client_id)
        self._waiting, self._sent_at = [], self._now()
