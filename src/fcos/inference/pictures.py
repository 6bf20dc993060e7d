"""Detection in pictures of any size, with the options of one call of `Detector.predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..config import Config
from ..data.loader import pad_views, same_size_batches
from ..data.transforms import Transform
from ..structures import Instances
from .detect import detect_on_originals
from .selection import Selected, Selection
from .tiling import Region, Tiling, detect_in_tiles

if TYPE_CHECKING:
    from ..models import DetectionModel


@dataclass(frozen=True, eq=False)
class PictureDetection:
    """Function from pictures to their detections.

    Attributes:
        model: model in evaluation mode.
        config: its config.
        transforms: transforms of the views, see `detection_views`.
        thresholds: [K] score thresholds of the classes.
        selection: options that select detections.
        tiling: tiles of large pictures; None: no tiles.
    """

    model: DetectionModel
    config: Config
    transforms: Sequence[Transform]
    thresholds: torch.Tensor
    selection: Selection
    tiling: Tiling | None = None

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Selected]:
        """Return the detections in pixels of each picture."""
        tiling = self.tiling
        if tiling is None:
            return self._detect(pictures)
        small = iter(self._detect([picture for picture in pictures if max(picture.size) <= tiling.size]))
        return [
            next(small) if max(picture.size) <= tiling.size else self._detect_tiles(picture, tiling)
            for picture in pictures
        ]

    def _detect_tiles(self, picture: Image.Image, tiling: Tiling) -> Selected:
        of_regions: list[Selected] = []

        def detect(regions: Sequence[Region]) -> list[Instances]:
            selected = self._detect([picture.crop(region) for region in regions])
            of_regions.extend(found._replace(detections=found.detections[:0]) for found in selected)
            return [found.detections for found in selected]

        options = self.model.postprocess
        nms_threshold = self.selection.nms_threshold or (0.0 if options is None else options.nms_threshold)
        merged = detect_in_tiles(
            detect,
            (picture.height, picture.width),
            tiling,
            nms_threshold=nms_threshold if nms_threshold > 0 else 0.6,
            batch_size=self.config.eval.batch_size,
        )
        num_below, best_below = [found.num_below for found in of_regions], [found.best_below for found in of_regions]
        return Selected(merged[: int(self.selection.max_detections or 0) or None], sum(num_below), max(best_below))

    def _detect(self, pictures: Sequence[Image.Image]) -> list[Selected]:
        """Detect without tiles; pictures with the same padded shape form a batch."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        results: dict[int, Selected] = {}
        for members in same_size_batches(sizes, self.transforms, self.config.data.size_divisor, len(pictures)):
            results |= zip(members, self._detect_batch([pictures[i] for i in members]), strict=True)
        return [results[i] for i in range(len(pictures))]

    def _detect_batch(self, pictures: Sequence[Image.Image]) -> list[Selected]:
        images = [[transform(picture).image for transform in self.transforms] for picture in pictures]
        padded = pad_views(images, self.transforms, size_divisor=self.config.data.size_divisor)
        limit = self.model.postprocess.max_detections if self.model.postprocess else 0
        selected: list[Selected] = []

        def select(detections: list[Instances]) -> list[Instances]:
            selected.extend(self.selection.select(image, self.thresholds, limit=limit) for image in detections)
            return [image.detections for image in selected]

        model, views = self.selection.configure(self.model), [view.to(self.model.device) for view in padded]
        found = detect_on_originals(model, views, [(image.height, image.width) for image in pictures], select=select)
        return [image._replace(detections=detections) for image, detections in zip(selected, found, strict=True)]
