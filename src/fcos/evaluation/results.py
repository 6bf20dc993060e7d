"""Evaluations printed as tables and saved as JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, model_validator
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..files import naming_folder
from ..formatting import HYPHEN, format_metric, printable
from .coco_metrics import DETAILS
from .evaluate import Evaluation

_COLUMNS = 6


def headline_metrics(names: Iterable[str], best_metric: str) -> list[str]:
    """Select the metrics for a log line or a summary: leave out those in `DETAILS` (one size, or few detections).

    Args:
        names: names of all metrics, such as `AP`, `APs` or `AP_mask`.
        best_metric: metric that selects the best weights; it is always kept.
    """
    return [name for name in names if name == best_metric or name.partition("_")[0] not in DETAILS]


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the metrics, overall and per class with score thresholds, as tables; ruled lines on a terminal only."""
    names = list(evaluation.metrics)
    for start in range(0, len(names), _COLUMNS):
        names_of_row = names[start : start + _COLUMNS]
        _print_table(
            console, names_of_row, [[format_metric(evaluation.metrics[name], HYPHEN) for name in names_of_row]]
        )
    hidden = [name for name in DETAILS if name.startswith("AR")]  # left out, or the table would be too wide
    shown = [name for name in next(iter(evaluation.per_class.values()), {}) if name.partition("_")[0] not in hidden]
    rows = [
        [
            escape(printable(name)),
            str(evaluation.boxes_per_class[name]),
            *(format_metric(metrics[key], HYPHEN) for key in shown),
            format_metric(evaluation.thresholds.get(name), HYPHEN),
        ]
        for name, metrics in evaluation.per_class.items()
    ]
    _print_table(console, ("class", "boxes", *shown, "threshold"), rows)


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` (null for undefined metrics) and `detections.json` (COCO result format) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "metrics": _nan_to_none(evaluation.metrics),
        "per_class": {name: _nan_to_none(values) for name, values in evaluation.per_class.items()},
        "boxes_per_class": evaluation.boxes_per_class,
        "thresholds": evaluation.thresholds,
        "annotations_digest": evaluation.annotations_digest,
    }
    with naming_folder(folder):
        text = json.dumps(evaluation.detections, allow_nan=False)
        (folder / "detections.json").write_text(text, encoding="utf-8")
        # Written last: `reporting/record.py` relies on complete detections wherever metrics.json exists.
        text = json.dumps(metrics, indent=1, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")


class _SavedMetrics(BaseModel, strict=True):
    """Content of `metrics.json`."""

    metrics: dict[str, FiniteFloat | None]
    per_class: dict[str, dict[str, FiniteFloat | None]]
    boxes_per_class: dict[str, int]
    thresholds: dict[str, FiniteFloat]
    annotations_digest: str = ""  # missing in files of earlier versions

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
    )


def default_folder(weights: Path, split: str) -> Path:
    """Return the default output folder: RUN/SPLIT for RUN and RUN/weights/NAME.pt, or NAME_SPLIT beside other files."""
    if weights.is_dir():
        return weights / split
    if weights.parent.name == "weights":
        return weights.parent.parent / split
    return weights.with_name(f"{weights.stem}_{split}")


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
