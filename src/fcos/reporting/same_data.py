"""Checks that data named on the command line is that of the run, so that no report shows figures of other data."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Checkpoint
from ..config import Config
from ..data import load_annotations
from ..data.dataset import Annotations
from ..data.source import Split
from ..errors import ConfigError, DataError
from ..evaluation.evaluate import Evaluation
from ..evaluation.results import detection_changes, nearly_equal
from ..training.folder import BEST


def is_of(evaluation: Evaluation, best: Checkpoint) -> bool:
    """Return whether an evaluation has the metrics of a weights file, and the options of its training."""
    is_same_detector = bool(best.metrics) and not detection_changes(evaluation)
    return is_same_detector and nearly_equal(best.metrics, evaluation.metrics)


def check_same_data(
    folder: Path,
    config: Config,
    named: dict[Split, Annotations],
    *,
    best: Checkpoint | None,
    saved: Evaluation | None,
) -> None:
    """Raise DataError if a split named on the command line is not that of the run.

    Val is compared with the saved evaluation of best.pt. Without one, and for train, it is compared with the data at
    its original location, if that can still be read.

    Args:
        folder: run folder.
        config: config of the run.
        named: splits that options name, as read.
        best: checkpoint weights/best.pt.
        saved: evaluation in the folder val/.

    Raises:
        DataError: a named split contains other images, classes or boxes.
    """
    for split, data in named.items():
        if (
            split == "val"
            and saved is not None
            and best is not None
            and is_of(saved, best)
            and saved.annotations_digest
        ):
            digest = saved.annotations_digest
        else:
            digest = _original_digest(config, split, data)
        if digest not in (None, data.digest()):
            raise other_data(folder, split, data)


def other_data(folder: Path, split: Split, data: Annotations) -> DataError:
    """Return the error for a split that is not that of the run."""
    return DataError(
        f"data: {split} in {data.root} is not the {split} split of the run; it has other images, classes or"
        " boxes, or another data.bit_depth. A report shows a run with the data that it was trained and evaluated on. To"
        f" evaluate its weights on other data: fcos val {folder / BEST} data=DIR"
    )


def _original_digest(config: Config, split: Split, data: Annotations) -> str | None:
    """Return the digest of a split at its original location, empty if it does not exist; None if it is unreadable."""
    try:
        original = load_annotations(
            config.data,
            split,
            class_names=data.class_names,
            category_ids=data.category_ids,
            one_class=config.model.is_class_agnostic,
        )
    except (DataError, ConfigError):
        return None
    return "" if original is None else original.digest()
