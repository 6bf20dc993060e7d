"""Import of the packages of extras, without their telemetry: nothing leaves the machine unless the user asks for it."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

_TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
}


def import_package(name: str) -> ModuleType:
    """Import a package that may have telemetry, with it switched off. Variables in the user's environment prevail.

    Raises:
        ImportError: it is not installed.
    """
    for variable, value in _TELEMETRY_OFF.items():
        os.environ.setdefault(variable, value)
    # OpenVINO would report every import. Without this package, it uses a stub.
    blocked = "openvino_telemetry" not in sys.modules
    if blocked:
        sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] (Python's way to block it)
    try:
        return importlib.import_module(name)
    finally:
        if blocked:
            del sys.modules["openvino_telemetry"]
