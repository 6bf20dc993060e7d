"""Text file that grows by whole rows, so that it stays valid if the disk is full or the program is interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from ...files import explain_write_errors, replaced


class RowFile:
    """UTF-8 file that grows by whole rows. A link at its path is replaced.

    Args:
        path: path of the file.
        start: text before the first row.
        separator: text between two rows.
        visible: whether the file has its name at once, so that other programs can follow it; otherwise it gets its name
            when it is closed, and replaces an existing file then.

    Raises:
        WriteError: the file cannot be created.
    """

    def __init__(self, path: Path, *, start: str = "", separator: str = "", visible: bool = False) -> None:
        self.path = path
        self._separator = separator
        with ExitStack() as stack, explain_write_errors(path):
            if visible:
                path.unlink(missing_ok=True)
            temporary = path if visible else stack.enter_context(replaced(path))
            self._file = stack.enter_context(temporary.open("xb", buffering=0))
            self._append(start)
            self._stack = stack.pop_all()
        self._start = self._file.tell()

    def write(self, row: str) -> None:
        """Append a row, all of it or nothing.

        Raises:
            WriteError: the disk is full.
        """
        end = self._file.tell()
        with explain_write_errors(self.path):
            try:
                self._append((self._separator if end > self._start else "") + row)
            except OSError:
                self._file.truncate(end)
                self._file.seek(end)
                raise

    def close(self, end: Callable[[], str] = str) -> None:
        """Append the end, close the file, and give it its name.

        Args:
            end: function that returns the end of the file.

        Raises:
            WriteError: there is a folder with this name, the disk is full, or `end` raised an OSError. The file is
                removed unless it is visible.
        """
        with explain_write_errors(self.path), self._stack:
            self._append(end())

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", errors="backslashreplace")
        while data:
            data = data[os.write(self._file.fileno(), data) :]
