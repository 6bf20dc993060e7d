"""Loggers for the numbers of a run: one small interface, and the table of its implementations.

A logger of your own is `train.loggers=[csv, package.module:function]`; the function gets a `RunStart` and returns a
`Logger`.
"""

from __future__ import annotations

import csv
import importlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TextIO

from ..config import Config
from ..config.text import flatten, suggest
from ..errors import ConfigError, FCOSError
from ..extensions import load_function
from .folder import write_text

logger = logging.getLogger(__name__)


class Logger(Protocol):
    """Takes the numbers of a run, in rank 0 only."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of an iteration.

        Args:
            step: the iteration, from 1.
            values: by `train/NAME` (means over the last `train.log_every` iterations) or `val/NAME` (an evaluation).

        Raises:
            OSError: with an `errno`: a file cannot be written now. The logger keeps the values for the next call. After
                any other exception it is closed and gets no more values.
        """
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class RunStart(NamedTuple):
    """The run as a logger sees it at its start.

    Attributes:
        folder: of the run; a continued run finds there what it wrote before.
        config: resolved.
        iteration: at which the run starts or continues; what earlier files have of later iterations is done again.
        logged_iteration: up to which training has been logged; it can lie before `iteration`.
        evaluations: the number of evaluations that were logged.
        error: returns, when the logger is closed, the exception that ended the run or its logging; None: the run is
            finished.
    """

    folder: Path
    config: Config
    iteration: int = 0
    logged_iteration: int = 0
    evaluations: int = 0
    error: Callable[[], BaseException | None] = lambda: None


def build_loggers(start: RunStart) -> dict[str, Logger]:
    """The loggers that `train.loggers` names, by their names.

    Raises:
        ConfigError: one cannot be started; see also `check_loggers`.
        OSError: the disk is full or not writable.
    """
    loggers: dict[str, Logger] = {}
    try:
        for name in dict.fromkeys(start.config.train.loggers):
            loggers[name] = _start(name, start)
    except Exception:
        for logger in loggers.values():
            with suppress(Exception):  # the first problem is the one to report
                logger.close()
        raise
    return loggers


def _start(name: str, start: RunStart) -> Logger:
    try:
        return _builder(name)(start)
    except (Exception, SystemExit) as error:  # of a service or a user's own function
        if isinstance(error, FCOSError) or is_disk_error(error):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"train.loggers={name}: cannot be started: {type(error).__name__}: {reason}; fix that, or leave the"
            " logger out"
        ) from error


def is_disk_error(error: BaseException) -> bool:
    """Whether a file could not be written, as on a full disk; a lost connection is another matter."""
    return (
        isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
    )


def check_loggers(config: Config) -> None:
    """Refuse loggers that do not exist or whose package is missing, before the run has a folder.

    Raises:
        ConfigError: there is one.
    """
    for name in config.train.loggers:
        _builder(name)
        package = PACKAGES.get(name)
        if package is not None:
            _import(package, name)


def _builder(name: str) -> Callable[[RunStart], Logger]:
    option = f"train.loggers={name}"
    if ":" in name:
        return load_function(name, option=option)
    if name not in LOGGERS:
        known = ", ".join([*LOGGERS, "package.module:function"])
        raise ConfigError(f"{option}: no such logger{suggest(name, list(LOGGERS))}; known: {known}")
    return LOGGERS[name]


def _import(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        install = f'pip install "fcos-vision[{name}]"'
        raise ConfigError(f"train.loggers={name}: its package cannot be imported ({error}); {install}") from None


class CSVLogger:
    """Writes metrics.csv: a row for each call, with the columns iteration, epoch, minutes, split and one for each name.

    A name that is new adds a column.
    """

    def __init__(self, start: RunStart) -> None:
        self._path = start.folder / "metrics.csv"
        rows = _rows_to_keep(self._path, start)
        self._waiting: list[dict[str, str]] = []
        self._file: TextIO | None = None
        self._open(list(dict.fromkeys([*_FIRST_COLUMNS, *(name for row in rows for name in row)])), rows)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        row = {"iteration": str(step)}
        for key, value in values.items():
            row["split"], _, name = key.partition("/")
            row[name] = f"{value:.6g}"
        self._waiting.append(row)
        assert self._file is not None
        new = [name for row in self._waiting for name in row if name not in self._columns]
        if new:
            self._file.flush()
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._open(list(dict.fromkeys([*self._columns, *new])), rows)
        while self._waiting:
            self._writer.writerow(self._waiting[0])  # what does not fit on the disk stays in the file's buffer
            self._waiting.pop(0)
        self._file.flush()

    def close(self) -> None:
        """See `Logger.close`."""
        if self._file is not None:
            self._file.close()

    def _open(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        """Write the file anew with these columns and rows, and open it behind them."""
        new = self._path.with_suffix(".new")
        try:
            with new.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(rows)
            new.replace(self._path)
        finally:
            new.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()  # empty-handed: what it held has been flushed
        self._columns = columns
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, columns, restval="")


_FIRST_COLUMNS = ("iteration", "epoch", "minutes", "split")


def _rows_to_keep(path: Path, start: RunStart) -> list[dict[str, str]]:
    """The rows of metrics.csv that a continued run does not do again."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row.values() and None not in row]  # the last may be cut short
        is_ours = {"iteration", "split"} <= set(reader.fieldnames or ("iteration", "split"))
    if not is_ours:
        other = path.with_name("metrics.old.csv")
        path.replace(other)
        logger.warning("warning: %s: has no columns iteration and split; kept as %s", path, other)
        return []
    limits = {"train": start.logged_iteration, "val": start.iteration}
    kept = [
        row
        for row in rows
        if row.get("iteration", "").isdecimal() and int(row["iteration"]) <= limits.get(row.get("split", ""), -1)
    ]
    again = [row for row in kept if row["split"] == "val"][start.evaluations :]  # killed between the row and the saving
    return [row for row in kept if row not in again]


class TensorBoardLogger:
    """Writes TensorBoard's event files with torch's `SummaryWriter`.

    That writer has a thread, which dies on a full disk. Values that it may not have written are kept, and a new writer
    writes them to another file when there is room.
    """

    def __init__(self, start: RunStart) -> None:
        self._folder = start.folder
        self._threads: set[threading.Thread] = set()
        self._others: set[threading.Thread] | None = None  # while a writer is made, the threads that are not its own
        self._waiting: list[tuple[int, Mapping[str, float]]] = []
        self._previous_hook, threading.excepthook = threading.excepthook, self._on_thread_error
        try:
            self._writer: Any = self._open(purge_step=start.iteration + 1)  # forgets the steps that are done again
        except OSError:
            threading.excepthook = self._previous_hook
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        self._waiting.append((step, values))
        if self._writer is None:
            self._writer = self._open()
        try:
            for waiting, row in self._waiting:
                for name, value in row.items():
                    self._writer.add_scalar(name, value, waiting)
            self._writer.flush()
        except OSError:
            self._abandon()
            raise
        self._waiting.clear()

    def close(self) -> None:
        """See `Logger.close`."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            threading.excepthook = self._previous_hook

    def _open(self, **options: Any) -> Any:
        """A writer of a new file.

        Raises:
            OSError: the disk is full; then there is no new file.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._others, files = set(threading.enumerate()), set(self._folder.glob("events.*"))
        try:
            return SummaryWriter(str(self._folder), **options)
        except OSError:
            for file in set(self._folder.glob("events.*")) - files:
                file.unlink(missing_ok=True)
            raise
        finally:
            self._threads |= set(threading.enumerate()) - self._others
            self._others = None

    def _abandon(self) -> None:
        """Let go of a writer whose thread is dead."""
        writer, self._writer = self._writer, None
        with suppress(OSError):  # the same that ended the thread
            writer.close()

    def _on_thread_error(self, arguments: Any) -> None:
        """Print no traceback of the writer's thread: its error is raised again where the next value is logged."""
        is_new = self._others is not None and arguments.thread not in self._others
        if not is_new and arguments.thread not in self._threads:
            self._previous_hook(arguments)


class WandbLogger:
    """Logs to Weights & Biases. A continued run continues there, too.

    The project is WANDB_PROJECT, else `fcos`; WANDB_MODE=offline keeps everything on this machine.
    """

    def __init__(self, start: RunStart) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = _import("wandb", "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fcos"),
            name=start.folder.name,
            dir=str(start.folder),
            config=start.config.to_dict(),
            id=_earlier_id(start, "wandb"),
            resume="allow",
        )
        _keep_id(start, "wandb", self._run.id)
        self._start = start
        self._run.define_metric("*", step_metric="iteration")  # W&B's own step never goes back, as a resumed run does

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        self._run.log({"iteration": step, **values})

    def close(self) -> None:
        """See `Logger.close`."""
        self._run.finish(exit_code=0 if _outcome(self._start) == "FINISHED" else 1)


class MLflowLogger:
    """Logs to MLflow: to MLFLOW_TRACKING_URI, else where MLflow does by itself. A continued run continues there, too.

    The experiment is MLFLOW_EXPERIMENT_NAME, else `fcos`.
    """

    def __init__(self, start: RunStart) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 keep a training waiting for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        _import("mlflow", "mlflow")
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric, self._start = MlflowClient(), Metric, start
        known = _earlier_id(start, "mlflow")
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fcos")
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            known = self._client.create_run(number, run_name=start.folder.name).info.run_id
            options = flatten(start.config.to_dict())
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in options.items()]
            for first in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(known, params=params[first : first + _MOST_PARAMS])
            _keep_id(start, "mlflow", known)
        else:
            self._client.update_run(known, status="RUNNING")
        self._id = known

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in values.items()])

    def close(self) -> None:
        """See `Logger.close`."""
        self._client.set_terminated(self._id, status=_outcome(self._start))


_LONGEST_PARAM, _MOST_PARAMS = 500, 100  # MLflow's limits


def _outcome(start: RunStart) -> Literal["FINISHED", "KILLED", "FAILED"]:
    """How the run ended, in MLflow's words."""
    error = start.error()
    return "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _earlier_id(start: RunStart, service: str) -> str | None:
    """The id under which a service knows the run that is continued."""
    file = start.folder / f"{service}_id.txt"
    return file.read_text(encoding="utf-8").strip() if start.iteration and file.is_file() else None


def _keep_id(start: RunStart, service: str, known: str) -> None:
    write_text(start.folder / f"{service}_id.txt", f"{known}\n")


LOGGERS: dict[str, Callable[[RunStart], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}
"""All loggers by their names in `train.loggers`."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""The packages that loggers need beside our own dependencies; the extras are named like the loggers."""
