"""Resizing and flipping, exactly as the original does; beyond it, zooming and colours for small data sets.

Sizes are (height, width) in pixels; boxes [M, 4] float32 XYXY in pixels of the image they come with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ..boxes import area, clip
from ..config import Config, DataConfig
from ..structures import BoxConvention
from .images import image_to_tensor


def resize_size(height: int, width: int, short_side: int, max_side: int | None) -> tuple[int, int]:
    """The size after scaling the shorter side to `short_side`, or less where the longer one would exceed `max_side`.

    Args:
        height: of the image, pixels, > 0.
        width: of the image, pixels, > 0.
        short_side: wanted, pixels.
        max_side: limit of the longer side; None: there is none.

    Returns:
        (height, width).

    Source: units/resize_rule of the recorded original: the reduced short side is rounded, the long side truncated, so
    that it may exceed `max_side` when the image is very long. Ours: never below one pixel.
    """
    small, large = min(height, width), max(height, width)
    if max_side is not None and large / small * short_side > max_side:
        short_side = max(round(max_side * small / large), 1)
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def resize_image(
    image: Image.Image, size: tuple[int, int], *, whole: tuple[int, int] | None = None, origin: tuple[int, int] = (0, 0)
) -> Image.Image:
    """Resize with Pillow's antialiasing bilinear filter.

    Args:
        image: any mode that Pillow filters.
        size: (height, width) of the result.
        whole: size to resize to, where the result is a part of it; `size` by default.
        origin: (x, y) of that part.
    """
    (height, width), (whole_height, whole_width), (left, top) = size, whole or size, origin
    if image.size == (width, height) == (whole_width, whole_height):
        return image
    ratio_x, ratio_y = image.width / whole_width, image.height / whole_height
    window = (
        left * ratio_x,
        top * ratio_y,
        min((left + width) * ratio_x, image.width),
        min((top + height) * ratio_y, image.height),
    )
    return image.resize((width, height), Image.Resampling.BILINEAR, box=window)


def resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale boxes with their image, each axis by its own ratio (in both conventions).

    Args:
        boxes: [M, 4].
        size: (height, width) of the image.
        new_size: (height, width) that it gets.
    """
    ratio_y, ratio_x = (new / old for new, old in zip(new_size, size, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def flip_boxes(boxes: Tensor, width: int, convention: BoxConvention) -> Tensor:
    """Mirror boxes with their image: x becomes width - x, or width - 1 - x for inclusive boxes.

    Args:
        boxes: [M, 4].
        width: of the image, pixels.
        convention: of the boxes.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    last = width if convention == "continuous" else width - 1
    return torch.stack([last - x2, y1, last - x1, y2], dim=-1)


def crop_boxes(
    boxes: Tensor, origin: tuple[int, int], size: tuple[int, int], convention: BoxConvention
) -> tuple[Tensor, Tensor]:
    """Move boxes into a window of their image and cut off what is outside.

    Args:
        boxes: [M, 4].
        origin: (x, y) of the window.
        size: (height, width) of the window.
        convention: of the boxes.

    Returns:
        The boxes [M, 4], and the share [M] of each one's area that is left.
    """
    moved = boxes - boxes.new_tensor([*origin, *origin])
    cut = clip(moved, size, convention=convention)
    left = area(cut, convention=convention) / area(moved, convention=convention)
    # An inclusive box outside the window still covers the pixels of its edge.
    outside = (moved[:, 2:] < 0).any(dim=1) | (moved[:, :2] > moved.new_tensor([size[1], size[0]])).any(dim=1)
    return cut, left.masked_fill(outside, 0.0)


def to_inclusive(boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Turn continuous boxes into the original's inclusive ones, x2 = x1 + max(width - 1, 0), clipped to the last pixel.

    Args:
        boxes: [B, 4] continuous, inside their images.
        sizes: [B, 2] (height, width) of the image of each box.

    Returns:
        The boxes [B, 4], and a mask [B] of those that still have a width and a height: the original drops boxes of a
        pixel or less.
    """
    corner, far = boxes[:, :2], boxes[:, 2:]
    last = sizes.flip(1).to(boxes) - 1
    corner, far = torch.minimum(corner, last), torch.minimum(torch.maximum(far - 1, corner), last)
    # Not just > 0: x1 + 1 - 1 need not give x1 in float32.
    return torch.cat([corner, far], dim=1), (far - corner > 1e-3).all(dim=1)


class TransformParams(NamedTuple):
    """What is drawn for one image.

    Attributes:
        short_side: pixels.
        flip: whether to mirror the image.
        zoom: further scale of the image, whose size is kept: what exceeds it is cut off.
        window: (x, y) of what is kept, 0: the left or upper end, 1: the right or lower.
        brightness, contrast, saturation: factors.
    """

    short_side: int
    flip: bool
    zoom: float = 1.0
    window: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


class Transformed(NamedTuple):
    """A transformed image.

    Attributes:
        image: uint8 [3, h, w] RGB.
        boxes: [M, 4] in pixels of `image`, inside it.
        visible: [M] in 0..1, the share of each box's area that is left after zooming.
    """

    image: Tensor
    boxes: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Transform:
    """Resize, and perhaps flip, zoom and recolour, an image with its boxes.

    Attributes:
        short_sides: the shorter side is drawn from these.
        max_side: limit of the longer side.
        flip: probability of a horizontal flip.
        zoom: (smallest, largest) further scale, drawn evenly in its logarithm. Above 1 a random window of the size
            without zoom is kept, so that no batch becomes larger (large-scale jittering, arXiv:2012.07177).
        color_jitter: brightness, contrast and saturation are multiplied by up to 1 +- this.
        box_convention: of the boxes that are passed.
    """

    short_sides: Sequence[int]
    max_side: int
    flip: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    color_jitter: float = 0.0
    box_convention: BoxConvention = "continuous"

    def make_params(self, seed: int) -> TransformParams:
        """What to do with an image; the same for the same seed on every machine."""
        generator = random.Random(seed)
        uniform = generator.uniform
        return TransformParams(
            short_side=generator.choice(self.short_sides),
            flip=generator.random() < self.flip,
            zoom=math.exp(uniform(*map(math.log, self.zoom))),
            window=(generator.random(), generator.random()),
            brightness=uniform(1 - self.color_jitter, 1 + self.color_jitter),
            contrast=uniform(1 - self.color_jitter, 1 + self.color_jitter),
            saturation=uniform(1 - self.color_jitter, 1 + self.color_jitter),
        )

    def __call__(self, image: Image.Image, boxes: Tensor | None = None, *, seed: int = 0) -> Transformed:
        """Transform one image.

        Args:
            image: RGB.
            boxes: [M, 4] in pixels of `image`; none by default.
            seed: of what is drawn.
        """
        boxes = torch.zeros(0, 4) if boxes is None else boxes
        params = self.make_params(seed)
        size = image.height, image.width
        new_size = resize_size(*size, params.short_side, self.max_side)
        zoomed = max(round(new_size[0] * params.zoom), 1), max(round(new_size[1] * params.zoom), 1)
        kept = min(new_size[0], zoomed[0]), min(new_size[1], zoomed[1])
        left, top = (round(params.window[axis] * (zoomed[1 - axis] - kept[1 - axis])) for axis in (0, 1))
        image = resize_image(image, kept, whole=zoomed, origin=(left, top))
        boxes, visible = resize_boxes(boxes, size, zoomed), boxes.new_ones(len(boxes))
        if kept != zoomed:
            boxes, visible = crop_boxes(boxes, (left, top), kept, self.box_convention)
        if params.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = flip_boxes(boxes, image.width, self.box_convention)
        if self.color_jitter:
            image = ImageEnhance.Brightness(image).enhance(params.brightness)
            image = ImageEnhance.Contrast(image).enhance(params.contrast)
            image = ImageEnhance.Color(image).enhance(params.saturation)
        return Transformed(image_to_tensor(image), boxes, visible)


def train_transform(config: DataConfig, box_convention: BoxConvention = "continuous") -> Transform:
    """The transform of training images: multi-scale resize, flip, zoom, colours."""
    if config.short_side_range is not None:
        smallest, largest = config.short_side_range
        short_sides: Sequence[int] = range(smallest, largest + 1)
    else:
        short_sides = tuple(config.short_side)
    return Transform(short_sides, config.max_side, config.flip, config.zoom, config.color_jitter, box_convention)


def test_transform(config: DataConfig) -> Transform:
    """The transform of images for detection: one size, no flip."""
    return Transform((config.detection_short_side,), config.detection_max_side)


def detection_views(config: Config) -> list[Transform]:
    """The transforms whose images are detected on together: that of `test_transform`, then those of test-time
    augmentation; the ones with `flip` mirror every image."""
    base, options = test_transform(config.data), config.eval
    scaled = [Transform((scale,), options.scales_max_side) for scale in options.scales]
    views = [base, replace(base, flip=1.0)] if options.flip else [base]
    for view in scaled:
        views += [view, replace(view, flip=1.0)] if options.scales_flip else [view]
    return views
