"""What the folder of a run tells."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..config import Config
from ..config_text import load_config
from ..data import load_annotations
from ..data.dataset import Annotations
from ..errors import ConfigError, DataError, WeightsError
from ..evaluation.loop import Evaluation
from ..evaluation.report import load_evaluation, save_evaluation
from ..training.checkpoint import Checkpoint, load_checkpoint
from ..training.environment import FILE as ENVIRONMENT
from ..training.folder import BEST, CONFIG

SAME = 1e-3
"""Two evaluations of the same weights differ by less than this in every figure, whatever machine made them."""


@dataclass(frozen=True)
class Splits:
    """The splits of a run; None: there is none, or it cannot be read any more."""

    train: Annotations | None
    val: Annotations | None


@dataclass(frozen=True)
class Record:
    """What is known of a run.

    Attributes:
        folder: of the run.
        config: resolved.
        rows: of metrics.csv.
        best: weights/best.pt; None: not there yet, or not readable.
        data: what it learned from and was measured on.
        evaluation: of best.pt on val; None: there is none.
        environment: versions and hardware by name; empty when unknown.
        remarks: what is missing, and why.
    """

    folder: Path
    config: Config
    rows: list[dict[str, str]]
    best: Checkpoint | None
    data: Splits
    evaluation: Evaluation | None
    environment: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    def column(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The iterations and values of a column of metrics.csv, where it has any."""
        pairs = [(row["iteration"], row.get(name)) for row in self.rows if row.get("split") == split]
        numbers = np.array([(float(i), float(value)) for i, value in pairs if value], dtype=np.float64).reshape(-1, 2)
        return numbers[:, 0], numbers[:, 1]


def read_record(
    folder: Path, *, data: Splits | None = None, evaluate: Callable[[Path], Evaluation] | None = None
) -> Record:
    """Read the folder of a run.

    Args:
        folder: of the run, finished or not.
        data: its splits; None: read again.
        evaluate: evaluates a weights file on val, for a run whose val/detections.json is missing or of other weights or
            data; the result is saved there. None: such a run has no evaluation.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder}: no run, there is no {CONFIG} in it; expected the folder that a training made, for example"
            " runs/fcos_mnv2_small"
        )
    config, remarks = load_config(folder / CONFIG), []
    best = _best(folder, remarks)
    data = data or _read_data(config, remarks)
    evaluation = None
    if best is not None and data.val is not None:
        evaluation = _evaluation(folder, best, data.val, evaluate, remarks)
    return Record(folder, config, _rows(folder), best, data, evaluation, _environment(folder), remarks)


def _best(folder: Path, remarks: list[str]) -> Checkpoint | None:
    try:
        return load_checkpoint(folder / BEST)
    except WeightsError as error:
        there = (folder / BEST).exists()
        remarks.append(str(error) if there else f"There is no {BEST} yet: the run has not been evaluated so far.")
        return None


def _read_data(config: Config, remarks: list[str]) -> Splits:
    try:
        train = load_annotations(config.data, "train")
        classes = {} if train is None else {"class_names": train.class_names, "category_ids": train.category_ids}
        return Splits(train, load_annotations(config.data, "val", **classes))
    except (DataError, ConfigError) as error:
        remarks.append(f"The data of the run cannot be read any more: {error}")
        return Splits(None, None)


def _evaluation(
    folder: Path,
    best: Checkpoint,
    val: Annotations,
    evaluate: Callable[[Path], Evaluation] | None,
    remarks: list[str],
) -> Evaluation | None:
    """That of best.pt: the saved one if it is of these weights and this data, else a new one."""
    saved = load_evaluation(folder / "val")
    images = set(val.image_ids.tolist())
    if (
        saved is not None
        and all(abs(value - saved.metrics.get(name, np.nan)) < SAME for name, value in _defined(best.metrics).items())
        and all(d["image_id"] in images and d["category_id"] in val.category_ids for d in saved.detections)
        and saved.per_class.keys() == set(val.class_names)
    ):
        return saved
    what = "val/ holds no complete evaluation" if saved is None else "The evaluation in val/ is not of best.pt"
    if evaluate is None:
        remarks.append(f"{what}.")
        return None
    evaluation = evaluate(folder / BEST)
    save_evaluation(evaluation, folder / "val")
    remarks.append(f"{what}; it was evaluated for this report.")
    return evaluation


def _defined(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def _rows(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv; the last one of an interrupted run may be cut short and is left out then."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and row["iteration"].isdigit()]


def _environment(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
