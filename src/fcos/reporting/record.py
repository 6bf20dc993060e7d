"""Contents of a run folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint
from ..config import Config
from ..data import load_annotations
from ..data.dataset import Annotations
from ..data.source import Split
from ..errors import ConfigError, DataError, FCOSError, WeightsError
from ..evaluation.evaluate import Evaluation
from ..evaluation.results import detection_changes, load_evaluation, save_evaluation
from ..formatting import join_some
from ..interop.checkpoints import load_checkpoint
from ..recipes import load_config
from ..training.folder import BEST, CONFIG, ENVIRONMENT
from .same_data import check_same_data, is_of, other_data

_SPLITS = ("train", "val")
_DATA_OPTIONS = {"data=": _SPLITS, "data.root=": _SPLITS, "data.train": ("train",), "data.val": ("val",)}
"""Prefixes of the overrides that locate the data, with the splits that they concern."""
_EVALUATION_OPTIONS = ("data.format=", "data.on_error=", "data.workers=", "eval.batch_size=", "device=")
"""Prefixes of the overrides for reading the data and for the evaluation."""
_MOVED = "fcos report RUN data=DIR"
"""Command for users whose data has moved, shown in messages."""


@dataclass(frozen=True)
class Splits:
    """Splits of a run; None for a split that does not exist or can no longer be read."""

    train: Annotations | None
    val: Annotations | None


@dataclass(frozen=True)
class Record:
    """Data about a run, read from its folder.

    Attributes:
        folder: run folder.
        config: resolved config.
        rows: rows of metrics.csv, by column name.
        best: checkpoint weights/best.pt; None if it does not exist yet or cannot be read.
        data: train and val splits of the run.
        evaluation: evaluation of best.pt on val, or None.
        environment: versions and hardware by name; empty if unknown.
        remarks: messages about missing items, with the reasons.
    """

    folder: Path
    config: Config
    rows: list[dict[str, str]]
    best: Checkpoint | None
    data: Splits
    evaluation: Evaluation | None
    environment: dict[str, str]
    remarks: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of metrics.csv."""
        return list(self.rows[0]) if self.rows else []

    @property
    def metric_names(self) -> list[str]:
        """Columns of metrics.csv with numbers in val rows, except iteration, epoch, minutes and split."""
        measured = [name for name in self.columns if len(self.column("val", name)[0])]
        return [name for name in measured if name not in ("iteration", "epoch", "minutes", "split")]

    def column(self, split: str | None, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (iterations, values) of a column of metrics.csv, for rows with a number; split None: all splits."""
        pairs = [
            (int(row["iteration"]), value)
            for row in self.rows
            if split in (None, row.get("split")) and (value := _to_number(row.get(name))) is not None
        ]
        numbers = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        return numbers[:, 0], numbers[:, 1]


def read_record(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    data: Splits | None = None,
    evaluate: Callable[[Path, Annotations], Evaluation] | None = None,
) -> Record:
    """Read the folder of a run.

    Args:
        folder: run folder; the run may be unfinished.
        overrides: `key=value` options for the current location of the data and for its evaluation.
        data: splits of the run; None reads them from disk.
        evaluate: function that evaluates a weights file on val. It is called if val/ has no evaluation of these weights
            on this data, and its result is saved if val/ has no evaluation at all. With None, such a run has no
            evaluation.

    Raises:
        ConfigError: the folder is not a run folder, its config belongs to another version, or an override is wrong or
            has no effect.
        DataError: data named by an override cannot be read, or is not the data of the run.
    """
    config, remarks = _read_config(folder), []
    current_config = load_config(folder / CONFIG, overrides)
    _reject_unused_overrides(overrides, config)
    best = _load_best(folder, remarks)
    starts = [start for start in _DATA_OPTIONS if any(text.startswith(start) for text in overrides)]
    named_splits = {split for start in starts for split in _DATA_OPTIONS[start]}
    data = data or _read_data(current_config, best, remarks, named_splits)
    saved = load_evaluation(folder / "val")
    splits: dict[Split, Annotations | None] = {"train": data.train, "val": data.val}
    named: dict[Split, Annotations] = {
        split: rows for split, rows in splits.items() if split in named_splits and rows is not None
    }
    check_same_data(folder, config, named, best=best, saved=saved)
    evaluation = None
    if best is not None:
        is_named = "val" in named_splits
        evaluation = _find_evaluation(
            folder, best, data.val, saved=saved, evaluate=evaluate, remarks=remarks, is_named=is_named
        )
    return Record(folder, config, _read_rows(folder), best, data, evaluation, _read_environment(folder), remarks)


def _read_config(folder: Path) -> Config:
    path = folder / CONFIG
    if not path.is_file():
        run = next((parent for parent in folder.parents if (parent / CONFIG).is_file()), None)
        if run is not None and folder.exists():
            raise ConfigError(
                f"{folder}: this is in the run folder {run}; expected the folder itself: fcos report {run}"
            )
        raise ConfigError(
            f"{folder}: not a run folder, it has no {CONFIG}; expected the output folder of a training, for example"
            " runs/fcos_mnv2_small"
        )
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nIf this file was not edited, another version of fcos created the run; use that version for it"
        ) from None


def _reject_unused_overrides(overrides: Sequence[str], config: Config) -> None:
    """Raise ConfigError for overrides that have no effect on the report."""
    backbone_override = f"model.backbone.name={config.model.backbone.name}"  # with it the user allows custom code
    allowed = (*_DATA_OPTIONS, *_EVALUATION_OPTIONS)
    unused = [
        text.partition("=")[0] for text in overrides if text != backbone_override and not text.startswith(allowed)
    ]
    if unused:
        raise ConfigError(
            f"{', '.join(unused)}: no effect on a report; fcos report accepts data=DIR, the current location of the"
            f" data, and {', '.join(start.removesuffix('=') for start in allowed[1:])}"
        )


def _load_best(folder: Path, remarks: list[str]) -> Checkpoint | None:
    try:
        return load_checkpoint(folder / BEST)
    except WeightsError as error:
        exists = (folder / BEST).exists()
        remarks.append(str(error) if exists else f"{BEST} does not exist yet: the run has not been evaluated so far.")
        return None


def _read_data(config: Config, best: Checkpoint | None, remarks: list[str], named_splits: set[str]) -> Splits:
    """Read the splits with the classes of the weights; a split that cannot be read is an error if an override names it.

    Otherwise it is None, and the reason is added to the remarks.
    """
    source: Checkpoint | Annotations | None = best
    splits: dict[str, Annotations | None] = {}
    errors: dict[str, list[str]] = {}
    for split in _SPLITS:
        classes = {} if source is None else {"class_names": source.class_names, "category_ids": source.category_ids}
        try:
            splits[split] = load_annotations(config.data, split, **classes, one_class=config.model.is_class_agnostic)
        except (DataError, ConfigError) as error:
            if split in named_splits:
                raise type(error)(f"{error}\nIf the data of the run has moved: {_MOVED}") from None
            errors.setdefault(str(error), []).append(split)
        source = splits.get(split) if source is None else source
    if "val" in named_splits and best is not None and best.metrics and splits.get("val") is None:
        raise DataError(
            f"data: {config.data.root} has no val split, but the run was evaluated on one; give the folder that has it"
        )
    for error, names in errors.items():
        remarks.append(
            f"The data of the run ({' and '.join(names)}) can no longer be read. If it has moved: {_MOVED}."
            f" Error: {error}"
        )
    return Splits(splits.get("train"), splits.get("val"))


def _find_evaluation(
    folder: Path,
    best: Checkpoint,
    val: Annotations | None,
    *,
    saved: Evaluation | None,
    evaluate: Callable[[Path, Annotations], Evaluation] | None,
    remarks: list[str],
    is_named: bool,
) -> Evaluation | None:
    """Return the saved evaluation if it belongs to best.pt and this data; otherwise evaluate best.pt or return None.

    Raises:
        DataError: an option names the data (`is_named`), and the metrics of best.pt on it are not those of the run.
    """
    flaw = _find_flaw(saved, best, val)
    if flaw is None:
        return saved
    if val is None:
        if best.metrics:  # otherwise the run was never evaluated
            remarks.append(f"{flaw}, and best.pt cannot be evaluated without the val split.")
        return None
    if evaluate is None:
        remarks.append(f"{flaw}; run `fcos report RUN` to evaluate best.pt.")
        return None
    try:
        evaluation = evaluate(folder / BEST, val)
    except FCOSError as error:
        remarks.append(f"{flaw}, and the evaluation of best.pt failed: {error}")
        return None
    if is_named and not is_of(evaluation, best):
        raise other_data(folder, "val", val)
    if saved is None and (is_of(evaluation, best) or not best.metrics):
        save_evaluation(evaluation, folder / "val")
    remarks.append(f"{flaw}; best.pt was evaluated for this report{'' if saved is None else ', val/ is unchanged'}.")
    return evaluation


def _find_flaw(saved: Evaluation | None, best: Checkpoint, val: Annotations | None) -> str | None:
    """Return why the saved evaluation is not a valid evaluation of best.pt on val; None if it is valid."""
    if saved is None:
        return "val/ contains no complete evaluation"
    changed = detection_changes(saved)
    if changed:
        return f"The evaluation in val/ was made with other options than the training ({join_some(changed)})"
    if val is not None and not _fits(saved, val):
        return "The evaluation in val/ belongs to other weights or data"
    same_metrics = is_of(saved, best)
    if same_metrics and (val is None or saved.annotations_digest == val.digest()):
        return None
    if same_metrics and not saved.annotations_digest:
        return "The evaluation in val/ does not record which data it used"
    return "The evaluation in val/ belongs to other weights or data"


def _fits(saved: Evaluation, val: Annotations) -> bool:
    """Return whether an evaluation is about the classes and images of val."""
    images = {detection["image_id"] for detection in saved.detections}
    categories = {detection["category_id"] for detection in saved.detections}
    return (
        saved.per_class.keys() == set(val.class_names)
        and images <= set(val.image_ids.tolist())
        and categories <= set(val.category_ids)
    )


def _read_rows(folder: Path) -> list[dict[str, str]]:
    """Read the rows of metrics.csv; an incomplete last row of an interrupted run is left out."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [row for row in rows if row.get("iteration", "").isdecimal()]


def _to_number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _read_environment(folder: Path) -> dict[str, str]:
    try:
        values = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in values.items()} if isinstance(values, dict) else {}
