"""The log of a run: rows of numbers to its loggers, progress on the terminal."""

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
from .folder import names_folder
from .loggers import Logger, RunStart, build_loggers, is_disk_error

PLAIN_SECONDS = 5.0
"""Where the output is no terminal, lines come no faster than this."""


class TrainingProgress(NamedTuple):
    """Where a run stands: steps done, epochs done, minutes since its start without pauses, share done (0..1)."""

    iteration: int
    epoch: float
    minutes: float
    fraction: float


class StepResult(NamedTuple):
    """What all processes know after a step: the mean of the loss terms, sums of the rest.

    Attributes:
        losses: the loss terms.
        grad_norm: of the gradients, before clipping.
        boxes: in the batch.
        stats: counts of boxes, see `Losses.stats`.
        stop: one of the processes was asked to stop.
        skipped: why the weights were left as they are; empty when they have learned.
    """

    losses: dict[str, float]
    grad_norm: float
    boxes: int
    stats: dict[str, int]
    stop: bool
    skipped: str = ""


class Step(NamedTuple):
    """What a training step was like.

    Attributes:
        result: its losses and counts.
        lr: the rate in force for weights.
        seconds: it took.
        waited: seconds of them, for data.
    """

    result: StepResult
    lr: float
    seconds: float
    waited: float


class RunLog:
    """Writes rows of means and shows how far the run is.

    Rank 0 does; the others say nothing.

    Args:
        folder: of the run.
        config: reads `train.log_every`, the steps that a row sums up, `train.batch_size` and `train.best_metric`.
        iteration: where a continued run stands; rows beyond it belong to steps that will be done again.
        evaluations: done so far, each with a row.
        steps: where the steps are kept that no row sums up yet; those of a continued run are in it.
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
        self._began: tuple[float, float] | None = None  # time and fraction at the first step
        self._printed = time.monotonic()
        self._bar = ProgressBar(total=1.0, width=40)
        self._status = Text("starting")
        display = Table.grid()
        display.add_row(self._bar)
        display.add_row(self._status)
        self._live = Live(display, console=self._console, transient=True, refresh_per_second=4)
        self._folder = folder
        self._warned: set[str] = set()  # the loggers of whose full disk the user was warned
        self._error: BaseException | None = None
        start = RunStart(
            folder, config, iteration, iteration - len(self._steps), evaluations, error=lambda: self._error
        )
        self._loggers: dict[str, Logger] = on_all_ranks(lambda: _started(start) if self.enabled else {})

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
        """Print a line, above the progress bar if there is one."""
        if self.enabled:
            self._console.print(text, markup=False)

    def step(self, progress: TrainingProgress, step: Step) -> None:
        """Take in a training step; every `log_every` of them make a row, and what remains at the end."""
        if not self.enabled:
            return
        self._steps.append((progress, step))
        self._began = self._began or (time.monotonic(), progress.fraction)
        self._bar.update(progress.fraction)
        if progress.iteration % self._every == 0:
            self.sum_up()
        if step.result.skipped:
            self.message(f"warning: step skipped: {step.result.skipped}")

    def sum_up(self) -> None:
        """Make a row of the steps since the last one, if there are any."""
        if not self._steps:
            return
        progresses, steps = zip(*self._steps, strict=True)
        self._steps.clear()
        progress: TrainingProgress = progresses[-1]
        results: list[StepResult] = [step.result for step in steps]
        losses = {name: sum(s.losses[name] for s in results) / len(steps) for name in results[-1].losses}
        seconds = max(sum(step.seconds for step in steps), 1e-9)
        row = {
            "loss": sum(losses.values()),
            **losses,
            "lr": steps[-1].lr,
            "images_per_second": len(steps) * self._batch_size / seconds,
            "data_share": sum(step.waited for step in steps) / seconds,
            **_shares(results),
            "grad_norm": results[-1].grad_norm,
        }
        if torch.cuda.is_available():
            row["memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        self._write("train", progress, row)
        self._show(progress, row)

    def evaluating(self, done: int, total: int) -> None:
        """Show how far an evaluation is, in images."""
        self._status.plain = f"evaluating {done}/{total}"

    def evaluation(self, progress: TrainingProgress, metrics: Mapping[str, float]) -> None:
        """Write a row of evaluation figures."""
        if not self.enabled:
            return
        self._write("val", progress, metrics)
        shown = headline_metrics(metrics, self._best_metric)
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown)
        self.message(f"val at iteration {progress.iteration}: {figures}")

    def _write(self, split: str, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        values = {"epoch": progress.epoch, "minutes": progress.minutes, **row}
        named = {f"{split}/{name}": value for name, value in values.items()}
        for name, logger in list(self._loggers.items()):
            self._call(name, lambda logger=logger: logger.log(progress.iteration, dict(named)))

    def _call(self, name: str, function: Callable[[], None]) -> None:
        """Call a logger, whose failure does not end a training.

        After a full disk it writes the values with the next ones; any other error is its last.
        """
        try:
            function()
        except (Exception, SystemExit) as error:
            if is_disk_error(error):
                if name not in self._warned:
                    self._warned.add(name)
                    self.message(f"warning: {self._folder}: {name}: not saved: {error}; make room")
                return
            logger = self._loggers.pop(name)
            self._error = error
            with suppress(Exception, SystemExit):  # the same once more
                logger.close()
            self._error = None
            self.message(f"warning: the logger {name} failed and gets no more values: {type(error).__name__}: {error}")

    def _show(self, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        now = time.monotonic()
        began, first = self._began or (now, progress.fraction)
        done = progress.fraction - first
        eta = _duration((now - began) * (1 - progress.fraction) / done) if done > 0 else "?"
        terms = "  ".join(f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name.startswith("loss_"))
        line = (
            f"{progress.fraction:4.0%}  iteration {progress.iteration}  loss {row['loss']:.3f} ({terms})"
            f"  lr {row['lr']:.2e}  {row['images_per_second']:.1f} images/s  data {row['data_share']:.0%}  ETA {eta}"
        )
        self._status.plain = line
        if not self._console.is_terminal and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self.message(line)


def _started(start: RunStart) -> dict[str, Logger]:
    with names_folder(start.folder):
        return build_loggers(start)


def _shares(results: Sequence[StepResult]) -> dict[str, float]:
    """What share of the boxes each statistic counts."""
    boxes = max(sum(step.boxes for step in results), 1)
    return {f"{name}_share": sum(step.stats[name] for step in results) / boxes for name in results[-1].stats}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
