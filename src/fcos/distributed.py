"""The little that several processes need: who am I, what do the others have, and which device.

Without torchrun everything here is a no-op for one process.
"""

from __future__ import annotations

import atexit
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError

T = TypeVar("T")


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _initialised() else 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, with one all-reduce; without gradient, the input is left alone.

    Every process must call it, with the same shape, whatever its data looks like.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def same_everywhere(value: T) -> T:
    """The first process' value, on all processes."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gathered(value: T) -> list[T]:
    """The values of all processes in their order, on all processes."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def share_buffers(model: nn.Module) -> None:
    """Give all processes the first one's buffers: batch-norm statistics differ by the last batch."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def resolve_device(name: str) -> torch.device:
    """Turn `auto` (CUDA, else MPS, else CPU) or a torch device's name into a device that is there.

    Under torchrun `auto` and `cuda` mean the GPU of this process (LOCAL_RANK).

    Raises:
        ConfigError: not a device, or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: expected auto, cpu, mps, cuda or cuda:N, found {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        if index >= count:
            raise ConfigError(f"device: {name!r} is not there, this machine has {count} CUDA devices; try device=auto")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: 'mps' is not there; try device=auto")
    return device


def join_processes(device: torch.device) -> None:
    """Join the processes that torchrun started (nccl on GPUs, gloo else); alone: nothing happens.

    Nobody leaves before the program ends: who joined again would find the addresses of the first time in the
    launcher's store.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _initialised():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
