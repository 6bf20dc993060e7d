"""Interface between a run and its loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from ..config import Config


class Logger(Protocol):
    """Interface for loggers, which run on rank 0 only."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration.

        Args:
            step: iteration, from 1.
            values: values by name, `train/NAME` (means over the last `train.log_every` iterations) or `val/NAME`
                (metrics of an evaluation).

        Raises:
            OSError: a file cannot be written at the moment (`errno` is set); the logger must keep the values until the
                next call. After any other exception the logger is closed and not called again.
        """
        ...

    def close(self) -> None:
        """Write all remaining values and close the logger."""
        ...


class RunStart(NamedTuple):
    """Information about a new or resumed run for its loggers.

    Attributes:
        folder: run folder; for a resumed run it holds the files that were logged before.
        config: resolved config.
        iteration: number of finished iterations at the start. Values already logged for later iterations are obsolete,
            because these iterations are repeated.
        logged_iteration: last iteration in the training rows logged so far; may be less than `iteration`.
        evaluations: number of evaluations logged so far.
        error: function that `Logger.close` can call for the exception that ended the run or this logger; it returns
            None if the run has finished.
    """

    folder: Path
    config: Config
    iteration: int = 0
    logged_iteration: int = 0
    evaluations: int = 0
    error: Callable[[], BaseException | None] = lambda: None
