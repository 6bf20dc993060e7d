"""Detector for pictures in any form, with results in pixels of the original pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..data.loader import pad_views, same_size_batches
from ..data.transforms import detection_views
from ..errors import WeightsError
from ..structures import Instances
from .detect import detect_on_originals
from .inputs import Picture, to_picture

if TYPE_CHECKING:
    from ..models import DetectionModel


class Detector:
    """Trained model with its config, class names, category ids and score thresholds.

    Attributes:
        model: model in evaluation mode.
        config: config that the model was trained with.
        class_names: [K] names of the classes; empty if unknown.
        category_ids: [K] ids of the classes in the training data.
        is_trained: False if the head has random weights; `predict` then refuses to run.
    """

    def __init__(
        self,
        model: DetectionModel,
        config: Config,
        *,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        thresholds: Mapping[str, float] | None = None,
        is_trained: bool = True,
    ):
        self.model = model.eval()
        self.config = config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids) or tuple(range(model.num_classes))
        self.is_trained = is_trained
        self._stored_thresholds = dict(thresholds or {})
        self._transforms = detection_views(config)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def thresholds(self) -> Tensor:
        """Per-class score thresholds, [K] float64; `predict` leaves out detections with lower scores.

        They have the highest F1 on the validation set (closer to the default for classes with few objects) and are
        stored in best.pt by `fcos train`. Classes without a stored threshold use the model's `default_threshold`.
        """
        default = self.model.default_threshold
        names = self.class_names or [""] * self.model.num_classes
        return torch.tensor([self._stored_thresholds.get(name, default) for name in names], dtype=torch.float64)

    @overload
    def predict(
        self, images: Picture, *, threshold: float | None = None, batch_size: int | None = None
    ) -> Instances: ...
    @overload
    def predict(
        self, images: Sequence[Picture], *, threshold: float | None = None, batch_size: int | None = None
    ) -> list[Instances]: ...

    def predict(
        self, images: Picture | Sequence[Picture], *, threshold: float | None = None, batch_size: int | None = None
    ) -> Instances | list[Instances]:
        """Detect objects in one or several pictures of any size.

        The config sets test-time augmentation (`eval.flip` and `eval.scales`).

        Args:
            images: a path, http(s) URL, PIL image, array ([H, W, 3] RGB or [H, W] grey, uint8) or tensor ([3, H, W] RGB
                or [1, H, W] grey, uint8 or float in 0..1); or a list of them.
            threshold: score threshold for all classes, in 0..1; None uses the per-class `thresholds`. The limits in the
                model's config also apply (for FCOS: `model.score_threshold` and `model.max_detections`).
            batch_size: number of pictures processed at a time; None uses `config.eval.batch_size`. The result does not
                depend on it, because only pictures of the same padded shape form a batch.

        Returns:
            The detections of every picture, best first, with continuous XYXY boxes inside the original picture, on the
            CPU. A list for a list of pictures, a single result for a single picture.

        Raises:
            WeightsError: the detector is untrained.
            DataError: a file is not a picture, or an array has a wrong shape, type or range.
            ValueError: the threshold is outside 0..1, or the batch size is below 1.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
            return self.predict([images], threshold=threshold, batch_size=batch_size)[0]
        if not self.is_trained:
            raise WeightsError(
                "the detector is untrained: its head has random weights; load trained weights, such as"
                " runs/NAME/weights/best.pt"
            )
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected 0..1, found {threshold}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        step = batch_size or self.config.eval.batch_size
        results: list[Instances] = []
        for start in range(0, len(images), step):
            numbered = zip(range(start, start + step), images[start:], strict=False)
            chunk = [to_picture(image, where=f"images[{i}]") for i, image in numbered]
            results += [found[self.is_shown(found, threshold)] for found in self._detect(chunk)]
        return results

    def is_shown(self, instances: Instances, threshold: float | None = None) -> Tensor:
        """Return a mask [D] of the detections that reach their score threshold, see `predict`."""
        thresholds = self.thresholds if threshold is None else torch.full_like(self.thresholds, threshold)
        return instances.scores >= thresholds[instances.labels]

    def _detect(self, pictures: Sequence[Image.Image]) -> list[Instances]:
        """Return the detections in pixels of each picture; pictures with the same padded shape form a batch."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        divisor = self.config.data.size_divisor
        results: dict[int, Instances] = {}
        for members in same_size_batches(sizes, self._transforms, divisor, len(pictures)):
            images = [[transform(pictures[i]).image for transform in self._transforms] for i in members]
            views = [view.to(self.device) for view in pad_views(images, self._transforms, size_divisor=divisor)]
            results |= zip(members, detect_on_originals(self.model, views, [sizes[i] for i in members]), strict=True)
        return [replace(results[i], class_names=self.class_names) for i in range(len(pictures))]
