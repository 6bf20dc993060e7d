"""Opening of regular files only, and atomic writes, whose errors name the file."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from .errors import WriteError

MAX_NAME_BYTES = 255
"""Length limit of a file or folder name on most file systems."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_SECONDS_IN_USE = 3600.0
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def find_long_name(path: str | Path) -> str | None:
    """Return the first file or folder name in a path that is longer than `MAX_NAME_BYTES`; None if there is none."""
    return next((part for part in Path(path).parts if len(os.fsencode(part)) > MAX_NAME_BYTES), None)


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
def temporary_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the folder of `path`, which is removed at the end if it still exists."""
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` at the end if there was no error (an atomic write).

    A link at `path` is replaced, too, so nothing is written to the file that it points to.
    """
    with temporary_path(path) as temporary:
        yield temporary
        temporary.replace(path)


def require_creatable(path: Path) -> None:
    """Check that a file can be created in the folder of `path`, before the work whose result it will hold.

    Raises:
        WriteError: it cannot be.
    """
    with explain_write_errors(path), temporary_path(path) as temporary:
        temporary.touch()


def remove_old_temporaries(folder: Path) -> None:
    """Remove the temporary files of `replaced` that killed processes left in a folder or directly in its subfolders.

    Files that were modified within the last hour are kept, since another process may be writing them.
    """
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        with suppress(OSError):  # removed since, or not writable
            if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > _SECONDS_IN_USE:
                path.unlink()


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into a message with the path, which the system's message for a full disk lacks.

    Args:
        path: file or folder that is written.

    Raises:
        WriteError: an OSError was raised.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        failure = WriteError(f"{path}: cannot be written: {describe_write_error(error)}")
        failure.errno = error.errno
        raise failure from None


def describe_write_error(error: OSError) -> str:
    """Return why a file cannot be written, with what to do about a full disk; only a `WriteError` names the file."""
    if isinstance(error, WriteError):
        return str(error)
    hint = "; free up disk space" if error.errno in _DISK_IS_FULL else ""
    return f"{error.strerror or error}{hint}"  # the file in an OSError may be a temporary one


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 text file atomically: an existing file stays intact until the new one is complete.

    Args:
        path: path of the file.
        text: content.
        errors: treatment of characters that UTF-8 cannot encode, as in `str.encode`.

    Raises:
        WriteError: the disk is full or not writable.
    """
    with explain_write_errors(path), replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)
