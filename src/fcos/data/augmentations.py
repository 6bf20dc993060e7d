"""Augmentations. A new one needs a class in this module, an entry in `AUGMENTATIONS` and an option in `DataConfig`."""

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
from .geometry import flip_boxes, flip_keypoints


class Placement(NamedTuple):
    """Window of a resized image.

    Attributes:
        size: (height, width) of the window.
        whole: (height, width) of the entire resized image.
        origin: (x, y) of the window in the resized image.
    """

    size: tuple[int, int]
    whole: tuple[int, int]
    origin: tuple[int, int]

    @staticmethod
    def whole_of(size: tuple[int, int]) -> Placement:
        """Return the placement of an entire image that is resized to (height, width)."""
        return Placement(size, size, (0, 0))


class Augmentation(ABC):
    """Base class of `SizeAugmentation` and `ImageAugmentation`; draws the random parameters for an image.

    Attributes:
        offset: None: the augmentation has a separate random generator; use this for every new augmentation. An integer:
            the augmentation uses the generator shared by the oldest augmentations and skips this many of its numbers,
            which the others draw. Recorded runs depend on this value.
    """

    offset: ClassVar[int | None] = None

    @classmethod
    @abstractmethod
    def of(cls, config: DataConfig) -> Augmentation:
        """Build the augmentation from the options of a config."""

    @abstractmethod
    def draw(self, generator: Random) -> Any:
        """Draw the parameters for one image."""


class SizeAugmentation(Augmentation):
    """Augmentation of the size or the window of an image, applied before resizing: the image is resampled only once."""

    @abstractmethod
    def place(self, placement: Placement, drawn: Any) -> Placement:
        """Return the new placement of an image.

        Args:
            placement: placement after the previous augmentations.
            drawn: parameters from `draw`.
        """


class ImageAugmentation(Augmentation):
    """Augmentation of a resized image and its objects."""

    @abstractmethod
    def change(
        self, image: Image.Image, objects: Objects, drawn: Any, convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """Return the augmented image and its objects.

        Args:
            image: RGB image.
            objects: objects of the image, boxes in pixels of `image`.
            drawn: parameters from `draw`.
            convention: box convention of `objects`.
        """


@dataclass(frozen=True)
class Flip(ImageAugmentation):
    """Random horizontal flip.

    Attributes:
        probability: probability of a flip, 0..1.
        keypoint_order: the keypoint that becomes each keypoint of the flipped image, see `keypoints.flip_order`.
    """

    offset = 0
    probability: float
    keypoint_order: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: DataConfig) -> Flip:
        """Build the augmentation from `data.flip`."""
        return cls(config.flip)

    def draw(self, generator: Random) -> bool:
        """Draw whether to flip the image."""
        return generator.random() < self.probability

    def change(
        self, image: Image.Image, objects: Objects, drawn: bool, convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """Flip the image and its objects if `drawn` is True."""
        if not drawn:
            return image, objects
        image, width = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.width
        masks, keypoints = objects.masks, objects.keypoints
        if masks is not None:
            masks = masks.flip(width, convention=convention)
        if keypoints is not None:
            keypoints = flip_keypoints(keypoints, width, convention, order=self.keypoint_order)
        boxes = flip_boxes(objects.boxes, width, convention)
        return image, replace(objects, boxes=boxes, masks=masks, keypoints=keypoints)


class ZoomDraw(NamedTuple):
    """Scale factor, and relative (x, y) position of the kept window (0: left or top, 1: right or bottom)."""

    scale: float
    window: tuple[float, float]


@dataclass(frozen=True)
class Zoom(SizeAugmentation):
    """Random zoom (large-scale jittering, arXiv:2012.07177).

    The resized image is scaled by a random factor. Where it exceeds its previous size, a random window of that size is
    kept. Batches therefore do not become larger.

    Attributes:
        scales: (smallest, largest) scale factor; the factor is drawn log-uniformly.
    """

    offset = 1
    scales: tuple[float, float]

    @classmethod
    def of(cls, config: DataConfig) -> Zoom:
        """Build the augmentation from `data.zoom`."""
        return cls(config.zoom)

    def draw(self, generator: Random) -> ZoomDraw:
        """Draw the scale factor and the position of the window."""
        scale = math.exp(generator.uniform(*map(math.log, self.scales)))
        return ZoomDraw(scale, (generator.random(), generator.random()))

    def place(self, placement: Placement, drawn: ZoomDraw) -> Placement:
        """Scale the resized image and keep the drawn window."""
        height, width = (max(round(side * drawn.scale), 1) for side in placement.whole)
        size = min(placement.size[0], height), min(placement.size[1], width)
        x, y = drawn.window
        return Placement(size, (height, width), (round(x * (width - size[1])), round(y * (height - size[0]))))


@dataclass(frozen=True)
class ColorJitter(ImageAugmentation):
    """Random colour jitter: multiplies brightness, contrast and saturation by random factors.

    Attributes:
        strength: largest deviation of the factors from 1, 0..1.
    """

    offset = 4
    strength: float

    @classmethod
    def of(cls, config: DataConfig) -> ColorJitter:
        """Build the augmentation from `data.color_jitter`."""
        return cls(config.color_jitter)

    def draw(self, generator: Random) -> tuple[float, float, float]:
        """Draw the factors for brightness, contrast and saturation."""
        low, high = 1 - self.strength, 1 + self.strength
        return generator.uniform(low, high), generator.uniform(low, high), generator.uniform(low, high)

    def change(
        self, image: Image.Image, objects: Objects, drawn: tuple[float, float, float], convention: BoxConvention
    ) -> tuple[Image.Image, Objects]:
        """Apply the factors to the image; the objects are returned unchanged."""
        if self.strength:
            brightness, contrast, saturation = drawn
            image = ImageEnhance.Brightness(image).enhance(brightness)
            image = ImageEnhance.Contrast(image).enhance(contrast)
            image = ImageEnhance.Color(image).enhance(saturation)
        return image, objects


AUGMENTATIONS: tuple[type[Augmentation], ...] = (Flip, Zoom, ColorJitter)
"""All augmentations, in the order in which they are applied."""
