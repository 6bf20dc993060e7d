"""Loader worker processes: their number, and errors for workers that were killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from ..errors import DataError

logger = logging.getLogger(__name__)

_LOCKS_PER_WORKER = 16
"""More locks than torch creates for a worker and its share of the common queue."""
_EXIT_SECONDS = 2.0
"""Maximum seconds between a lost connection to a worker and its exit."""


class WorkerError(DataError):
    """Loader worker that was killed."""


def limit_workers(workers: int, *, processes: int | None = None) -> int:
    """Return the number of workers that a process starts: at most one for each core in its share of the machine.

    Args:
        workers: option `data.workers`.
        processes: number of processes that share the available cores; None: the number that torchrun has started.
    """
    if processes is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(workers, max(1, available_cores() // processes))


def fits_into_shared_memory(size: int) -> bool:
    """Return whether `size` bytes leave at least half of the free shared memory to others, such as other loaders."""
    try:
        return size <= shutil.disk_usage("/dev/shm").free / 2
    except OSError:  # not Linux
        return True


def available_cores() -> int:
    """Return the number of CPU cores that this process may use: its CPU affinity and the quota of its cgroups."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, int(min(cores, cgroup_quota())))


def cgroup_quota(root: Path = Path("/")) -> float:
    """Return the number of cores that the cgroups (version 1 or 2) of this process allow; infinite without a limit.

    Args:
        root: root of the file system.
    """
    return min(map(_read_quota, _cgroups(root, "cpu")), default=float("inf"))


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process can use: those that are free, within the limits of its cgroups.

    Args:
        root: root of the file system.

    Returns:
        The number of bytes; None if it is unknown.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return None
    return min([available, *filter(None, map(_read_memory, _cgroups(root, "memory")))])


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the cgroups (version 1 or 2) of this process that a controller may limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        folder = mount / path.lstrip("/")
        # A container may see the path on the host, but has its own group mounted as the root.
        yield from (group for group in (folder, *folder.parents) if group.is_relative_to(mount))


def _read_memory(group: Path) -> int | None:
    """Return the free memory of one cgroup in bytes, where cached files count as free; None without a limit."""
    for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            limit, used = ((group / name).read_text(encoding="utf-8").strip() for name in names)
            lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        if limit == "max":
            return None
        cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        return max(int(limit) - int(used) + cached, 1)
    return None


def _read_quota(group: Path) -> float:
    """Return the quota of one cgroup in cores; infinite without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return float("inf")


def iterate(build: Callable[[int], DataLoader[Any]], workers: int) -> Iterator[Any]:
    """Iterate over a loader. A killed worker raises an error, and only while this function waits for a batch.

    torch raises its own error at any moment, such as in the middle of a training step, whose result could then not be
    saved. It is raised in a handler of SIGCHLD, which this function replaces. If the workers cannot be started, the
    main process loads the data, with a warning.

    Args:
        build: function that builds the loader for a number of workers.
        workers: number of workers.

    Raises:
        WorkerError: a worker was killed.
    """
    others, previous = multiprocessing.active_children(), _child_handler()
    try:
        # Locks need shared memory. If it is too small for those of torch, an incomplete iterator remains.
        _ = [multiprocessing.Lock() for _ in range(_LOCKS_PER_WORKER * workers)]
        iterator = iter(build(workers))
    except OSError as error:
        logger.warning(
            "warning: data.workers=%d: cannot start the loader workers: %s; the main process loads the images, which is"
            " slower; use fewer workers, or, if /dev/shm is full, give it more space (docker run --shm-size=2g)",
            workers,
            error,
        )
        iterator = iter(build(0))
    _set_child_handler(previous)
    processes = [process for process in multiprocessing.active_children() if process not in others]
    while True:
        with _on_child_exit(lambda *_: _require_alive(processes)):
            try:
                _require_alive(processes)
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError):  # a consequence of a killed worker, or another error
                ended = connection.wait([process.sentinel for process in processes], timeout=_EXIT_SECONDS)
                for process in processes:
                    if process.sentinel in ended:
                        process.join(_EXIT_SECONDS)  # its files are closed before it has an exit code
                _require_alive(processes)
                raise
        yield batch


def _require_alive(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker.exitcode:
            reason = f"ended with exit code {worker.exitcode}"
            if worker.exitcode < 0:
                reason = f"was terminated by {signal.Signals(-worker.exitcode).name}"
            if -worker.exitcode == getattr(signal, "SIGKILL", None):
                reason += ", possibly because the system ran out of memory"
            raise WorkerError(
                f"loader worker {worker.pid} {reason}; use fewer data.workers (now {len(workers)}), or data.workers=0"
            )


@contextmanager
def _on_child_exit(act: Callable[..., None]) -> Iterator[None]:
    """Call a function whenever a child process ends."""
    previous = _child_handler()
    _set_child_handler(act)
    try:
        yield
    finally:
        _set_child_handler(previous)


def _child_handler() -> Any:
    return signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None


def _set_child_handler(handler: Any) -> None:
    is_main_thread = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if hasattr(signal, "SIGCHLD") and is_main_thread and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
