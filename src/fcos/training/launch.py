"""Training on several devices of this machine (`train.devices`), with torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ..config import Config
from ..distributed import resolve_device
from ..errors import ConfigError, TrainingError
from ..interop.checkpoints import load_checkpoint
from .folder import BEST, CONFIG, LAST, find_folder, new_folder
from .loop import TrainResult

EXIT_CODE_REPORTED = 2
"""Exit code of a process that has printed its own error message."""
SHUTDOWN_SECONDS = 30
"""Seconds after a failure or signal until processes that are still running are killed."""


def processes_to_start(config: Config) -> int:
    """Return the number of processes to start for `train.devices`; 1 if this process trains itself.

    Raises:
        ConfigError: `train.devices` exceeds the number of GPUs or of images in a batch, or torchrun has already started
            a different number of processes.
    """
    count, started = config.train.devices, os.environ.get("WORLD_SIZE")
    if count is None or started is not None:
        if count is not None and started != str(count):
            raise ConfigError(
                f"train.devices={count}: torchrun has started {started} processes; set train.devices=null, because"
                " this option is only for runs without torchrun"
            )
        return 1
    if count == 1:
        return 1
    if count > config.train.batch_size:
        raise ConfigError(
            f"train.devices={count}: expected at least one image per process, found"
            f" train.batch_size={config.train.batch_size}; use a larger batch, or fewer processes"
        )
    device = resolve_device(config.device)
    num_devices = torch.cuda.device_count() if device.type == "cuda" and config.device in ("auto", "cuda") else 1
    if device.type != "cpu" and count > num_devices:
        raise ConfigError(
            f"train.devices={count}: expected at most {num_devices} with device={config.device} on this machine; use"
            f" train.devices={num_devices}, or device=cpu"
        )
    return count


def launch(config: Config, name: str, processes: int) -> TrainResult:
    """Train in several processes, each of which runs `fcos train` on a temporary copy of the config.

    Args:
        config: config of the whole run.
        name: name of the run, see `loop.train`.
        processes: number of processes, see `processes_to_start`.

    Raises:
        ConfigError: the run folder cannot be used, see `folder.find_folder`.
        TrainingError: a process failed or was killed, and the others were stopped. `told` is True if the process has
            already printed its error message.
        KeyboardInterrupt: Ctrl-C or SIGTERM; weights/last.pt holds the last step.
    """
    chosen_folder = find_folder(config, name) or config.output_dir
    folder = chosen_folder or new_folder(config, name)
    has_timeout = any(field.name == "shutdown_timeout" for field in fields(LaunchConfig))  # torch 2.11 lacks it
    shutdown: dict[str, Any] = {"shutdown_timeout": SHUTDOWN_SECONDS} if has_timeout else {}
    try:
        with tempfile.TemporaryDirectory() as temporary_folder, _launch_environment(processes):
            settings = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=temporary_folder),  # otherwise torch leaves a folder in /tmp
                **shutdown,
            )
            file = Path(temporary_folder) / f"{name}.yaml"
            file.write_text(config.model_copy(update={"output_dir": folder}).to_yaml(), encoding="utf-8")
            elastic_launch(settings, sys.executable)("-m", "fcos", "train", str(file))
    except ChildFailedError as error:
        raise _build_error(error.failures, folder) from None
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        if chosen_folder is None:
            with suppress(OSError):  # a failed start must not leave an empty folder
                (folder / LAST).parent.rmdir()
                folder.rmdir()
    return TrainResult(folder, load_checkpoint(folder / BEST).metrics)


def _build_error(failures: dict[int, ProcessFailure], folder: Path) -> TrainingError:
    """Return an error that names the failed process and its exit; `told` is True if it has printed its own message."""
    number, failure = min(failures.items(), key=lambda item: (_cause_order(item[1].exitcode), item[1].timestamp))
    if failure.exitcode < 0:
        exit_reason = f"was terminated by {failure.signal_name()}"
        if failure.signal_name() == "SIGKILL":
            exit_reason += ", possibly because the system ran out of memory"
    else:
        exit_reason = f"ended with exit code {failure.exitcode}"
    command = f"fcos train {shlex.quote(str(folder / CONFIG))} train.resume=true"
    error = TrainingError(f"process {number} {exit_reason}; the other processes were stopped; continue with: {command}")
    error.told = failure.exitcode == EXIT_CODE_REPORTED
    return error


def _cause_order(exitcode: int) -> int:
    """Return a sort key by exit code: processes with lower keys are more likely the cause than a consequence."""
    if exitcode == -signal.SIGTERM:  # sent by the launcher to the other processes
        return 3
    return 2 if exitcode == EXIT_CODE_REPORTED else 1 if exitcode > 0 else 0


@contextmanager
def _launch_environment(processes: int) -> Iterator[None]:
    """Prepare this process for the launcher, and restore its environment variables and signal handlers afterwards.

    The started processes get the module search path and an equal share of the CPU threads of this process. The
    launcher's logging is disabled.
    """
    threads = str(max(1, torch.get_num_threads() // processes))
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    previous = {key: os.environ.get(key) for key in variables}
    # Only the main thread may set signal handlers.
    is_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _HANDLED_SIGNALS} if is_main_thread else {}
    os.environ.update(variables)
    logging.disable(logging.ERROR)  # `_build_error` reports the failures instead
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for key, value in previous.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


_HANDLED_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
