"""Helpers for tests that start processes: the process that they are forked from, timeouts, and free ports."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from fcos.config import Config
from fcos.training.loop import train

SECONDS = 600
"""Timeout after which a process counts as hanging; far more than any process needs on a busy machine."""


def forkserver() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported everything, which takes milliseconds.

    A fork of the test process itself could wait for threads that earlier tests started and that a fork lacks.
    """
    context = multiprocessing.get_context("forkserver")
    modules = ["fcos.cli", "fcos.training.loop", "fcos.reporting.report"]
    slow = ["torch._dynamo", "torch.utils.tensorboard", "hotcoco", "matplotlib.figure"]  # imported at their first use
    context.set_forkserver_preload(["tiny_backbone", *modules, *slow])
    return context


def in_new_process(work: Callable[..., Any], *args: Any) -> Any:
    """Run `work(*args)` in a process of its own, see `forkserver`, and return its result."""
    with ProcessPoolExecutor(1, mp_context=forkserver()) as executor:
        return executor.submit(work, *args).result(timeout=SECONDS)


def in_processes(count: int, work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Run `work(rank, count, *args)` in a process group and return the results of all processes."""
    folder.mkdir()
    forkserver()
    start_processes(_process, (count, work, folder, args), nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _process(rank: int, count: int, work: Callable[..., Any], folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=count)
    torch.save(work(rank, count, *args), folder / f"{rank}.pt")


def train_in_processes(count: int, config: Config) -> None:
    """Train in several processes that have the environment variables of torchrun, without the report of the run."""
    in_launched_processes(count, train, config)


def in_launched_processes(count: int, work: Callable[..., Any], *args: Any) -> None:
    """Run `work(*args)` in several processes that have the environment variables of torchrun."""
    forkserver()
    start_processes(_launched, (count, free_port(), work, args), nprocs=count, start_method="forkserver")


def _launched(rank: int, count: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    work(*args)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for a process and return its exit code, stdout and stderr. If it hangs, kill it and raise."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | BaseProcess) -> bool:
    """Return whether a condition becomes true before a process ends. A process that hangs is killed."""
    deadline = time.monotonic() + SECONDS
    while True:
        ended = not process.is_alive() if isinstance(process, BaseProcess) else process.poll() is not None
        if condition():
            return True
        if ended:
            return False
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(0.01)


def free_port() -> int:
    """Return a free port below the ephemeral range, in a range that differs between pytest processes."""
    for number in itertools.islice(_NUMBERS, 100):
        port = 10_000 + (16 * os.getpid() + number) % 20_000
        with socket.socket() as place, suppress(OSError):
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
            place.bind(("", port))
            return port
    raise AssertionError("no port is free")


_NUMBERS = itertools.count()
