"""Software versions and hardware of a run."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from ..data.workers import available_cores
from ..distributed import world_size
from ..files import write_text
from .folder import ENVIRONMENT


def save_environment(folder: Path, device: torch.device) -> None:
    """Write `environment.json` to the run folder; a resumed run overwrites it with its current environment."""
    text = json.dumps(environment(device), indent=1, ensure_ascii=False)
    write_text(folder / ENVIRONMENT, text + "\n")


def environment(device: torch.device) -> dict[str, str]:
    """Return the versions of the packages, Python and system, and the hardware, by name."""
    packages = ("fcos-vision", "torch", "torchvision", "numpy", "pillow", "hotcoco")
    entries = {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {available_cores()} available",
        "device": str(device),
        "processes": str(world_size()),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        entries["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return entries


def _processor() -> str:
    try:  # Linux leaves platform.processor() empty
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
