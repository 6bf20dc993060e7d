"""What a run tells: metrics.csv, TensorBoard, and the terminal."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from ..config import Config
from ..distributed import rank
from ..evaluation.coco_metrics import METRICS
from .folder import names_folder

LOSSES = ("loss_cls", "loss_box", "loss_centerness", "loss_iou_quality")
COLUMNS = (
    "iteration",
    "epoch",
    "minutes",  # since the start of the run, pauses left out
    "split",  # train or val
    "loss",
    *LOSSES,
    "lr",  # of weights; that of biases is bias_lr_factor times as much
    "images_per_second",
    "data_share",  # of the time, spent waiting for the loader
    "unassigned_share",  # of the boxes, learned by no location
    "grad_norm",  # of the row's last step, before clipping
    "memory_mb",  # the most so far, CUDA only
    *METRICS,
)
PLAIN_SECONDS = 5.0
"""Where the output is no terminal, lines come no faster than this."""


class TrainingProgress(NamedTuple):
    """Where a run stands: steps done, epochs done, minutes since its start without pauses, share done (0..1)."""

    iteration: int
    epoch: float
    minutes: float
    fraction: float


class Learned(NamedTuple):
    """What all processes know after a step: the mean of the loss terms, sums of the rest.

    Attributes:
        losses: the loss terms.
        grad_norm: of the gradients, before clipping.
        boxes: in the batch.
        unassigned: boxes of them that no location learns.
        stop: one of the processes was asked to stop.
        skipped: why the weights were left as they are; empty when they have learned.
    """

    losses: dict[str, float]
    grad_norm: float
    boxes: int
    unassigned: int
    stop: bool
    skipped: str = ""


class Step(NamedTuple):
    """What a training step was like.

    Attributes:
        learned: in it.
        lr: the rate in force for weights.
        seconds: it took.
        waited: seconds of them, for data.
    """

    learned: Learned
    lr: float
    seconds: float
    waited: float


class RunLog:
    """Writes rows of means and shows how far the run is.

    Rank 0 does; the others say nothing.

    Args:
        folder: of the run.
        config: reads `train.log_every`, the steps that a row sums up, and `train.batch_size`.
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
        self._table = folder / "metrics.csv"
        self._told = False  # that a file cannot be written
        if self.enabled:
            summed_up = iteration - len(self._steps)
            with names_folder(folder):
                self._file = _open_rows(self._table, {"train": summed_up, "val": iteration}, evaluations)
                self._rows = csv.DictWriter(self._file, COLUMNS, restval="")
                self._board = _Board(folder, iteration)

    def __enter__(self) -> RunLog:
        if self.enabled and self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.sum_up()
            self._live.stop()
            for file in (self._board, self._file):
                with self._full_disk_told():
                    file.close()

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
        if step.learned.skipped:
            self.message(f"warning: step skipped: {step.learned.skipped}")

    def sum_up(self) -> None:
        """Make a row of the steps since the last one, if there are any."""
        if not self._steps:
            return
        progresses, steps = zip(*self._steps, strict=True)
        self._steps.clear()
        progress: TrainingProgress = progresses[-1]
        learned: list[Learned] = [step.learned for step in steps]
        losses = {name: sum(s.losses[name] for s in learned) / len(steps) for name in learned[-1].losses}
        seconds = max(sum(step.seconds for step in steps), 1e-9)
        row = {
            "loss": sum(losses.values()),
            **losses,
            "lr": steps[-1].lr,
            "images_per_second": len(steps) * self._batch_size / seconds,
            "data_share": sum(step.waited for step in steps) / seconds,
            "unassigned_share": sum(s.unassigned for s in learned) / max(sum(s.boxes for s in learned), 1),
            "grad_norm": learned[-1].grad_norm,
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
        shown = [name for name in ("AP", "AP50", "AP75", "AR100") if name in metrics]
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in shown)
        self.message(f"val at iteration {progress.iteration}: {figures}")

    def _write(self, split: str, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        values = {"epoch": progress.epoch, "minutes": progress.minutes, **row}
        texts = {name: f"{value:.6g}" for name, value in values.items()}
        with self._full_disk_told():
            self._rows.writerow({"iteration": progress.iteration, "split": split, **texts})
            self._file.flush()
        with self._full_disk_told():
            self._board.add(progress.iteration, {f"{split}/{name}": value for name, value in row.items()})

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        """A full disk ends no training: what was not written is written with the next row, if there is room then."""
        try:
            yield
        except OSError as error:
            if not self._told:
                self._told = True
                self.message(f"warning: {self._table}: not saved: {error}; make room")

    def _show(self, progress: TrainingProgress, row: Mapping[str, float]) -> None:
        now = time.monotonic()
        began, first = self._began or (now, progress.fraction)
        done = progress.fraction - first
        eta = _duration((now - began) * (1 - progress.fraction) / done) if done > 0 else "?"
        terms = "  ".join(f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name in LOSSES)
        line = (
            f"{progress.fraction:4.0%}  iteration {progress.iteration}  loss {row['loss']:.3f} ({terms})"
            f"  lr {row['lr']:.2e}  {row['images_per_second']:.1f} images/s  data {row['data_share']:.0%}  ETA {eta}"
        )
        self._status.plain = line
        if not self._console.is_terminal and now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self.message(line)


def _open_rows(path: Path, limits: Mapping[str, int], evaluations: int) -> Any:
    """Open metrics.csv behind the rows of each split up to its iteration, and so many of val."""
    kept: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]  # the last one may be cut short
        kept = [
            row
            for row in rows
            if row["iteration"].isdecimal() and int(row["iteration"]) <= limits.get(row["split"], -1)
        ]
        again = [row for row in kept if row["split"] == "val"][evaluations:]  # killed between the row and the saving
        kept = [row for row in kept if row not in again]
    new = path.with_suffix(".new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
    new.replace(path)
    return path.open("a", newline="", encoding="utf-8")


class _Board:
    """TensorBoard's file. Its own writer has a thread, which a full disk ends with a traceback.

    Args:
        folder: of the run.
        iteration: where a continued run stands; what earlier files have of the steps beyond it is forgotten.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("ab"))
        self._write(file_version="brain.Event:2")
        self._write(step=iteration + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write what a step or an evaluation was like."""
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=iteration, summary=Summary(value=entries))

    def close(self) -> None:
        """Write what is left."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
