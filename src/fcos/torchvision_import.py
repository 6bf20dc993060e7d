"""Import of torchvision without `torch._dynamo`, the compiler of PyTorch, which is a third of the start of a command.

torchvision imports one function of it, for RoIAlign on a GPU with deterministic algorithms. Importing this module first
replaces the function by one that imports the compiler when it is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo.utils"


def _import_torchvision() -> None:
    """Import torchvision with a module in place of `torch._dynamo.utils` that imports the real one when it is used."""
    placeholder = ModuleType(_NAME)

    def remove() -> None:
        if sys.modules.get(_NAME) is placeholder:
            del sys.modules[_NAME]

    def real() -> Any:
        remove()
        return import_module(_NAME)

    def other_attribute(name: str) -> Any:  # of a version of torchvision that needs more
        if name.startswith("__"):  # asked for by the import system
            raise AttributeError(name)
        return getattr(real(), name)

    placeholder.__dict__["is_compile_supported"] = lambda device_type: real().is_compile_supported(device_type)
    placeholder.__dict__["__getattr__"] = other_attribute
    sys.modules[_NAME] = placeholder
    try:
        import_module("torchvision")
    finally:
        remove()


import_module("torch")
if _NAME not in sys.modules and "torchvision" not in sys.modules:
    _import_torchvision()

from torchvision.ops import nms  # noqa: E402 (after the above)

__all__ = ["nms"]
