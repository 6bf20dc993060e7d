"""Creation of the report page of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.dataset import Annotations
from ..errors import ConfigError
from ..evaluation.evaluate import Evaluation, detection_limit
from ..html_page import Page
from .analysis import analyse
from .detection import add_confusion, add_curves, add_errors, add_metrics, add_thresholds
from .examples import add_images
from .history import add_classes, add_environment, add_history, add_speed, add_summary
from .record import Record, Splits, read_record

logger = logging.getLogger(__name__)

FILE = "report.html"


def write_report(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    data: Splits | None = None,
    evaluate: Callable[[Path, Annotations], Evaluation] | None = None,
) -> Path:
    """Write `report.html` into the folder of a run, replacing an earlier report; remarks are also logged as warnings.

    Args:
        folder: run folder; the run may be unfinished.
        overrides: `key=value` options for the data and the evaluation, see `read_record`.
        data: splits of the run; None reads them from disk.
        evaluate: function that evaluates a weights file on val if needed, see `read_record`.

    Returns:
        Path of the report.

    Raises:
        ConfigError: the folder is not a run folder, or an override is wrong, see `read_record`; or `report.html` is a
            folder.
        DataError: data named by an override cannot be read, or is not the data of the run.
        OSError: the disk is full or not writable.
    """
    path = folder / FILE
    if path.is_dir():
        raise ConfigError(
            f"{path}: expected a file, found a folder; move or rename it, so that the report can be written"
        )
    record = read_record(folder, overrides, data=data, evaluate=evaluate)
    for remark in record.remarks:
        logger.warning("report: %s", remark)
    page = Page(f"Run {folder.resolve().name}", footer="Created by fcos report. This page makes no network requests.")
    add_summary(page, record)
    add_history(page, record)
    if record.evaluation is not None:
        add_metrics(page, record.evaluation)
        if record.data.val is not None and not record.data.val.crowd.all():
            _add_analysis(page, record, record.data.val, record.evaluation)
    add_speed(page, record)
    add_classes(page, record)
    add_environment(page, record)
    page.save(path)
    return path


def _add_analysis(page: Page, record: Record, val: Annotations, evaluation: Evaluation) -> None:
    """Add the sections that compare the detections with the annotations of val."""
    analysis = analyse(
        val,
        evaluation,
        default_threshold=record.config.model.default_threshold,
        max_detections=detection_limit(record.config),
    )
    add_curves(page, analysis)
    add_thresholds(page, analysis, record)
    add_confusion(page, analysis)
    add_errors(page, analysis)
    add_images(page, analysis)
