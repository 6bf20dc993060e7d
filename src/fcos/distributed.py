"""The little that several processes need: who am I, what do the others have, and which device.

Without torchrun everything here is a no-op for one process.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, FCOSError, TrainingError

T = TypeVar("T")


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _initialised() else 1


def orphaned() -> bool:
    """Whether torchrun, or what else uses its launcher, has started this process with others and is gone."""
    return world_size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT


_PARENT = os.getppid()


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


@contextmanager
def lost_processes_are_told() -> Iterator[None]:
    """Say in a line what torch's backends say in a traceback when another process is gone.

    Raises:
        TrainingError: a process is gone; the launcher's message names it.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        unreachable = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        together = max(world_size(), int(os.environ.get("WORLD_SIZE", "1")))  # it may be while they join
        if together == 1 or not (unreachable or any(words in text for words in _LOST)):
            raise
        number = rank() or os.environ.get("RANK", "0")
        reason = text.splitlines()[0].partition(". ")[0]
        raise TrainingError(
            f"process {number}: another process is gone or out of reach, see its message or the launcher's ({reason})"
        ) from None


_LOST = (
    "Connection closed by peer",  # gloo
    "Connection reset by peer",
    "Connection timed out",
    "No route to host",
    "Broken pipe",
    "Read error [",
    "writev [",
    "Socket closed [",
    "Application timeout caused pair closure",
    "Timed out waiting",
    "connectFullMesh failed",
    "remote process exited",  # nccl
)
"""What the backends say of a process that is gone; of other mistakes, as collectives that do not match, they do not."""


def remember(key: str, value: str) -> None:
    """Keep something for the processes that the elastic launcher starts instead of these, should they fail."""
    store = _launcher_store()
    if store is not None:
        store.set(key, value)


def recalled(key: str) -> str | None:
    """What earlier processes of this launch remembered; None: nothing, or there is no launcher."""
    store = _launcher_store()
    return store.get(key).decode() if store is not None and store.check([key]) else None


def first_to_tell(message: str) -> bool:
    """Whether no other process of this launch has asked for this message; always, where there is no launcher."""
    store = _launcher_store()
    return store is None or store.add(f"fcos/told/{message}", 1) == 1


def _own_store(number: int) -> Any:
    """A store of these processes alone, in that of rank 0; None: they were not started by torchrun.

    Torchrun's own outlives processes that it restarts: the new ones would find the addresses of the old ones in it, and
    wait for them for ever. Of the old rank 0 only a port is found there, which nobody listens to any more.

    Raises:
        TrainingError: rank 0 cannot be reached for as long as the launcher's store waits for anything.
    """
    launcher = _launcher_store()
    if launcher is None:
        return None
    if number == 0:
        store = _store(0, serve=True)
        launcher.set(_PORT, str(store.port))
        return store
    deadline = time.monotonic() + launcher.timeout.total_seconds()
    while True:
        port = int(launcher.get(_PORT))  # waits until it is there
        try:
            store = _store(port, timeout=timedelta(seconds=2))
        except dist.DistError:
            if time.monotonic() < deadline:
                continue
            raise TrainingError(
                f"process {number}: process 0 cannot be reached at {os.environ['MASTER_ADDR']}:{port}; this port and"
                " others, which the system chooses, must be open between the machines"
            ) from None
        store.set_timeout(launcher.timeout)
        return store


_PORT = "fcos/port"


def _launcher_store() -> Any:
    """The store in torchrun's process, which outlives those that it starts; None: it did not start this one."""
    from_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    return _store(int(os.environ["MASTER_PORT"])) if from_torchrun else None


def _store(port: int, *, serve: bool = False, **options: Any) -> Any:
    """Serve a store on the machine of rank 0, or use that of another one."""
    address = os.environ["MASTER_ADDR"]
    return dist.TCPStore(address, port, is_master=serve, **options)  # pyright: ignore[reportPrivateImportUsage]


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


def join_processes(device: torch.device) -> None:
    """Join the processes that torchrun started (nccl on GPUs, gloo else); alone: nothing happens.

    Nobody leaves before the program ends, as nothing is gained by it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _initialised():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_own_store(number), rank=number, world_size=count)
    atexit.register(dist.destroy_process_group)
