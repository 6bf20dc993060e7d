"""Loggers for the metrics of a run: building them from the config, and the implementations for services.

To add a custom logger, set `train.loggers=[csv, package.module:function]`. The function takes a `RunStart` and returns
a `Logger`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from ..config import Config
from ..config.text import flatten, suggest
from ..errors import ConfigError, FCOSError
from ..extensions import load_function
from ..extras import import_package
from ..files import write_text
from .csv_logger import CSVLogger
from .logger_interface import Logger, RunStart


def build_loggers(start: RunStart) -> dict[str, Logger]:
    """Build the loggers listed in `train.loggers`, by name.

    Raises:
        ConfigError: a logger is unknown or cannot be started.
        OSError: the disk is full or not writable.
    """
    loggers: dict[str, Logger] = {}
    try:
        for name in dict.fromkeys(start.config.train.loggers):
            loggers[name] = _start_logger(name, start)
    except Exception:
        for logger in loggers.values():
            with suppress(Exception):  # report only the first error
                logger.close()
        raise
    return loggers


def _start_logger(name: str, start: RunStart) -> Logger:
    try:
        return _find_builder(name)(start)
    except (Exception, SystemExit) as error:  # a service or a user's function may raise anything
        if isinstance(error, FCOSError) or is_disk_error(error):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"train.loggers={name}: cannot start the logger: {type(error).__name__}: {reason}; fix this, or"
            " remove the logger"
        ) from error


def is_disk_error(error: BaseException) -> bool:
    """Return whether a file could not be written, for example on a full disk; False for lost connections."""
    return (
        isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
    )


def check_loggers(config: Config) -> None:
    """Check the loggers in `train.loggers`, before the run folder is created.

    Raises:
        ConfigError: a logger does not exist, or its package is missing.
    """
    for name in config.train.loggers:
        _find_builder(name)
        package = PACKAGES.get(name)
        if package is not None:
            _import_package(package, name)


def _find_builder(name: str) -> Callable[[RunStart], Logger]:
    option = f"train.loggers={name}"
    if ":" in name:
        return load_function(name, option=option)
    if name not in LOGGERS:
        names = ", ".join([*LOGGERS, "package.module:function"])
        raise ConfigError(f"{option}: no such logger{suggest(name, list(LOGGERS))}; known: {names}")
    return LOGGERS[name]


def _import_package(package: str, name: str) -> Any:
    try:
        return import_package(package)
    except ImportError as error:
        raise ConfigError(
            f"train.loggers={name}: its package cannot be imported ({error}); install it with:"
            f" pip install {_INSTALLS[name]}"
        ) from None


class TensorBoardLogger:
    """Logger that writes TensorBoard event files with torch's `SummaryWriter`.

    `SummaryWriter` writes in a thread, which dies if the disk is full. This logger keeps the values that may not have
    been written. As soon as the disk has room, a new writer writes them to another file.
    """

    def __init__(self, start: RunStart) -> None:
        self._folder = start.folder
        self._writer_threads: set[threading.Thread] = set()
        self._existing_threads: set[threading.Thread] | None = None  # set while a writer is being created
        self._pending: list[tuple[int, Mapping[str, float]]] = []
        self._previous_hook, threading.excepthook = threading.excepthook, self._on_thread_error
        try:
            self._writer: Any = self._open(purge_step=start.iteration + 1)  # discards the steps that will be repeated
        except OSError:
            threading.excepthook = self._previous_hook
            raise

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration, see `Logger.log`."""
        self._pending.append((step, values))
        if self._writer is None:
            self._writer = self._open()
        try:
            for iteration, row in self._pending:
                for name, value in row.items():
                    self._writer.add_scalar(name, value, iteration)
            self._writer.flush()
        except OSError:
            self._abandon()
            raise
        self._pending.clear()

    def close(self) -> None:
        """Close the writer and restore the previous exception hook."""
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            threading.excepthook = self._previous_hook

    def _open(self, **options: Any) -> Any:
        """Return a `SummaryWriter` with a new event file.

        Raises:
            OSError: the disk is full; the incomplete file is removed.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._existing_threads, existing = set(threading.enumerate()), set(self._folder.glob("events.*"))
        try:
            return SummaryWriter(str(self._folder), **options)
        except OSError:
            for file in set(self._folder.glob("events.*")) - existing:
                file.unlink(missing_ok=True)
            raise
        finally:
            self._writer_threads |= set(threading.enumerate()) - self._existing_threads
            self._existing_threads = None

    def _abandon(self) -> None:
        """Close and drop a writer whose thread has died."""
        writer, self._writer = self._writer, None
        with suppress(OSError):  # the error that ended the thread, again
            writer.close()

    def _on_thread_error(self, arguments: Any) -> None:
        """Suppress the traceback of the writer's thread; the next `log` raises its error again."""
        is_new = self._existing_threads is not None and arguments.thread not in self._existing_threads
        if not is_new and arguments.thread not in self._writer_threads:
            self._previous_hook(arguments)


class WandbLogger:
    """Logger for Weights & Biases. A resumed run also resumes in W&B.

    The project is WANDB_PROJECT, or `fcos` if it is not set. With WANDB_MODE=offline all data stays on this machine.
    """

    def __init__(self, start: RunStart) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb = _import_package("wandb", "wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fcos"),
            name=start.folder.name,
            dir=str(start.folder),
            config=start.config.to_dict(),
            id=_load_id(start, "wandb"),
            resume="allow",
        )
        _save_id(start, "wandb", self._run.id)
        self._start = start
        self._run.define_metric("*", step_metric="iteration")  # W&B's step cannot decrease, but a resumed run goes back

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration, see `Logger.log`."""
        self._run.log({"iteration": step, **values})

    def close(self) -> None:
        """Finish the W&B run, as failed if the run did not finish."""
        self._run.finish(exit_code=0 if _outcome(self._start) == "FINISHED" else 1)


class MLflowLogger:
    """Logger for MLflow. A resumed run also resumes in MLflow.

    The server is MLFLOW_TRACKING_URI, or MLflow's default if it is not set. The experiment is MLFLOW_EXPERIMENT_NAME,
    or `fcos` if it is not set.
    """

    def __init__(self, start: RunStart) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks training for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        _import_package("mlflow", "mlflow")
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # `RunLog` reports every error once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric, self._start = MlflowClient(), Metric, start
        run_id = _load_id(start, "mlflow")
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fcos")
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            run_id = self._client.create_run(number, run_name=start.folder.name).info.run_id
            options = flatten(start.config.to_dict())
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in options.items()]
            for start_index in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(run_id, params=params[start_index : start_index + _MOST_PARAMS])
            _save_id(start, "mlflow", run_id)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._id = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration, see `Logger.log`."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._metric(name, v, now, step) for name, v in values.items()])

    def close(self) -> None:
        """Set the status of the MLflow run to the outcome of the run."""
        self._client.set_terminated(self._id, status=_outcome(self._start))


_LONGEST_PARAM, _MOST_PARAMS = 500, 100  # MLflow's limits


def _outcome(start: RunStart) -> Literal["FINISHED", "KILLED", "FAILED"]:
    """Return the outcome of the run as an MLflow status."""
    error = start.error()
    return "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _load_id(start: RunStart, service: str) -> str | None:
    """Return the id that a service gave to the resumed run; None for a new run or if there is no id."""
    file = start.folder / f"{service}_id.txt"
    return file.read_text(encoding="utf-8").strip() if start.iteration and file.is_file() else None


def _save_id(start: RunStart, service: str, run_id: str) -> None:
    write_text(start.folder / f"{service}_id.txt", f"{run_id}\n")


LOGGERS: dict[str, Callable[[RunStart], Logger]] = {
    "csv": CSVLogger,
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MLflowLogger,
}
"""Built-in loggers by their names in `train.loggers`."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Additional packages that loggers require."""
_INSTALLS = {"wandb": "wandb", "mlflow": "mlflow-skinny sqlalchemy alembic"}
