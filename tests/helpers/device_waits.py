"""Counter of the operations that make the CPU wait for a GPU: the size or value of their result depends on the data."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {"aten::nonzero", "aten::masked_select", "aten::_local_scalar_dense", "aten::_unique2", "torchvision::nms"}


class DeviceWaits(TorchDispatchMode):
    """Context that counts the waits of a computation, also on a machine without a GPU.

    Attributes:
        names: names of the operations that would wait.
        num_constants: number of tensors made of Python values, which are copied to the GPU if that is their device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.num_constants = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name
        masks = args[1] if name in ("aten::index", "aten::index_put_") else ()
        if name in WAITS or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            self.names.append(name)
        self.num_constants += name == "aten::lift_fresh"
        return function(*args, **(kwargs or {}))
