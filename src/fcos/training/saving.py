"""Saving the weights of a run. A full disk does not end the run: failed writes are repeated later."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ..checkpoint import save_checkpoint
from ..config import Config
from ..distributed import broadcast, rank
from ..errors import TrainingError
from ..evaluation.results import save_evaluation
from ..files import describe_write_error
from ..keypoints import KeypointLayout
from .folder import BEST, LAST

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation

logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """Weights to save, with the metadata of their file, see `Checkpoint`."""

    model: nn.Module
    metrics: dict[str, float]
    thresholds: dict[str, float]
    iteration: int


class Saver:
    """Writer of weights files and evaluations to the run folder.

    Only rank 0 writes weights, and all processes learn the outcome. If a file cannot be written, the error is reported
    once, the previous file stays, and the next save tries again.

    Args:
        folder: run folder.
        config: resolved config, stored in every file.
        class_names: class names, [K].
        category_ids: category ids, [K].
        licence: licence of the initial weights, see `Checkpoint`.
        keypoint_layout: meaning of the keypoints, see `Checkpoint`.

    Attributes:
        unsaved_best: best weights that could not yet be written to weights/best.pt; None if there are none.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        licence: str,
        keypoint_layout: KeypointLayout,
    ) -> None:
        self.folder, self.config, self.licence = folder, config, licence
        self.keypoint_layout = keypoint_layout
        self.class_names, self.category_ids = class_names, category_ids
        self.unsaved_best: Weights | None = None
        self._errors: dict[Path, str] = {}

    def save_last(self, weights: Weights, training: dict[str, Any]) -> None:
        """Write weights/last.pt with the training state for resuming."""
        self._save(LAST, weights, training)

    def save_best(self, weights: Weights) -> None:
        """Write weights/best.pt; if that fails, keep a copy of the weights in `unsaved_best`."""
        saved = self._save(BEST, weights, None)
        self.unsaved_best = None if saved else weights._replace(model=copy.deepcopy(weights.model).cpu())

    def save_best_again(self) -> None:
        """Try again to write `unsaved_best` to weights/best.pt, if it is set."""
        if self.unsaved_best and self._save(BEST, self.unsaved_best, None):
            self.unsaved_best = None

    def save_evaluation(self, evaluation: Evaluation) -> None:
        """Write val/metrics.json and val/detections.json. A failure is only a warning: `fcos val` can repeat this."""
        if rank() == 0:
            try:
                save_evaluation(evaluation, self.folder / "val")
            except OSError as error:
                logger.warning("warning: not saved: %s", describe_write_error(error))

    def require_saved(self, resume_hint: str) -> None:
        """Check that every weights file has been written, before the run ends.

        Args:
            resume_hint: hint for the error message on how to resume the run.

        Raises:
            TrainingError: the last attempt to write a file failed.
        """
        self.save_best_again()
        if self._errors:
            errors = "; ".join(f"{self.folder / file}: not saved: {error}" for file, error in self._errors.items())
            raise TrainingError(f"{errors}; files saved earlier are unchanged; fix this, then {resume_hint}")

    def _save(self, file: Path, weights: Weights, training: dict[str, Any] | None) -> bool:
        """Write a weights file; return True if this succeeded, the same on all processes."""
        message = None
        if rank() == 0:
            try:
                save_checkpoint(
                    self.folder / file,
                    model=weights.model,
                    config=self.config,
                    class_names=self.class_names,
                    category_ids=self.category_ids,
                    metrics=weights.metrics,
                    thresholds=weights.thresholds,
                    iteration=weights.iteration,
                    licence=self.licence,
                    keypoint_layout=self.keypoint_layout,
                    training=training,
                    keep=self.config.train.keep if file == LAST else 1,
                )
            except OSError as error:
                message = describe_write_error(error)
                if message != self._errors.get(file):
                    logger.warning(
                        "warning: %s: not saved: %s; files saved earlier are unchanged, and saving will be tried again",
                        self.folder / file,
                        message,
                    )
        message = broadcast(message)
        self._errors.pop(file, None)
        if message is not None:
            self._errors[file] = message
        return message is None
