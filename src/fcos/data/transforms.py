"""Resizing and flipping, exactly as the original does.

Sizes are (height, width) in pixels; boxes [M, 4] float32 XYXY in pixels of the image they come with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from ..structures import BoxConvention
from .images import image_to_tensor


def resize_size(height: int, width: int, short_side: int, max_side: int | None) -> tuple[int, int]:
    """The size after scaling the shorter side to `short_side`, or less where the longer one would exceed `max_side`.

    Source: units/resize_rule of the recorded original: the reduced short side is rounded, the long side truncated, so
    that it may exceed `max_side` when the image is very long. Ours: never below one pixel.
    """
    small, large = min(height, width), max(height, width)
    if max_side is not None and large / small * short_side > max_side:
        short_side = max(round(max_side * small / large), 1)
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize with Pillow's antialiasing bilinear filter to (height, width)."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale boxes with their image, each axis by its own ratio (in both conventions)."""
    ratio_y, ratio_x = (new / old for new, old in zip(new_size, size, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def flip_boxes(boxes: Tensor, width: int, convention: BoxConvention) -> Tensor:
    """Mirror boxes with their image of `width` pixels: x becomes width - x, or width - 1 - x for inclusive boxes."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    last = width if convention == "continuous" else width - 1
    return torch.stack([last - x2, y1, last - x1, y2], dim=-1)


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


@dataclass(frozen=True)
class Transform:
    """Resize, and perhaps flip, an image with its boxes.

    Attributes:
        short_sides: the shorter side is drawn from these.
        max_side: limit of the longer side.
        flip: probability of a horizontal flip.
        box_convention: of the boxes that are passed.
    """

    short_sides: Sequence[int]
    max_side: int
    flip: float = 0.0
    box_convention: BoxConvention = "continuous"

    def draw(self, seed: int) -> tuple[int, bool]:
        """The short side and whether to flip; the same for the same seed on every machine."""
        generator = random.Random(seed)
        return generator.choice(self.short_sides), generator.random() < self.flip

    def __call__(self, image: Image.Image, boxes: Tensor | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Transform one image.

        Args:
            image: RGB.
            boxes: [M, 4] in pixels of `image`; none by default.
            seed: of the draws.

        Returns:
            Pixels uint8 [3, h, w] RGB and boxes [M, 4] in pixels of these.
        """
        boxes = torch.zeros(0, 4) if boxes is None else boxes
        short_side, flip = self.draw(seed)
        size = image.height, image.width
        new_size = resize_size(*size, short_side, self.max_side)
        image, boxes = resize_image(image, new_size), resize_boxes(boxes, size, new_size)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = flip_boxes(boxes, image.width, self.box_convention)
        return image_to_tensor(image), boxes


def train_transform(config: DataConfig, box_convention: BoxConvention = "continuous") -> Transform:
    """The transform of training images: multi-scale resize and flip."""
    if config.short_side_range is not None:
        smallest, largest = config.short_side_range
        short_sides: Sequence[int] = range(smallest, largest + 1)
    else:
        short_sides = tuple(config.short_side)
    return Transform(short_sides, config.max_side, config.flip, box_convention)


def test_transform(config: DataConfig) -> Transform:
    """The transform of images for detection: one size, no flip."""
    return Transform((config.detection_short_side,), config.detection_max_side)
