"""Report sections that need no detections: summary, curves, speed, classes, environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.results import headline_metrics
from ..formatting import DASH, format_metric, percent
from ..html_page import Cell, Chart, Page, Tile
from .record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_POINTS = 300
_MAX_MARKERS = 30  # a curve with few points has markers, as a single point has no line
_MEANINGS = {"AP50": "IoU 0.5", "AP75": "IoU 0.75", "AR100": "recall, 100 detections per image"}
Series = dict[str, tuple[np.ndarray, np.ndarray]]


def add_summary(page: Page, record: Record) -> None:
    """Add the model, the headline metrics, the length of the run, and the remarks."""
    config, best = record.config, record.best
    page.subtitle = f"{config.model.name} with {config.model.backbone.name}, {record.folder}"
    section = page.section("Summary")
    metrics = record.evaluation.metrics if record.evaluation else best.metrics if best else {}
    iterations, duration = _run_length(record)
    best_metric = config.train.best_metric
    names = headline_metrics(metrics, best_metric) or [best_metric]
    meanings = _MEANINGS | ({best_metric: f"on val, at iteration {best.iteration:,}"} if best and metrics else {})
    images = "train" if record.data.val is None else f"train, {len(record.data.val):,} val"
    train = record.data.train
    section.tiles(
        [
            *(Tile(name, format_metric(metrics.get(name)), meanings.get(name, "")) for name in names),
            Tile("Iterations", f"{iterations:,}", f"batch size {config.train.batch_size}"),
            Tile("Duration", duration, "including evaluations"),
            Tile("Images", DASH if train is None else f"{len(train):,}", images if train else ""),
            Tile("Classes", f"{len(classes):,}" if (classes := _class_names(record)) else DASH),
        ]
    )
    if record.data.val is None and not record.remarks:
        if metrics:
            section.text("The data no longer has a val split.", style="note")
        else:
            section.text(
                "The data has no val split: no validation was run, and best.pt contains the last weights.", style="note"
            )
    for remark in record.remarks:
        section.text(remark, style="warning")


def add_history(page: Page, record: Record) -> None:
    """Add the curves of loss, metrics, learning rate and gradient norm over the iterations."""
    section = page.section("Training")
    names = ["loss", *(name for name in record.columns if name.startswith("loss_"))]
    losses = {name.removeprefix("loss_"): record.column("train", name) for name in names}
    losses = {"total" if name == "loss" else name: series for name, series in losses.items() if len(series[0])}
    if not losses:
        section.text("metrics.csv has no training rows yet.", style="note")
        return
    norm, rate = record.column("train", "grad_norm"), record.column("train", "lr")
    charts = [
        Chart("Loss", lambda axes: _curves(axes, losses)),
        Chart("Learning rate", lambda axes: _curves(axes, {"": rate})),
        Chart("Gradient norm before clipping", lambda axes: _curves(axes, {"": norm}, log=True)),
    ]
    metrics = headline_metrics(record.metric_names, record.config.train.best_metric)
    if metrics:
        measured = {name: record.column("val", name) for name in metrics}
        charts.insert(1, Chart("Validation metrics", lambda axes: _curves(axes, measured, top=1.0)))
    section.charts(charts)


def add_speed(page: Page, record: Record) -> None:
    """Add the training speed, the time spent waiting for data, and the GPU memory."""
    speed, waited = record.column("train", "images_per_second"), record.column("train", "data_share")
    if not len(speed[0]):
        return
    section = page.section("Speed and memory")
    memory = record.column("train", "memory_mb")[1]
    shares = [name for name in record.columns if name.endswith("_share") and name != "data_share"]
    boxes = {name.removesuffix("_share").replace("_", " "): record.column("train", name)[1] for name in shares}
    share = float(waited[1].mean()) if len(waited[1]) else math.nan
    section.tiles(
        [
            Tile("Training speed", f"{np.median(speed[1]):.1f}", "images per second, median"),
            Tile("Waiting for data", percent(share), "of training time, mean"),
            Tile("GPU memory", f"{memory.max():,.0f} MB" if len(memory) else DASH, "peak, allocated by PyTorch"),
            *(
                Tile(f"{name.capitalize()} boxes", percent(float(values.mean())), "of training boxes, mean")
                for name, values in boxes.items()
                if len(values)
            ),
        ]
    )
    if share > 0.2:
        section.text(
            "Training often waits for the data loader: increase data.workers, set data.cache, or use smaller images.",
            style="warning",
        )
    charts = [Chart("Images per second", lambda axes: _curves(axes, {"": speed}))]
    charts += [Chart("Share of time spent waiting for data", lambda axes: _curves(axes, {"": waited}, top=1.0))]
    section.charts(charts)


def add_classes(page: Page, record: Record) -> None:
    """Add the number of boxes of every class in train and val."""
    splits = {name: data for name, data in (("train", record.data.train), ("val", record.data.val)) if data is not None}
    if not splits:
        return
    section = page.section("Boxes per class")
    counts = {name: data.boxes_per_class() for name, data in splits.items()}
    rows = []
    for label, name in enumerate(_class_names(record)):
        cells: list[str | Cell] = [name]
        for split_counts in counts.values():
            total = max(int(split_counts.sum()), 1)
            cells.append(Cell(f"{split_counts[label]:,}", bar=split_counts[label] / max(int(split_counts.max()), 1)))
            cells.append(Cell(percent(split_counts[label] / total)))
        rows.append(cells)
    section.table(["class", *(heading for name in counts for heading in (f"{name} boxes", "share"))], rows)


def add_environment(page: Page, record: Record) -> None:
    """Add the versions and hardware of the run, and its resolved config."""
    section = page.section("Environment and config")
    if record.environment:
        section.table(["", "at the start of the run"], [[name, value] for name, value in record.environment.items()])
    else:
        section.text("The run has no environment.json: versions and hardware are unknown.", style="note")
    section.details("Resolved config", record.config.to_yaml())


def _curves(axes: Axes, series: Series, *, log: bool = False, top: float | None = None) -> None:
    for name, (x, y) in series.items():
        axes.plot(*_thin_out(x, y), label=name, marker="o" if len(x) <= _MAX_MARKERS else "", markersize=3.5)
    axes.set_xlabel("iteration")
    axes.locator_params(axis="x", integer=True, nbins=8, min_n_ticks=1)
    if log and any((y > 0).any() for _, y in series.values()):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=top)
    if len(series) > 1:
        axes.legend(ncols=2)


def _thin_out(x: np.ndarray, y: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """Average neighbouring points if there are more than `_MAX_POINTS`."""
    num_groups = min(len(x), _MAX_POINTS)
    x_means, y_means = (
        [group.mean() for group in np.array_split(values, num_groups)] if num_groups else [] for values in (x, y)
    )
    return x_means, y_means


def _run_length(record: Record) -> tuple[int, str]:
    """Return the number of iterations done and their duration as text."""
    iterations, minutes = record.column(None, "iteration")[1], record.column(None, "minutes")[1]
    done = int(iterations.max(initial=0))
    if not len(minutes):
        return done, DASH
    total = float(minutes.max())
    return done, f"{total * 60:.0f} s" if total < 2 else f"{total:.1f} min" if total < 120 else f"{total / 60:.1f} h"


def _class_names(record: Record) -> Sequence[str]:
    data = record.data.train or record.data.val
    return data.class_names if data is not None else record.best.class_names if record.best else ()
