"""Opening of files that may turn out to be something else."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def require_regular(path: str | Path) -> None:
    """Check that a path is a regular file or a link to one: opening a named pipe or a device could block forever.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the path is of another kind, or a link that leads back to itself.
        ValueError: the path contains a null character.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file (but a folder, pipe, socket or device)")


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading bytes. Raises as `require_regular` and `open` do."""
    require_regular(path)
    return open(path, "rb")
