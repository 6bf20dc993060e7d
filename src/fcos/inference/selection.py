"""Selection of the detections that a call of `Detector.predict` returns."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..config.text import suggest
from ..errors import ConfigError
from ..formatting import join_some, quote
from ..structures import Instances

if TYPE_CHECKING:
    from ..models import DetectionModel


@dataclass(frozen=True)
class Selection:
    """Options of `Detector.predict` that select detections; None leaves an option to the detector.

    Attributes:
        threshold: score threshold of all classes, 0..1, or of some classes by label.
        labels: labels of the classes to return.
        max_detections: largest number of detections per picture; 0: no limit.
        nms_threshold: IoU in 0..1 above which the lower-scoring of two boxes of a class is suppressed; 0: no
            suppression.

    Raises:
        ConfigError: an option is not a number or out of range.
    """

    threshold: float | Mapping[int, float] | None = None
    labels: Sequence[int] | None = None
    max_detections: int | None = None
    nms_threshold: float | None = None

    def __post_init__(self) -> None:
        thresholds = self.threshold.values() if isinstance(self.threshold, Mapping) else [self.threshold]
        for name, value in [*(("threshold", value) for value in thresholds), ("nms_threshold", self.nms_threshold)]:
            if value is not None and not 0 <= _to_number(value) <= 1:
                raise ConfigError(f"{name}: expected a number from 0 to 1, found {quote(value)}")
        require_count("max_detections", self.max_detections, at_least=0)

    def configure(self, model: DetectionModel) -> DetectionModel:
        """Return the detector with these options, as a copy with the same parameters if they differ from its own.

        The copy has no limit on the number of detections if `select` applies one to the selected detections.

        Raises:
            ConfigError: the detector has no `nms_threshold`.
        """
        options = model.postprocess
        if options is None:
            if self.nms_threshold is not None:
                raise ConfigError("nms_threshold: this detector has no such option")
            return model
        if self.nms_threshold is not None:
            options = replace(options, nms_threshold=self.nms_threshold)
        if self.max_detections is not None or self.labels is not None:
            options = replace(options, max_detections=0)
        if options == model.postprocess:
            return model
        configured = copy.copy(model)
        configured.postprocess = options
        return configured

    def select(self, detections: Instances, thresholds: Tensor, *, limit: int) -> Selected:
        """Select detections on the CPU.

        Args:
            detections: detections of the configured detector, best first.
            thresholds: [K] score thresholds of the classes, used for those that `threshold` does not give.
            limit: largest number of detections if `max_detections` is None; 0 or less: no limit.
        """
        if isinstance(self.threshold, Mapping):
            thresholds = thresholds.clone()
            for label, value in self.threshold.items():
                thresholds[label] = value
        elif self.threshold is not None:
            thresholds = torch.full_like(thresholds, self.threshold)
        if self.labels is not None:
            detections = detections[torch.isin(detections.labels, torch.tensor(self.labels, dtype=torch.int64))]
        is_shown = detections.scores >= thresholds[detections.labels]
        selected, below = detections[is_shown], detections.scores[~is_shown].tolist()
        if self.labels is not None or self.max_detections is not None:  # otherwise the detector has applied its limit
            limit = limit if self.max_detections is None else int(self.max_detections)
            selected = selected[: limit if limit > 0 else None]
        return Selected(selected, len(below), max(below, default=0.0))


class Selected(NamedTuple):
    """Selected detections of a picture.

    Attributes:
        detections: the selected detections, best first.
        num_below: number of the detections of the wanted classes that do not reach their score threshold.
        best_below: highest score of those detections; 0 if there are none.
    """

    detections: Instances
    num_below: int
    best_below: float


def find_labels(classes: Sequence[str], names: Sequence[str], *, option: str = "classes") -> list[int]:
    """Return the labels of classes given by name.

    Args:
        classes: names of the wanted classes.
        names: [K] names of all classes.
        option: name of the option, for messages.

    Raises:
        ConfigError: `classes` is not a list of names, or a name is unknown.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ConfigError(f"{option}: expected a list of class names, found {quote(classes)}")
    for name in classes:
        if name not in names:
            raise ConfigError(
                f"{option}: no class {quote(name)}{suggest(str(name), names)}; the detector has {join_some(names)}"
            )
    return [names.index(name) for name in classes]


def require_count(name: str, value: int | None, *, at_least: int) -> None:
    """Raise `ConfigError` unless an option is None or an integer of at least `at_least`."""
    if value is None:
        return
    number = _to_number(value)
    if not number.is_integer() or number < at_least:
        raise ConfigError(f"{name}: expected an integer of at least {at_least}, found {quote(value)}")


def _to_number(value: object) -> float:
    """Convert a Python, NumPy or torch number to float; anything else to NaN."""
    try:
        return math.nan if isinstance(value, str | bool) else float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        return math.nan
