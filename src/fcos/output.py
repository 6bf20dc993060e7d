"""Standard output and error of a program whose output cannot always be written.

Training must not end because its log cannot be written: on a full disk under `nohup`, after `| head`, in a terminal
that was closed, or with a closed stdout.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _DroppingFile(io.FileIO):
    """Unbuffered file that drops what cannot be written."""

    def write(self, data: io.ReadableBuffer, /) -> int | None:  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def drop_unwritable_output() -> Iterator[None]:
    """Drop the output that cannot be written to stdout and stderr instead of raising an error.

    Only the streams of the process itself are replaced, not those of a notebook or a test, which have no file that can
    be full or closed. A closed stream is replaced by one without output.
    """
    _open_closed_descriptors()
    previous = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _replace(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _replace(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = previous


def _open_closed_descriptors() -> None:
    """Open those of the descriptors 0 to 2 that are closed; otherwise, the next opened file gets their output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _replace(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed when the process started
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_DroppingFile(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
