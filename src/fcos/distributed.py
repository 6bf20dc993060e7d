"""Helpers for distributed training: rank, world size, collectives, and the device of a process.

Without a process group all of them act as for a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, FCOSError
from .formatting import quote

T = TypeVar("T")


def initialised() -> bool:
    """Return whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank of this process, 0 without a process group."""
    return dist.get_rank() if initialised() else 0


def world_size() -> int:
    """Return the number of processes in the process group, 1 without one."""
    return dist.get_world_size() if initialised() else 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, computed with one all-reduce, without gradient.

    The input is not modified. Every process must call this with the same shape, independent of its data.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Sum.forward(None, gradient)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, with the gradient of the sum of all processes' losses.

    Every process must call this with the same shape and run the same number of backward passes.
    """
    return tensor if world_size() == 1 else _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


def broadcast(value: T) -> T:
    """Return the value of rank 0 on all processes."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, ordered by rank, on all processes."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_all_ranks(function: Callable[[], T]) -> T:
    """Run a function on every process. If it raises a user error on one of them, raise this error on all.

    Raises:
        FCOSError, OSError: the error of the lowest rank that failed. On other ranks its `told` is True, so that it is
            printed only once.
    """
    value: Any = None
    local_error: Exception | None = None
    try:
        value = function()
    except (FCOSError, OSError) as error:
        local_error = error
    failed = [(number, error) for number, error in enumerate(all_gather(local_error)) if error is not None]
    if failed:
        number, error = failed[0]
        if number != rank():
            error.told = True  # pyright: ignore[reportAttributeAccessIssue]
        raise error
    return value


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run a function on rank 0 only and return its result on all processes.

    Raises:
        FCOSError, OSError: the error of rank 0, raised on all processes, see `on_all_ranks`.
    """
    value: Any = on_all_ranks(lambda: function() if rank() == 0 else None)
    return broadcast(value)


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


def broadcast_buffers(model: nn.Module) -> None:
    """Broadcast the buffers of rank 0: batch-norm statistics of the processes differ by the last batch."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device for `auto` (CUDA, else MPS, else CPU) or the name of a torch device.

    Under torchrun, `auto` and `cuda` select the GPU of this process (LOCAL_RANK).

    Raises:
        ConfigError: the name is not a device, or this machine does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):  # TypeError: bytes, lists
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: expected auto, cpu, mps, cuda or cuda:N, found {quote(name)}")
    if device.type == "cuda":
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.index is not None and num_processes > 1:
            raise ConfigError(
                f"device: {name!r} selects one GPU for all {num_processes} processes of this machine; use device=cuda,"
                " which gives each process its own GPU"
            )
        if index >= num_gpus:
            raise ConfigError(
                f"device: {name!r} is not available, this machine has {num_gpus} CUDA devices; try device=auto"
            )
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: 'mps' is not available; try device=auto")
    return device
