"""Support for torchrun and the elastic launcher: process group, values across restarts, errors for lost processes."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..distributed import initialised, rank, world_size
from ..errors import ConfigError, TrainingError


def is_orphaned() -> bool:
    """Return whether the elastic launcher (of torchrun, for example) that started this process and others is gone."""
    return world_size() > 1 and "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT_PID


_PARENT_PID = os.getppid()


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn the backend's error about a lost process into a one-line error.

    Raises:
        TrainingError: another process has ended or cannot be reached; the launcher's message names it.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        unreachable = isinstance(error, dist.DistNetworkError | dist.DistStoreError)
        # The group may not be initialised yet.
        num_processes = max(world_size(), int(os.environ.get("WORLD_SIZE", "1")))
        if num_processes == 1 or not (unreachable or any(words in text for words in _LOST_PROCESS_PHRASES)):
            raise
        number = rank() or os.environ.get("RANK", "0")
        reason = text.splitlines()[0].partition(". ")[0]
        raise TrainingError(
            f"process {number}: another process has ended or cannot be reached; see the message of that process or"
            f" of the launcher ({reason})"
        ) from None


_LOST_PROCESS_PHRASES = (
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
"""Phrases in backend errors that indicate a lost process, and no other mistake such as mismatched collectives."""


def remember(key: str, value: str) -> None:
    """Store a value for the processes that the elastic launcher starts after a failure; no-op without a launcher."""
    store = _launcher_store()
    if store is not None:
        store.set(key, value)


def recall(key: str) -> str | None:
    """Return the value that `remember` stored in this launch; None if there is no such value or no launcher."""
    store = _launcher_store()
    return store.get(key).decode() if store is not None and store.check([key]) else None


def is_first_report(message: str) -> bool:
    """Return True for the first call with this message in a launch; always True without a launcher."""
    store = _launcher_store()
    return store is None or store.add(f"fcos/reported/{message}", 1) == 1


def _process_group_store(number: int) -> Any:
    """Return a store for the process group, served by rank 0; None if torchrun did not start this process.

    Torchrun's store outlives the processes that it restarts. The new processes would find the addresses of the old ones
    in it and wait for them forever. Therefore torchrun's store only passes on the port of rank 0. The port of an old
    rank 0 does no harm, because nothing listens on it any more.

    Args:
        number: rank of this process.

    Raises:
        TrainingError: rank 0 cannot be reached within the timeout of torchrun's store.
    """
    launcher = _launcher_store()
    if launcher is None:
        return None
    if number == 0:
        store = _connect_store(0, serve=True)
        launcher.set(_PORT_KEY, str(store.port))
        return store
    deadline = time.monotonic() + launcher.timeout.total_seconds()
    while True:
        port = int(launcher.get(_PORT_KEY))  # waits until rank 0 has set it
        try:
            store = _connect_store(port, timeout=timedelta(seconds=2))
        except dist.DistError:
            if time.monotonic() < deadline:
                continue
            raise TrainingError(
                f"process {number}: process 0 cannot be reached at {os.environ['MASTER_ADDR']}:{port}; the"
                " machines must be able to connect to each other on this port and on ports that the system chooses"
            ) from None
        store.set_timeout(launcher.timeout)
        return store


_PORT_KEY = "fcos/port"


def _launcher_store() -> Any:
    """Return torchrun's store, which outlives the processes it starts; None if torchrun did not start this one."""
    from_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    return _connect_store(int(os.environ["MASTER_PORT"])) if from_torchrun else None


def _connect_store(port: int, *, serve: bool = False, **options: Any) -> Any:
    """Return a TCP store at MASTER_ADDR: serve a new one (rank 0), or connect to an existing one."""
    address = os.environ["MASTER_ADDR"]
    return dist.TCPStore(address, port, is_master=serve, **options)  # pyright: ignore[reportPrivateImportUsage]


def join_processes(device: torch.device) -> None:
    """Initialise the process group if torchrun started several processes (nccl on GPUs, otherwise gloo).

    The group is destroyed when the program exits, see `destroy_at_exit`.

    Raises:
        ConfigError: WORLD_SIZE is set, but the other variables that torchrun sets are missing or invalid.
    """
    count = _read_number("WORLD_SIZE", default=1, at_least=1)
    if count == 1 or initialised():
        return
    number = _read_number("RANK", at_least=0)
    _read_number("LOCAL_RANK", default=0, at_least=0)
    _read_number("MASTER_PORT", at_least=1)
    if number >= count or not os.environ.get("MASTER_ADDR"):
        raise _environment_error(f"RANK={number} and MASTER_ADDR={os.environ.get('MASTER_ADDR', '')!r:.80}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    store = _process_group_store(number)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, device_id=device_id)
    destroy_at_exit()


def destroy_at_exit() -> None:
    """Destroy the process group when the program exits; leaving it earlier has no benefit.

    An interrupted run leaves models in reference cycles. They are collected first, because they keep the group and its
    threads alive. Such a thread aborts the process if it needs the lock of the interpreter after Python has ended.

    Before torch 2.8, the destructor of a gloo group may wait forever for one of its threads, which waits for the lock
    of the interpreter (pytorch/pytorch#154976). Such a group gets a reference that keeps it from being destroyed.
    """
    if dist.get_backend() == "gloo" and torch.__version__ < "2.8":
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    else:
        atexit.register(dist.destroy_process_group)
        atexit.register(gc.collect)  # runs first: the functions are called in reverse order


def _read_number(name: str, *, at_least: int, default: int | None = None) -> int:
    """Return an integer that torchrun has set as an environment variable."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < at_least:
        raise _environment_error(f"{name}={text!r:.80}" if text else f"no {name}")
    return int(text)


def _environment_error(problem: str) -> ConfigError:
    return ConfigError(
        f"the environment variable WORLD_SIZE={os.environ.get('WORLD_SIZE', '')!r:.80} announces several processes,"
        f" with {problem}; expected the variables that torchrun sets; start with torchrun or train.devices=N, or remove"
        " the variable (unset WORLD_SIZE)"
    )
