"""The little that several processes need: who am I, what do the others have, and which device.

Without torchrun everything here is a no-op for one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, FCOSError

T = TypeVar("T")


def initialised() -> bool:
    """Whether this process has joined a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if initialised() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if initialised() else 1


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Average a tensor over all processes, with one all-reduce; without gradient, the input is left alone.

    Every process must call it, with the same shape, whatever its data looks like.
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
    """Add up a tensor over all processes, with gradient: of the sum of all processes' losses.

    Every process must call it, with the same shape, and take the gradient as often as the others.
    """
    return tensor if world_size() == 1 else _Sum.apply(tensor)  # pyright: ignore[reportReturnType]


def broadcast(value: T) -> T:
    """The value of rank 0, on all processes."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def all_gather(value: T) -> list[T]:
    """The values of all processes in their order, on all processes."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_all_ranks(function: Callable[[], T]) -> T:
    """Run a function on every process: where it fails on one of them for a user's reason, it fails on all.

    Raises:
        FCOSError, OSError: that of the lowest rank that failed; on the others its `told` is true, so that it is
            told once.
    """
    value: Any = None
    problem: Exception | None = None
    try:
        value = function()
    except (FCOSError, OSError) as error:
        problem = error
    failed = [(number, error) for number, error in enumerate(all_gather(problem)) if error is not None]
    if failed:
        number, error = failed[0]
        if number != rank():
            error.told = True  # pyright: ignore[reportAttributeAccessIssue]
        raise error
    return value


def on_rank_zero(function: Callable[[], T]) -> T:
    """What a function gives on rank 0, on all processes; it is not run on the others.

    Raises:
        FCOSError, OSError: see `on_all_ranks`.
    """
    value: Any = on_all_ranks(lambda: function() if rank() == 0 else None)
    return broadcast(value)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of rank 0: batch-norm statistics differ by the last batch."""
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
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.index is not None and processes > 1:
            raise ConfigError(
                f"device: {name!r} is one GPU for the {processes} processes of this machine; give device=cuda, by which"
                " each has its own"
            )
        if index >= count:
            raise ConfigError(f"device: {name!r} is not there, this machine has {count} CUDA devices; try device=auto")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: 'mps' is not there; try device=auto")
    return device
