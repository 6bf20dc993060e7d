"""A detector that takes pictures in any form and answers in pixels of the original."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..data.loader import pad, padded_size
from ..data.transforms import detection_views
from ..structures import Instances, View
from .augment import detect_in_views
from .inputs import Picture, to_picture

if TYPE_CHECKING:
    from ..models import FCOS

DEFAULT_THRESHOLD = 0.5
"""Of classes without one of their own. Scores are sqrt(class probability x centerness). The original's thresholds of
best F-measure, one for every class of COCO, lie at 0.41 to 0.67, half of them below 0.5."""


def default_threshold(score: Literal["sqrt", "product"]) -> float:
    """The threshold of classes without one of their own, for scores with (`sqrt`) or without the root."""
    return DEFAULT_THRESHOLD if score == "sqrt" else DEFAULT_THRESHOLD**2


class Detector:
    """A model with what belongs to it: sizes, class names, category ids.

    Attributes:
        model: in evaluation mode.
        config: what it was trained with.
        class_names: [K]; empty when unknown.
        category_ids: [K], the training data's own id of every class.
    """

    def __init__(
        self,
        model: FCOS,
        config: Config,
        *,
        class_names: Sequence[str] = (),
        category_ids: Sequence[int] = (),
        thresholds: Mapping[str, float] | None = None,
    ):
        self.model = model.eval()
        self.config = config
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids) or tuple(range(model.num_classes))
        self._own_thresholds = dict(thresholds or {})
        self._transforms = detection_views(config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.pixel_mean.device

    @property
    def thresholds(self) -> Tensor:
        """[K] float64, the scores below which `predict` shows nothing of a class.

        Those of best F1 on val, which `fcos train` leaves in best.pt; of other classes 0.5, or 0.25 where scores have
        no root (`model.score`).
        """
        default = default_threshold(self.model.score)
        names = self.class_names or [""] * self.model.num_classes
        return torch.tensor([self._own_thresholds.get(name, default) for name in names], dtype=torch.float64)

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
        """Detect on one picture or several, of any sizes.

        Args:
            images: a path, http(s) URL, PIL image, array ([H, W, 3] RGB or [H, W] grey, uint8) or tensor ([3, H, W] RGB
                or [1, H, W] grey, uint8 or float in 0..1); or a list of them.
            threshold: lower scores are left out, 0..1; None: those of the classes, `thresholds`. The model's own limits
                hold beside it (`model.score_threshold`, `model.max_detections`).
            batch_size: pictures a step; None: `config.eval.batch_size`. The result does not depend on it: pictures are
                batched with others of the same padded shape only. `eval.flip` and `eval.scales` augment.

        Returns:
            For every picture its detections, best first: continuous XYXY boxes inside the original picture, on the CPU.
            A single result for a single picture.

        Raises:
            DataError: a file that is no picture, or an array of another shape, type or range.
            ValueError: a threshold outside 0..1, or a batch size below 1.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
            return self.predict([images], threshold=threshold, batch_size=batch_size)[0]
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected 0..1, found {threshold}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        thresholds = self.thresholds if threshold is None else torch.full_like(self.thresholds, threshold)
        step = batch_size or self.config.eval.batch_size
        results: list[Instances] = []
        for start in range(0, len(images), step):
            numbered = zip(range(start, start + step), images[start:], strict=False)
            chunk = [to_picture(image, where=f"images[{i}]") for i, image in numbered]
            results += [found[found.scores >= thresholds[found.labels]] for found in self._detect(chunk)]
        return results

    def _detect(self, pictures: Sequence[Image.Image]) -> list[Instances]:
        """Detections in pixels of each picture; those of one padded shape pass the model together."""
        seen = [[transform(picture).image for transform in self._transforms] for picture in pictures]
        groups: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        divisor = self.config.data.size_divisor
        for i, images in enumerate(seen):
            groups[tuple(padded_size(image.shape[1:], divisor) for image in images)].append(i)
        results: dict[int, Instances] = {}
        for members in groups.values():
            views = [
                View(*pad([seen[i][k] for i in members], size_divisor=divisor), flipped=transform.flip > 0)
                for k, transform in enumerate(self._transforms)
            ]
            every = detect_in_views(self.model, [view.to(self.device) for view in views])
            results |= {i: self._finish(found, pictures[i]) for i, found in zip(members, every, strict=True)}
        return [results[i] for i in range(len(pictures))]

    def _finish(self, found: Instances, picture: Image.Image) -> Instances:
        """To continuous boxes inside the original picture, with class names."""
        found = found.to("cpu").resize_to((picture.height, picture.width)).to_continuous(self.model.box_convention)
        limit = found.boxes.new_tensor([picture.width, picture.height] * 2)
        boxes = torch.minimum(found.boxes.clamp(min=0), limit)
        return replace(found, boxes=boxes, class_names=self.class_names)
