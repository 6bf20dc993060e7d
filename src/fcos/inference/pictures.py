"""Detection in pictures of any size, with the options of one call of `Detector.predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from ..config import Config
from ..structures import Instances
from .resized import Resized, group_by_shape
from .selection import Selected, Selection
from .tiling import Region, Tiling, detect_in_tiles


@dataclass(frozen=True, eq=False)
class PictureDetection:
    """Function from pictures to their detections.

    Attributes:
        detect_resized: function of a detector, see `Detector.detect_resized`.
        resize: function that resizes a picture for the detector.
        config: config of the detector.
        nms_threshold: threshold of the detector; 0: it does not suppress boxes, or has no such option.
        selection: options that select detections.
        tiling: tiles of large pictures; None: no tiles.
    """

    detect_resized: Callable[[Sequence[Resized], Sequence[Selection]], list[Selected]]
    resize: Callable[[Image.Image], Resized]
    config: Config
    nms_threshold: float
    selection: Selection
    tiling: Tiling | None = None

    def __call__(self, pictures: Sequence[Image.Image], resized: Sequence[Resized] | None = None) -> list[Selected]:
        """Return the detections in pixels of each picture.

        Args:
            pictures: the pictures.
            resized: the resized pictures; None: not yet resized. They have no effect with tiles.
        """
        tiling = self.tiling
        if tiling is None:
            return self._detect(self._resize(pictures) if resized is None else resized)
        small = iter(self._detect(self._resize([p for p in pictures if max(p.size) <= tiling.size])))
        return [
            next(small) if max(picture.size) <= tiling.size else self._detect_tiles(picture, tiling)
            for picture in pictures
        ]

    def _detect_tiles(self, picture: Image.Image, tiling: Tiling) -> Selected:
        of_regions: list[Selected] = []

        def detect(regions: Sequence[Region]) -> list[Instances]:
            selected = self._detect(self._resize([picture.crop(region) for region in regions]))
            of_regions.extend(found._replace(detections=found.detections[:0]) for found in selected)
            return [found.detections for found in selected]

        nms_threshold = self.selection.nms_threshold or self.nms_threshold
        merged = detect_in_tiles(
            detect,
            (picture.height, picture.width),
            tiling,
            nms_threshold=nms_threshold if nms_threshold > 0 else 0.6,
            batch_size=self.config.eval.batch_size,
        )
        num_below, best_below = [found.num_below for found in of_regions], [found.best_below for found in of_regions]
        return Selected(merged[: int(self.selection.max_detections or 0) or None], sum(num_below), max(best_below))

    def _resize(self, pictures: Sequence[Image.Image]) -> list[Resized]:
        return [self.resize(picture) for picture in pictures]

    def _detect(self, pictures: Sequence[Resized]) -> list[Selected]:
        """Detect without tiles; pictures with the same padded shape form a batch."""
        results: dict[int, Selected] = {}
        for members in group_by_shape(pictures):
            batch = self.detect_resized([pictures[i] for i in members], [self.selection] * len(members))
            results |= zip(members, batch, strict=True)
        return [results[i] for i in range(len(pictures))]
