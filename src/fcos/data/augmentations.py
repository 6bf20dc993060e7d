"""Augmentations. A new one needs a class in this module, an entry in `AUGMENTATIONS` and an option in `DataConfig`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

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
    def draw(self, generator: Random, strength: float) -> Any:
        """Draw the parameters for one image.

        Args:
            generator: source of the random numbers; how many are drawn does not depend on `strength`.
            strength: from 0, no change, to 1, as configured; see `augmentation_strength`.
        """


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
    def change(self, image: Tensor, objects: Objects, drawn: Any, convention: BoxConvention) -> tuple[Tensor, Objects]:
        """Return the augmented image and its objects.

        Args:
            image: uint8 [3, h, w] RGB.
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

    def draw(self, generator: Random, strength: float) -> bool:
        """Draw whether to flip the image; the probability does not depend on `strength`."""
        return generator.random() < self.probability

    def change(self, image: Tensor, objects: Objects, drawn: bool, convention: BoxConvention) -> tuple[Tensor, Objects]:
        """Flip the image and its objects if `drawn` is True."""
        if not drawn:
            return image, objects
        image, width = image.flip(2), image.shape[2]
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

    def draw(self, generator: Random, strength: float) -> ZoomDraw:
        """Draw the scale factor, whose logarithm is multiplied by `strength`, and the position of the window."""
        scale = math.exp(strength * generator.uniform(*map(math.log, self.scales)))
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

    def draw(self, generator: Random, strength: float) -> tuple[float, float, float]:
        """Draw the factors for brightness, contrast and saturation; their deviations are multiplied by `strength`."""
        low, high = 1 - strength * self.strength, 1 + strength * self.strength
        return generator.uniform(low, high), generator.uniform(low, high), generator.uniform(low, high)

    def change(
        self, image: Tensor, objects: Objects, drawn: tuple[float, float, float], convention: BoxConvention
    ) -> tuple[Tensor, Objects]:
        """Apply the factors to the image; the objects are returned unchanged."""
        return (_jitter(image, *drawn) if self.strength else image), objects


def _jitter(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Multiply brightness, contrast and saturation, with the same values as Pillow's `ImageEnhance`.

    Pillow extrapolates from a degenerate image (black, grey of the mean brightness, or without colours) in float32 and
    cuts off decimals.
    """
    pixels = image.permute(1, 2, 0).to(torch.float32)  # [h, w, 3], contiguous

    def extrapolate(start: Tensor | float, factor: float) -> None:
        pixels.sub_(start).mul_(factor).add_(start).clamp_(0, 255).trunc_()

    extrapolate(0.0, brightness)
    extrapolate(int(_brightness(pixels).mean(dtype=torch.float64).item() + 0.5), contrast)
    extrapolate(_brightness(pixels)[..., None], saturation)
    return pixels.to(torch.uint8).permute(2, 0, 1)


def _brightness(pixels: Tensor) -> Tensor:
    """Return Pillow's mode L of RGB pixels, float32 [h, w, 3] -> [h, w]; exact, as all sums are integers below 2^24."""
    return (pixels @ pixels.new_tensor([19595.0, 38470.0, 7471.0])).add_(32768.0).mul_(1 / 65536).floor_()


AUGMENTATIONS: tuple[type[Augmentation], ...] = (Flip, Zoom, ColorJitter)
"""All augmentations, in the order in which they are applied."""


def augmentation_strength(seen: float, total: float, options: DataConfig) -> float:
    """Return the strength of the augmentations at a point of a run, 0..1.

    At the end of the run, while the learning rate is low, images look like those of detection. Strong augmentation
    lowers AP if a run has few images per class, so a short run starts at a lower strength.

    Args:
        seen: number of images per class that the run has trained on.
        total: number of images per class in the whole run; infinite if unknown.
        options: `augmentation_warmup` and `augmentation_fade` are used.
    """
    strength = min(seen / options.augmentation_warmup, 1.0) if options.augmentation_warmup else 1.0
    if options.augmentation_fade:
        strength *= min(total / options.augmentation_fade, 1.0) * max(1 - seen / total, 0.0)
    return strength
