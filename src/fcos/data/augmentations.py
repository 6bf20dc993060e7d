"""The table of augmentations. A new one is a class here, a row in `AUGMENTATIONS`, and an option of `DataConfig`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, NamedTuple

from PIL import Image, ImageEnhance

from ..choices import BoxConvention
from ..config import DataConfig
from ..structures import Objects
from .geometry import flip_boxes


class Placement(NamedTuple):
    """A part of a resized image.

    Attributes:
        size: (height, width) of the result.
        whole: (height, width) to which the image is resized.
        origin: (x, y) of the result in the resized image.
    """

    size: tuple[int, int]
    whole: tuple[int, int]
    origin: tuple[int, int]

    @staticmethod
    def whole_of(size: tuple[int, int]) -> Placement:
        """All of an image that is resized to (height, width)."""
        return Placement(size, size, (0, 0))


class Augmentation(ABC):
    """Draws what happens to an image; a `SizeAugmentation` or an `ImageAugmentation`.

    Attributes:
        offset: None: it draws from a generator of its own, as every new augmentation does. A number: it draws from the
            generator of the oldest augmentations, after so many numbers of the others; recorded runs depend on it.
    """

    offset: ClassVar[int | None] = None

    @classmethod
    @abstractmethod
    def of(cls, config: DataConfig) -> Augmentation:
        """With the options of a config."""

    @abstractmethod
    def draw(self, generator: Random) -> Any:
        """Draw the parameters for one image."""


class SizeAugmentation(Augmentation):
    """Changes the size to which an image is resized, or which part of it is kept: the image is resampled once."""

    @abstractmethod
    def place(self, placement: Placement, drawn: Any) -> Placement:
        """Another placement than the given one.

        Args:
            placement: so far.
            drawn: see `draw`.
        """


class ImageAugmentation(Augmentation):
    """Changes a resized image and its objects."""

    @abstractmethod
    def change(
        self, image: Image.Image, objects: Objects, drawn: Any, convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """The changed image with its objects.

        Args:
            image: RGB.
            objects: in pixels of `image`.
            drawn: see `draw`.
            convention: of the boxes.
        """


@dataclass(frozen=True)
class Flip(ImageAugmentation):
    """Mirror the image left to right.

    Attributes:
        probability: in 0..1.
    """

    offset = 0
    probability: float

    @classmethod
    def of(cls, config: DataConfig) -> Flip:
        """With `data.flip`."""
        return cls(config.flip)

    def draw(self, generator: Random) -> bool:
        """Draw whether to mirror."""
        return generator.random() < self.probability

    def change(
        self, image: Image.Image, objects: Objects, drawn: bool, convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """See `ImageAugmentation`."""
        if not drawn:
            return image, objects
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, replace(objects, boxes=flip_boxes(objects.boxes, image.width, convention))


class ZoomDraw(NamedTuple):
    """A further scale, and the (x, y) of the window that is kept, 0: left or upper end, 1: right or lower end."""

    scale: float
    window: tuple[float, float]


@dataclass(frozen=True)
class Zoom(SizeAugmentation):
    """Scale the image further without making it larger: a random window of what exceeds its size is kept.

    No batch becomes larger by it (large-scale jittering, arXiv:2012.07177).

    Attributes:
        scales: (smallest, largest), drawn evenly in the logarithm.
    """

    offset = 1
    scales: tuple[float, float]

    @classmethod
    def of(cls, config: DataConfig) -> Zoom:
        """With `data.zoom`."""
        return cls(config.zoom)

    def draw(self, generator: Random) -> ZoomDraw:
        """The scale and the window."""
        scale = math.exp(generator.uniform(*map(math.log, self.scales)))
        return ZoomDraw(scale, (generator.random(), generator.random()))

    def place(self, placement: Placement, drawn: ZoomDraw) -> Placement:
        """See `SizeAugmentation`."""
        height, width = (max(round(side * drawn.scale), 1) for side in placement.whole)
        kept = min(placement.size[0], height), min(placement.size[1], width)
        x, y = drawn.window
        return Placement(kept, (height, width), (round(x * (width - kept[1])), round(y * (height - kept[0]))))


@dataclass(frozen=True)
class ColorJitter(ImageAugmentation):
    """Multiply brightness, contrast and saturation by random factors.

    Attributes:
        strength: the factors are 1 +- this, 0..1.
    """

    offset = 4
    strength: float

    @classmethod
    def of(cls, config: DataConfig) -> ColorJitter:
        """With `data.color_jitter`."""
        return cls(config.color_jitter)

    def draw(self, generator: Random) -> tuple[float, float, float]:
        """The factors of brightness, contrast and saturation."""
        low, high = 1 - self.strength, 1 + self.strength
        return generator.uniform(low, high), generator.uniform(low, high), generator.uniform(low, high)

    def change(
        self, image: Image.Image, objects: Objects, drawn: tuple[float, float, float], convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """See `ImageAugmentation`."""
        if self.strength:
            brightness, contrast, saturation = drawn
            image = ImageEnhance.Brightness(image).enhance(brightness)
            image = ImageEnhance.Contrast(image).enhance(contrast)
            image = ImageEnhance.Color(image).enhance(saturation)
        return image, objects


AUGMENTATIONS: tuple[type[Augmentation], ...] = (Flip, Zoom, ColorJitter)
"""All augmentations, in the order in which they are applied."""
