"""Helpers for tests that start processes: timeouts and free ports."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

SECONDS = 600
"""Timeout after which a process counts as hanging; far more than any process needs on a busy machine."""


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
