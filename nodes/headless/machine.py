"""What a measurement was made on, and with which code. Import it after `boot_host`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import comfy.model_management
import torch

from .boot import pack_folder


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


def source_commit() -> str:
    """The commit of this code, with a mark where files were changed since."""
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(command, cwd=pack_folder(), capture_output=True, text=True, check=False)
    return said.stdout.strip() or "unknown"
