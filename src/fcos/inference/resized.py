"""Pictures resized for a detector, which threads can prepare while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from PIL import Image
from torch import Tensor

from ..config import Config
from ..data.loader import padded_size
from ..data.transforms import Transform, detection_views


class Resized(NamedTuple):
    """Picture resized for a detector.

    Attributes:
        views: uint8 [3, h, w] of every view (test-time augmentation).
        shapes: padded (height, width) of every view.
        size: (height, width) of the picture before resizing.
    """

    views: list[Tensor]
    shapes: tuple[tuple[int, int], ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Resizer:
    """Function from RGB pictures to resized ones. It may be called from any thread.

    Attributes:
        transforms: transforms of the views, see `detection_views`.
        size_divisor: divisor of both sides of the padded sizes.
    """

    transforms: Sequence[Transform]
    size_divisor: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the function for the detectors of a config."""
        return cls(detection_views(config), config.data.size_divisor)

    def __call__(self, picture: Image.Image) -> Resized:
        """Resize a picture for every view."""
        views = [transform(picture).image for transform in self.transforms]
        shapes = tuple(padded_size(view.shape[-2:], self.size_divisor) for view in views)
        return Resized(views, shapes, (picture.height, picture.width))


def group_by_shape(pictures: Sequence[Resized]) -> list[list[int]]:
    """Return the positions of pictures that can form a batch because their views have the same padded shapes."""
    groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for i, picture in enumerate(pictures):
        groups.setdefault(picture.shapes, []).append(i)
    return list(groups.values())
