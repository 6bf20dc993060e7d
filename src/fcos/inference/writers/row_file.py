"""Text file that grows by whole rows, so that it stays valid if the disk is full or the program is interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...files import explain_write_errors, temporary_path
from .interface import OpenFiles, refuse_folder


class RowFile:
    """UTF-8 file that grows by whole rows. It replaces an existing file or link when it gets its name.

    Args:
        path: path of the file.
        files: files of the run, to which it is added.
        start: text before the first row.
        end: function that returns the text after the last row.
        separator: text between two rows.
        visible: whether the file gets its name with its first row, so that other programs can follow it; otherwise it
            gets its name when it is complete, or is removed if its end cannot be written.

    Raises:
        WriteError: the file cannot be created.
    """

    def __init__(
        self,
        path: Path,
        files: OpenFiles,
        *,
        start: str = "",
        end: Callable[[], str] = str,
        separator: str = "",
        visible: bool = False,
    ) -> None:
        self.path = path
        self._separator, self._end, self._is_visible = separator, end, visible
        with explain_write_errors(path):
            refuse_folder(path)
            self._temporary: Path | None = files.cleanup.enter_context(temporary_path(path))
            self._file = self._temporary.open("xb", buffering=0)
            files.cleanup.callback(self._close)
            self._append(start)
        self._start = self._file.tell()
        files.completion.callback(self._complete)

    def write(self, row: str) -> None:
        """Append a row, all of it or nothing.

        Raises:
            WriteError: the disk is full.
        """
        with explain_write_errors(self.path):
            if self._is_visible:
                self._publish()
            end = self._file.tell()
            try:
                self._append((self._separator if end > self._start else "") + row)
            except OSError:
                self._file.truncate(end)
                self._file.seek(end)
                raise

    def _complete(self) -> None:
        with explain_write_errors(self.path):
            self._append(self._end())
            self._publish()

    def _publish(self) -> None:
        """Give the file its name, unless it has it."""
        if self._temporary is None:
            return
        self._file.close()  # Windows renames closed files only
        self._temporary.replace(self.path)
        self._temporary = None
        self._file = self.path.open("ab", buffering=0)

    def _close(self) -> None:
        self._file.close()

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", errors="backslashreplace")
        while data:
            data = data[os.write(self._file.fileno(), data) :]
