"""Evaluations printed as tables and saved as JSON files."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, model_validator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config.options import ANNOTATION_OPTIONS, is_among
from ..files import explain_write_errors, replaced
from ..formatting import HYPHEN, format_metric, printable
from .evaluate import Evaluation

SAME = 1e-3
"""Tolerance: two evaluations of the same weights differ by less than this in every metric, on any machine."""
_COLUMNS = 6
_DETAIL = re.compile(r"A[PR][sml]|AR10?(?!\d)")
"""Beginning of the names of metrics of a single object size, or of at most 10 detections."""


def headline_metrics(names: Iterable[str], best_metric: str) -> list[str]:
    """Select the metrics for a log line or a summary: leave out those of one object size or of few detections.

    Args:
        names: names of all metrics, such as `AP`, `APs` or `AP_mask`.
        best_metric: metric that selects the best weights; it is always kept.
    """
    return [name for name in names if name == best_metric or not _DETAIL.match(name)]


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the metrics, overall and per class with score thresholds, as tables; ruled lines on a terminal only."""
    names = list(evaluation.metrics)
    for start in range(0, len(names), _COLUMNS):
        names_of_row = names[start : start + _COLUMNS]
        _print_table(
            console, names_of_row, [[format_metric(evaluation.metrics[name], HYPHEN) for name in names_of_row]]
        )
    columns = next(iter(evaluation.per_class.values()), {})
    # Without the details of AR, or the table would be too wide.
    shown = [name for name in columns if not (name.startswith("AR") and _DETAIL.match(name))]
    for suffix in dict.fromkeys(name.partition("_")[2] for name in shown):  # one table for boxes, masks, keypoints
        keys = [name for name in shown if name.partition("_")[2] == suffix]
        keys = keys[:_COLUMNS] if suffix else keys  # their names are long
        rows = [
            [
                escape(printable(name)),
                str(evaluation.boxes_per_class[name]),
                *(format_metric(metrics[key], HYPHEN) for key in keys),
                format_metric(evaluation.thresholds.get(name), HYPHEN),
            ]
            for name, metrics in evaluation.per_class.items()
        ]
        _print_table(console, ("class", "boxes", *keys, "threshold"), rows)


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` (null for undefined metrics) and `detections.json` (COCO result format) atomically.

    Args:
        evaluation: result of an evaluation.
        folder: output folder, created if it is missing.

    Raises:
        WriteError: the disk is full or not writable.
    """
    metrics = {
        "metrics": _nan_to_none(evaluation.metrics),
        "per_class": {name: _nan_to_none(values) for name, values in evaluation.per_class.items()},
        "boxes_per_class": evaluation.boxes_per_class,
        "thresholds": evaluation.thresholds,
        "annotations_digest": evaluation.annotations_digest,
        "changed_options": evaluation.changed_options,
    }
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Both are complete before one is replaced, so that a full disk keeps an earlier pair.
        with replaced(folder / "metrics.json") as metrics_file, replaced(folder / "detections.json") as detections_file:
            detections_file.write_text(json.dumps(evaluation.detections, allow_nan=False), encoding="utf-8")
            metrics_file.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")


class _SavedMetrics(BaseModel, strict=True):
    """Content of `metrics.json`."""

    metrics: dict[str, FiniteFloat | None]
    per_class: dict[str, dict[str, FiniteFloat | None]]
    boxes_per_class: dict[str, int]
    thresholds: dict[str, FiniteFloat]
    annotations_digest: str = ""  # missing in files of earlier versions, as is the next one
    changed_options: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_names(self) -> _SavedMetrics:
        if self.per_class.keys() != self.boxes_per_class.keys() or len({*map(frozenset, self.per_class.values())}) > 1:
            raise ValueError("classes differ in their metrics")
        return self


class _SavedDetection(BaseModel, strict=True):
    """Element of `detections.json`, in the COCO result format."""

    image_id: int
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    score: FiniteFloat


def load_evaluation(folder: Path) -> Evaluation | None:
    """Load an evaluation saved by `save_evaluation`; return None if it is missing, incomplete or damaged."""
    try:
        metrics = _SavedMetrics.model_validate(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        detections = json.loads((folder / "detections.json").read_text(encoding="utf-8"))
        TypeAdapter(list[_SavedDetection]).validate_python(detections)
    except (OSError, ValueError, RecursionError):  # RecursionError: deeply nested
        return None
    return Evaluation(
        metrics=_none_to_nan(metrics.metrics),
        per_class={name: _none_to_nan(values) for name, values in metrics.per_class.items()},
        detections=detections,
        boxes_per_class=metrics.boxes_per_class,
        thresholds=metrics.thresholds,
        annotations_digest=metrics.annotations_digest,
        changed_options=metrics.changed_options,
    )


def default_folder(weights: Path, split: str, evaluation: Evaluation) -> Path:
    """Return the default output folder of an evaluation, which never replaces one of other data or with other options.

    It is RUN/SPLIT for the best weights of a run with the data and options of the run, and NAME_SPLIT for other weights
    files, in their run or beside them. If this folder contains, or is reserved for, another evaluation, it is the first
    free one of SPLIT-2, SPLIT-3 and so on, or the one that contains an earlier result of the same evaluation.

    Args:
        weights: weights file or run folder.
        split: name of the split.
        evaluation: result to save.
    """
    if weights.is_dir():
        best = weights / "weights" / "best.pt"
        weights = best if best.is_file() else best.with_name("last.pt")
    is_in_run = weights.parent.name == "weights"
    parent = weights.parent.parent if is_in_run else weights.parent
    is_best = is_in_run and weights.name == "best.pt"
    base = parent / (split if is_best else f"{weights.stem}_{split}")
    if is_best and _is_of_run(evaluation, load_evaluation(base)):
        return base
    for number in itertools.count(2 if is_best else 1):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not folder.exists() or _is_repetition(evaluation, load_evaluation(folder)):
            return folder
    raise AssertionError


def _is_of_run(evaluation: Evaluation, saved: Evaluation | None) -> bool:
    """Return whether an evaluation has the options and the data of the run, in whose folder `saved` is saved."""
    if detection_changes(evaluation):
        return False
    if saved is None:
        return not evaluation.changed_options
    if saved.annotations_digest not in ("", evaluation.annotations_digest):
        return False
    # If options locate the data: moved data of the run gives the same metrics, altered copies of its images do not.
    return not evaluation.changed_options or nearly_equal(saved.metrics, evaluation.metrics)


def _is_repetition(evaluation: Evaluation, saved: Evaluation | None) -> bool:
    return saved is not None and all(
        getattr(saved, name) == getattr(evaluation, name) for name in ("annotations_digest", "changed_options")
    )


def detection_changes(evaluation: Evaluation) -> list[str]:
    """Return the changed options of an evaluation that affect its detections, not only which annotations it uses."""
    return [key for key in evaluation.changed_options if not is_among(key, ANNOTATION_OPTIONS)]


def nearly_equal(first: dict[str, float], second: dict[str, float]) -> bool:
    """Return whether two dicts of metrics agree within `SAME`; NaN in the first one is ignored."""
    return all(abs(value - second.get(name, math.nan)) < SAME for name, value in first.items() if not math.isnan(value))


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    plain = not console.is_terminal
    table = Table(box=None if plain else SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "class" else "right", no_wrap=plain)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if plain:
        console.print()


def _nan_to_none(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _none_to_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in metrics.items()}
