"""Resizing, flipping and cropping of images with their boxes and keypoints, as in the original.

Sizes are (height, width) in pixels; boxes [M, 4] float32 XYXY and keypoints [M, P, 3] (x, y, visibility) in pixels of
the image they come with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..boxes import area, clip
from ..choices import BoxConvention, Resize
from .images import image_to_tensor, size_of, tensor_to_image


def resize_size(height: int, width: int, short_side: int, max_side: int | None) -> tuple[int, int]:
    """Return the size with the shorter side scaled to `short_side`, or less if the longer would exceed `max_side`.

    Args:
        height: image height in pixels, > 0.
        width: image width in pixels, > 0.
        short_side: target length of the shorter side in pixels.
        max_side: upper limit of the longer side in pixels; None: no limit.

    Returns:
        (height, width).

    Source: units/resize_rule of the recorded original. A reduced short side is rounded and the long side is truncated,
    so the long side of a very long image may exceed `max_side`, by a third at most. Ours: if less than a pixel of the
    short side were left, the sides are 1 and `max_side`, so the proportions change.
    """
    short, long = min(height, width), max(height, width)
    if max_side is not None and long / short * short_side > max_side:
        if max_side * short < long:
            return (1, max_side) if height <= width else (max_side, 1)
        short_side = round(max_side * short / long)
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def resize_image(
    image: Image.Image | Tensor,
    size: tuple[int, int],
    *,
    whole: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
    method: Resize = "pillow",
) -> Tensor:
    """Resize an image with an antialiasing bilinear filter.

    Args:
        image: RGB image, or its pixels, uint8 [3, H, W].
        size: (height, width) of the result.
        whole: (height, width) of the entire resized image if the result is a window of it; `size` by default.
        origin: (x, y) of the window in the entire resized image.
        method: `pillow`, as in the original, or `torch`, which is faster and has values that differ by at most 1. A
            window is always resized by Pillow, because torch cannot place it between two pixels.

    Returns:
        uint8 [3, height, width], a channels-last view.
    """
    (height, width), (whole_height, whole_width), (left, top) = size, whole or size, origin
    image_height, image_width = size_of(image)
    is_window = (whole_height, whole_width) != (height, width)
    if not is_window and (method == "torch" or (image_height, image_width) == (height, width)):
        pixels = image if isinstance(image, Tensor) else image_to_tensor(image)
        if (image_height, image_width) == (height, width):
            return pixels
        batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # torch recognises these strides as channels-last
        return functional.interpolate(batch, size=size, mode="bilinear", antialias=True)[0]
    ratio_x, ratio_y = image_width / whole_width, image_height / whole_height
    window = (
        left * ratio_x,
        top * ratio_y,
        min((left + width) * ratio_x, image_width),
        min((top + height) * ratio_y, image_height),
    )
    picture = tensor_to_image(image) if isinstance(image, Tensor) else image
    return image_to_tensor(picture.resize((width, height), Image.Resampling.BILINEAR, box=window))


def resize_boxes(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale boxes with their image, with separate ratios for x and y (the same in both box conventions).

    Args:
        boxes: [M, 4].
        size: (height, width) of the image.
        new_size: (height, width) of the resized image.
    """
    ratio_y, ratio_x = (new / old for new, old in zip(new_size, size, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def flip_boxes(boxes: Tensor, width: int, convention: BoxConvention) -> Tensor:
    """Flip boxes horizontally with their image: x becomes width - x, or width - 1 - x for inclusive boxes.

    Args:
        boxes: [M, 4].
        width: image width in pixels.
        convention: box convention.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    right_edge = width if convention == "continuous" else width - 1
    return torch.stack([right_edge - x2, y1, right_edge - x1, y2], dim=-1)


def crop_boxes(
    boxes: Tensor, origin: tuple[int, int], size: tuple[int, int], convention: BoxConvention
) -> tuple[Tensor, Tensor]:
    """Crop boxes to a window of their image.

    Args:
        boxes: [M, 4].
        origin: (x, y) of the window.
        size: (height, width) of the window.
        convention: box convention.

    Returns:
        The boxes [M, 4] in pixels of the window, and the visible fraction [M] of each box's area.
    """
    moved = boxes - boxes.new_tensor([*origin, *origin])
    clipped = clip(moved, size, convention=convention)
    visible = area(clipped, convention=convention) / area(moved, convention=convention)
    # An inclusive box outside the window still covers the pixels of its edge.
    outside = (moved[:, 2:] < 0).any(dim=1) | (moved[:, :2] > moved.new_tensor([size[1], size[0]])).any(dim=1)
    return clipped, visible.masked_fill(outside, 0.0)


def flip_keypoints(keypoints: Tensor, width: int, convention: BoxConvention, *, order: Sequence[int] = ()) -> Tensor:
    """Flip keypoints horizontally with their image, like boxes.

    Args:
        keypoints: [M, P, 3], x, y and visibility.
        width: image width in pixels.
        convention: box convention.
        order: the keypoint of the image that becomes each keypoint of the flipped one (left and right change places);
            empty: the same ones.
    """
    keypoints = keypoints[:, list(order)] if order else keypoints.clone()
    keypoints[..., 0] = (width if convention == "continuous" else width - 1) - keypoints[..., 0]
    return _clear_unannotated(keypoints)


def resize_keypoints(keypoints: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Scale keypoints [M, P, 3] with their image from size to new_size, both (height, width)."""
    ratio_y, ratio_x = (new / old for new, old in zip(new_size, size, strict=True))
    return keypoints * keypoints.new_tensor([ratio_x, ratio_y, 1.0])


def crop_keypoints(keypoints: Tensor, origin: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Move keypoints [M, P, 3] to a window at `origin` (x, y) of `size` (height, width); those outside become zeros."""
    keypoints = keypoints - keypoints.new_tensor([*origin, 0.0])
    limit = keypoints.new_tensor([size[1], size[0]])
    is_inside = ((keypoints[..., :2] >= 0) & (keypoints[..., :2] <= limit)).all(dim=-1)
    keypoints[..., 2] *= is_inside
    return _clear_unannotated(keypoints)


def _clear_unannotated(keypoints: Tensor) -> Tensor:
    """Set keypoints without visibility to zeros, as in COCO files."""
    return torch.where(keypoints[..., 2:] > 0, keypoints, 0.0)


def to_inclusive(boxes: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Convert continuous boxes to the original's inclusive boxes.

    x2 = x1 + max(width - 1, 0), clipped to the last pixel; y2 likewise.

    Args:
        boxes: [B, 4] continuous, inside their images.
        sizes: [B, 2] (height, width) of the image of each box.

    Returns:
        The boxes [B, 4], and a mask [B] of the boxes that keep x2 > x1 and y2 > y1. The original drops the other boxes,
        whose width or height is a pixel or less.
    """
    top_left, bottom_right = boxes[:, :2], boxes[:, 2:]
    last_pixel = sizes.flip(1).to(boxes) - 1
    top_left, bottom_right = (
        torch.minimum(top_left, last_pixel),
        torch.minimum(torch.maximum(bottom_right - 1, top_left), last_pixel),
    )
    # A tolerance instead of > 0: in float32, x1 + 1 - 1 may differ from x1.
    return torch.cat([top_left, bottom_right], dim=1), (bottom_right - top_left > 1e-3).all(dim=1)
