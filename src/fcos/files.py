"""Opening of regular files only, and errors of writing files with the name of the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def naming_folder(folder: Path) -> Iterator[None]:
    """Add the name of the folder to an OSError without a file name: that of a full disk has none.

    Args:
        folder: folder that the files are written to.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write to this folder: {error.strerror}", str(folder)) from None
