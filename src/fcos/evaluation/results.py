"""An evaluation as tables for people and as files for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..formatting import HYPHEN, figure, printable
from .coco_metrics import DETAILS
from .evaluate import Evaluation

_COLUMNS = 6


def headline_metrics(names: Iterable[str], best_metric: str) -> list[str]:
    """The metrics that a log line or a summary has room for: none by object size or with fewer detections.

    Args:
        names: of all metrics, such as `AP`, `APs` or `AP_mask`.
        best_metric: the metric that decides which weights are the best, which is always among them.
    """
    return [name for name in names if name == best_metric or name.partition("_")[0] not in DETAILS]


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print all metrics, and those of every class with its score threshold: ruled on a terminal, else plain text."""
    names = list(evaluation.metrics)
    for start in range(0, len(names), _COLUMNS):
        part = names[start : start + _COLUMNS]
        _print_table(console, part, [[figure(evaluation.metrics[name], HYPHEN) for name in part]])
    wide = [name for name in DETAILS if name.startswith("AR")]  # left out, the table would be too wide
    shown = [name for name in next(iter(evaluation.per_class.values()), {}) if name.partition("_")[0] not in wide]
    rows = [
        [
            escape(printable(name)),
            str(evaluation.boxes_per_class[name]),
            *(figure(figures[key], HYPHEN) for key in shown),
            figure(evaluation.thresholds.get(name), HYPHEN),
        ]
        for name, figures in evaluation.per_class.items()
    ]
    _print_table(console, ("class", "boxes", *shown, "threshold"), rows)


def save_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write `metrics.json` (null where a figure is not defined) and `detections.json` (COCO's result format)."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "metrics": _defined(evaluation.metrics),
        "per_class": {name: _defined(figures) for name, figures in evaluation.per_class.items()},
        "boxes_per_class": evaluation.boxes_per_class,
        "thresholds": evaluation.thresholds,
        "annotations_digest": evaluation.annotations_digest,
    }
    (folder / "detections.json").write_text(json.dumps(evaluation.detections, allow_nan=False), encoding="utf-8")
    # Last: where these figures are, the detections are complete, see `reporting/record.py`.
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_evaluation(folder: Path) -> Evaluation | None:
    """Read what `save_evaluation` wrote; None: it is not there, not complete, or damaged."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return Evaluation(
            metrics=_with_nan(metrics["metrics"]),
            per_class={name: _with_nan(figures) for name, figures in metrics["per_class"].items()},
            detections=json.loads((folder / "detections.json").read_text(encoding="utf-8")),
            boxes_per_class=metrics["boxes_per_class"],
            thresholds=metrics["thresholds"],
            annotations_digest=metrics.get("annotations_digest", ""),  # earlier versions did not write it
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def default_folder(weights: Path, split: str) -> Path:
    """Where an evaluation is written: RUN/SPLIT for RUN/weights/NAME.pt, else a folder beside the file."""
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


def _defined(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _with_nan(figures: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}
