"""Setting of the C library's memory allocator that makes tensors on the CPU faster to allocate."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

VARIABLE = "FCOS_KEEP_FREED_MEMORY"
"""Environment variable; with the value 0, `keep_freed_memory` does nothing."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, see malloc.h of glibc
# More than the largest maps of R-50 at 800x1216 (62 MB). glibc before 2.38 does not reuse aligned blocks at once, so
# that larger arrays of a user's program would take several times their memory.
_LARGEST_BLOCK = 128 * 2**20
_LARGEST_BLOCK_OF_OLD_GLIBC = 32 * 2**20  # older versions refuse larger values
_LARGEST_REST = 2**31 - 1  # in bytes: free memory above this amount is returned


def keep_freed_memory(device: torch.device) -> bool:
    """Let this process keep and reuse the memory of freed tensors up to 128 MiB instead of returning it to the system.

    By default, glibc returns each large block at once, and the system has to provide and clear its pages again for the
    next tensor. Older versions of glibc keep tensors up to 32 MiB only, and other threads than the main one up to about
    64 MiB. The processes that this process forks have the same setting.

    Args:
        device: device of the detector; nothing is done unless it is the CPU.

    Returns:
        True if the setting has been made: glibc only (Linux), and not if `FCOS_KEEP_FREED_MEMORY=0`.
    """
    if device.type != "cpu" or sys.platform != "linux" or os.environ.get(VARIABLE) == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    sizes = _LARGEST_BLOCK, _LARGEST_BLOCK_OF_OLD_GLIBC
    keeps_blocks = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in sizes)
    return keeps_blocks and mallopt(_M_TRIM_THRESHOLD, _LARGEST_REST) == 1
