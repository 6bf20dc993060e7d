"""What tests that start processes share: how long they wait, and the ports that they take."""

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
"""Far more than any of them needs on a busy machine: what takes so long hangs."""


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that hangs is killed, which is a failure."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str] | BaseProcess) -> bool:
    """Whether something has become true before a process ended; one that hangs is killed."""
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
    """A port below those that the system hands out, and apart from those of other processes of pytest."""
    for number in itertools.islice(_NUMBERS, 100):
        port = 10_000 + (16 * os.getpid() + number) % 20_000
        with socket.socket() as place, suppress(OSError):
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's store does
            place.bind(("", port))
            return port
    raise AssertionError("no port is free")


_NUMBERS = itertools.count()
