"""Limit of the operating system on the files that this process may open (`ulimit -n`)."""

from __future__ import annotations

import math

from .errors import ConfigError
from .formatting import plural

try:
    import resource
except ImportError:  # Windows
    resource = None

WANTED = 65_536
"""Open files to request, where the system permits them; many systems start with 1024."""
BASE, PER_WORKER = 48, 24
"""Open files of a run, and of the batches of one loader worker: its tensors are passed as open files."""
_ROUNDING = 256
"""The limit that a message recommends is a multiple of this number."""


def allow_open_files() -> int | None:
    """Raise the limit on open files as far as the system permits, and return it; None without a limit."""
    if resource is None:
        return None
    limit, largest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if largest == resource.RLIM_INFINITY else min(largest, WANTED)
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return None if limit == resource.RLIM_INFINITY else limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, largest))
    except (OSError, ValueError):  # macOS has another, lower limit
        return limit
    return wanted


def require_open_files(workers: int) -> None:
    """Check that loader workers can pass their batches, raising the limit on open files if needed.

    Args:
        workers: number of loader workers that will be started.

    Raises:
        ConfigError: the limit is too low; without this check, the run would end in the middle of a step.
    """
    limit, needed = allow_open_files(), BASE + PER_WORKER * workers
    if workers and limit is not None and limit < needed:
        wanted = math.ceil(needed / _ROUNDING) * _ROUNDING
        raise ConfigError(
            f"{plural(workers, 'loader worker')}: about {needed} open files are needed, but the limit is"
            f" {limit}; raise it with `ulimit -n {wanted}` before the command, or use data.workers=0"
        )
