"""Images and boxes resized, mirrored and cropped together, as the original does it.

Sizes are (height, width) in pixels; boxes [M, 4] float32 XYXY in pixels of the image they come with.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..boxes import area, clip
from ..choices import BoxConvention


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
