"""Limit on the size of files, which stands for a full disk or little shared memory."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Limit the files that this process writes to `size` bytes, including those in shared memory.

    As on a full disk, the data that fits is written and the rest raises an OSError ("File too large").
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
