"""Whether a training is alone or one of several processes that `accelerate launch` started, and on which device it trains."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...memory.training.processes import Processes


def launched(device: str) -> Processes:
    """The processes of this training; call it after `boot_host(device)`."""
    import comfy.model_management

    from ...memory.training.processes import Processes

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # set for every process that accelerate or torchrun starts
        return Processes(device=str(comfy.model_management.get_torch_device()))
    from accelerate import Accelerator, InitProcessGroupKwargs

    # The others wait while the first process encodes videos, which may take longer than the ten minutes that are usual on GPUs.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    return Processes(Accelerator(cpu=device == "cpu", kwargs_handlers=[patience]))
