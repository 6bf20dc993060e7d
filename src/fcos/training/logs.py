"""Log of a run: rows of values for the loggers, and progress on the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..config import Config
from ..distributed import on_all_ranks, rank
from ..evaluation.results import headline_metrics
from ..files import describe_write_error, explain_write_errors
from ..formatting import printable_lines
from .loggers import Logger, RunStart, build_loggers, is_disk_error

PLAIN_OUTPUT_SECONDS = 5.0
"""Minimum seconds between progress lines if the output is not a terminal."""
MAX_SILENT_SECONDS = 30.0
"""Seconds without output after which a step or an evaluated batch prints a progress line of its own."""


class TrainingProgress(NamedTuple):
    """Progress of a run.

    Attributes:
        iteration: number of finished steps.
        epoch: number of finished passes over the training data, fractional.
        minutes: minutes since the start of the run, excluding the time between a stop and a resume.
        fraction: finished fraction of the run, 0..1.
    """

    iteration: int
    epoch: float
    minutes: float
    fraction: float


class StepResult(NamedTuple):
    """Result of a training step, the same on all processes.

    Attributes:
        losses: loss terms by name, averaged over the processes.
        grad_norm: gradient norm before clipping.
        boxes: number of ground-truth boxes in the batch, over all processes.
        stats: counts of these boxes by name, see `Losses.stats`.
        stop: True if any process was asked to stop.
        skipped: reason why a non-finite step was skipped; empty otherwise.
    """

    losses: dict[str, float]
    grad_norm: float
    boxes: int
    stats: dict[str, int]
    stop: bool
    skipped: str = ""


class Step(NamedTuple):
    """A finished training step with its timing.

    Attributes:
        result: losses and counts.
        lr: learning rate `train.lr` after schedule and warm-up, before multipliers such as `bias_lr_factor`.
        seconds: duration of the step in seconds.
        waited: part of `seconds` spent waiting for data.
    """

    result: StepResult
    lr: float
    seconds: float
    waited: float


class RunLog:
    """Context manager that writes averaged values to the loggers and shows the progress of the run.

    Only rank 0 writes and prints.

    Args:
        folder: run folder.
        config: config of the run; `train.log_every` is the number of steps per row.
        iteration: number of finished iterations; rows already logged for later iterations are obsolete.
        evaluations: number of finished evaluations, each of which has a row.
        steps: list for the steps not yet summarised in a row, shared with the caller; for a resumed run it holds those
            of the checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        iteration: int = 0,
        evaluations: int = 0,
        steps: list[tuple[TrainingProgress, Step]] | None = None,
    ) -> None:
        self.enabled = rank() == 0
        self._every, self._batch_size = config.train.log_every, config.train.batch_size
        self._best_metric = config.train.best_metric
        self._console = Console(highlight=False, soft_wrap=True)
        self._steps = steps if steps is not None and self.enabled else []
        self._first_step: tuple[float, float] | None = None  # time and fraction at the first step
        self._printed_at = time.monotonic()
        self._bar = ProgressBar(total=1.0, width=40)
        self._status = Text("starting")
        display = Table.grid()
        display.add_row(self._bar)
        display.add_row(self._status)
        self._live = Live(display, console=self._console, transient=True, refresh_per_second=4)
        self._folder = folder
        self._warned: set[str] = set()  # loggers with a reported disk error
        self._error: BaseException | None = None
        start = RunStart(
            folder, config, iteration, iteration - len(self._steps), evaluations, error=lambda: self._error
        )
        self._loggers: dict[str, Logger] = on_all_ranks(lambda: _build_loggers(start) if self.enabled else {})

    def __enter__(self) -> RunLog:
        if self.enabled and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._error = error
        if self.enabled:
            self.sum_up()
            self._live.stop()
            for name, logger in list(self._loggers.items()):
                self._call(name, lambda logger=logger: logger.close())

    def message(self, text: str) -> None:
        """Print a message, above the progress bar if it is shown."""
        if self.enabled:
            self._console.print(printable_lines(text), markup=False)

    def step(self, progress: TrainingProgress, step: Step) -> None:
        """Add a training step. A row is written every `log_every` iterations and once more at the end."""
        if not self.enabled:
            return
        if self._steps and _names(self._steps[-1][1].result) != _names(step.result):
            self.sum_up()  # the steps of the checkpoint have other losses, for example those of another version
        self._steps.append((progress, step))
        self._first_step = self._first_step or (time.monotonic(), progress.fraction)
        self._bar.update(progress.fraction)
        if progress.iteration % self._every == 0:
            self.sum_up()
        elif self._is_silent():
            self._show(progress, self._row())
        if step.result.skipped:
            self.message(f"warning: step skipped: {step.result.skipped}")

    def sum_up(self) -> None:
        """Write a row that summarises the steps since the last row, if there are any."""
        if not self._steps:
            return
        progress, row = self._steps[-1][0], self._row()
        self._steps.clear()
        self._write("train", progress, row)
        self._show(progress, row)

    def _row(self) -> dict[str, float]:
        """Return the means over the steps since the last row."""
        steps = [step for _, step in self._steps]
        results = [step.result for step in steps]
        losses = {name: sum(s.losses[name] for s in results) / len(steps) for name in results[-1].losses}
        seconds = max(sum(step.seconds for step in steps), 1e-9)
        row = {
            "loss": sum(losses.values()),
            **losses,
            "lr": steps[-1].lr,
            "images_per_second": len(steps) * self._batch_size / seconds,
            "data_share": sum(step.waited for step in steps) / seconds,
            **_stat_fractions(results),
            "grad_norm": results[-1].grad_norm,
        }
        if torch.cuda.is_available():
            row["memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        return row

    def evaluating(self, done: int, total: int) -> None:
        """Show the progress of an evaluation as `done` of `total` images."""
        self._status.plain = f"evaluating {done}/{total}"
        if self.enabled and self._is_silent():
            self._print_line(self._status.plain)

    def evaluation(self, progress: TrainingProgress, metrics: Mapping[str, float]) -> None:
        """Write a row of evaluation metrics, and print the main ones."""
        if not self.enabled:
            return
        self._write("val", progress, metrics)
        names = headline_metrics(metrics, self._best_metric)
        values = "  ".join(f"{name} {metrics[name]:.3f}" for name in names)
        self.message(f"val at iteration {progress.iteration}: {values}")

    def _write(self, split: str, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        values = {"epoch": progress.epoch, "minutes": progress.minutes, **row}
        prefixed = {f"{split}/{name}": value for name, value in values.items()}
        for name, logger in list(self._loggers.items()):
            self._call(name, lambda logger=logger: logger.log(progress.iteration, dict(prefixed)))

    def _call(self, name: str, function: Callable[[], None]) -> None:
        """Call a logger; an exception does not end the run.

        After a disk error, such as a full disk, the logger stays and can write its values later. After any other
        exception it is closed and removed.
        """
        try:
            function()
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and is_disk_error(error):
                if name not in self._warned:
                    self._warned.add(name)
                    self.message(f"warning: {self._folder}: {name}: not saved: {describe_write_error(error)}")
                return
            logger = self._loggers.pop(name)
            # close() of this logger reports its own failure; the other loggers keep the outcome of the run.
            run_error, self._error = self._error, error
            with suppress(Exception, SystemExit):  # the same error again
                logger.close()
            self._error = run_error
            self.message(f"warning: the logger {name} failed and was closed: {type(error).__name__}: {error}")

    def _show(self, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        now = time.monotonic()
        start_time, start_fraction = self._first_step or (now, progress.fraction)
        fraction_done = progress.fraction - start_fraction
        eta = _duration((now - start_time) * (1 - progress.fraction) / fraction_done) if fraction_done > 0 else "?"
        terms = "  ".join(f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name.startswith("loss_"))
        line = (
            f"{progress.fraction:4.0%}  iteration {progress.iteration}  loss {row['loss']:.3f} ({terms})"
            f"  lr {row['lr']:.2e}  {row['images_per_second']:.1f} images/s  data {row['data_share']:.0%}  ETA {eta}"
        )
        self._status.plain = line
        if not self._console.is_terminal and now - self._printed_at >= PLAIN_OUTPUT_SECONDS:
            self._print_line(line)

    def _is_silent(self) -> bool:
        """Return whether the output is not a terminal and nothing was printed to it for a long time."""
        return not self._console.is_terminal and time.monotonic() - self._printed_at >= MAX_SILENT_SECONDS

    def _print_line(self, line: str) -> None:
        self._printed_at = time.monotonic()
        self.message(line)


def _build_loggers(start: RunStart) -> dict[str, Logger]:
    with explain_write_errors(start.folder):
        return build_loggers(start)


def _names(result: StepResult) -> list[str]:
    return [*result.losses, *result.stats]


def _stat_fractions(results: Sequence[StepResult]) -> dict[str, float]:
    """Return each statistic of `StepResult.stats` as a fraction of all ground-truth boxes."""
    boxes = max(sum(step.boxes for step in results), 1)
    return {f"{name}_share": sum(step.stats[name] for step in results) / boxes for name in results[-1].stats}


def _duration(seconds: float) -> str:
    minutes, remaining_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remaining_seconds:02}" if hours else f"{minutes}:{remaining_seconds:02}"
