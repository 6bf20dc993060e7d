"""Processes started by torchrun or torch's elastic launcher: how they join, what they leave for their successors, and
how a lost one is reported."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..distributed import initialised, rank, world_size
from ..errors import TrainingError


def orphaned() -> bool:
    """Whether torchrun, or what else uses its launcher, has started this process with others and is gone."""
    return world_size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT


_PARENT = os.getppid()


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


def join_processes(device: torch.device) -> None:
    """Join the processes that torchrun started (nccl on GPUs, gloo else); alone: nothing happens.

    Nobody leaves before the program ends, as nothing is gained by it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or initialised():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_own_store(number), rank=number, world_size=count)
    atexit.register(dist.destroy_process_group)
