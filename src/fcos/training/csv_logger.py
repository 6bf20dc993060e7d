"""Logger that writes metrics.csv, and the rows of it that a resumed run keeps."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from .logger_interface import RunStart

logger = logging.getLogger(__name__)


class CSVLogger:
    """Logger that writes metrics.csv.

    Each call of `log` adds a row with the columns iteration, epoch, minutes, split and one column per value name. A new
    name adds a column.
    """

    def __init__(self, start: RunStart) -> None:
        self._path = start.folder / "metrics.csv"
        rows = _rows_to_keep(self._path, start)
        self._pending: list[dict[str, str]] = []
        self._file: TextIO | None = None
        self._open(list(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)])), rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration, see `Logger.log`."""
        row = {"iteration": str(step)}
        for key, value in values.items():
            row["split"], _, name = key.partition("/")
            row[name] = f"{value:.6g}"
        self._pending.append(row)
        assert self._file is not None
        new_columns = [name for row in self._pending for name in row if name not in self._columns]
        if new_columns:
            self._file.flush()
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._open(list(dict.fromkeys([*self._columns, *new_columns])), rows)
        while self._pending:
            self._writer.writerow(self._pending[0])  # if the disk is full, the row stays in the file's buffer
            self._pending.pop(0)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Rewrite the file with these columns and rows, and open it for appending."""
        temporary = self._path.with_suffix(".new")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(rows)
            temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()  # its buffer has already been flushed
        self._columns = columns
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, restval="")


_FIRST_COLUMNS = ("iteration", "epoch", "minutes", "split")


def _rows_to_keep(path: Path, start: RunStart) -> list[dict[str, str]]:
    """Return the rows of metrics.csv that a resumed run keeps: those whose iterations it does not repeat."""
    if not path.exists():
        return []
    rows = _read_rows(path)
    if rows is None:
        renamed = path.with_name("metrics.old.csv")
        path.replace(renamed)
        logger.warning("warning: %s: not a table with the columns iteration and split; renamed to %s", path, renamed)
        return []
    limits = {"train": start.logged_iteration, "val": start.iteration}
    kept = [
        row
        for row in rows
        if _NUMBER.fullmatch(row["iteration"]) and int(row["iteration"]) <= limits.get(row["split"], -1)
    ]
    repeated = [row for row in kept if row["split"] == "val"][start.evaluations :]  # killed before the checkpoint save
    return [row for row in kept if row not in repeated]


def _read_rows(path: Path) -> list[dict[str, str]] | None:
    """Return the complete rows of a table of ours, or None if the file is something else, edited or damaged."""
    if not path.is_file():  # a folder, or a device that never ends
        return None
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values() and None not in row]  # the last may be truncated
            is_ours = {"iteration", "split"} <= set(reader.fieldnames or ("iteration", "split"))
    except csv.Error:
        return None
    return rows if is_ours else None


_NUMBER = re.compile(r"[0-9]{1,18}")
