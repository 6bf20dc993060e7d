"""User-defined loggers for `train.loggers=[own_logger:FUNCTION]`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fcos.training.loggers import RunStart


class Lines:
    """Logger that appends one JSON line per call to RUN/lines.json."""

    def __init__(self, start: RunStart) -> None:
        self.file = (start.folder / "lines.json").open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        self.file.close()


class Unreachable:
    """Logger that fails on construction."""

    def __init__(self, start: RunStart) -> None:
        raise RuntimeError(f"no server\nfor {start.folder.name}")


class Disconnected(Lines):
    """Logger that has lost the connection to its server."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")


class Careless:
    """Logger that modifies its arguments and has no `close`."""

    def __init__(self, start: RunStart) -> None:
        pass

    def log(self, step: int, values: Mapping[str, float]) -> None:
        values.clear()  # pyright: ignore[reportAttributeAccessIssue]


class Leaving(Lines):
    """Logger that exits the program."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise SystemExit(3)


class Failing(Lines):
    """Logger that fails from the second call on."""

    calls = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise KeyError("no connection")
        super().log(step, values)


class NotClosing:
    """Raises an error when it is closed."""

    def __init__(self, start: RunStart) -> None:
        self.folder = start.folder

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the values."""

    def close(self) -> None:
        raise RuntimeError(f"cannot close {self.folder}")


class Outcome:
    """Writes the name of the exception that ended the run."""

    def __init__(self, start: RunStart) -> None:
        self.start = start

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the values."""

    def close(self) -> None:
        (self.start.folder / "outcome.txt").write_text(type(self.start.error()).__name__)
