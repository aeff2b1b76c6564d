"""What a measurement was made on. Import it after `boot_host`."""

from __future__ import annotations

import os
import platform

import comfy.model_management
import torch


def machine(host_version: str) -> dict[str, str]:
    """Where this is measured."""
    device = comfy.model_management.get_torch_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.processor() or 'CPU'}"
    return {
        "device": f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "comfyui": host_version,
    }
