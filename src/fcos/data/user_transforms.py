"""Training transforms written by the user in the style of torchvision.transforms.v2 (`data.transforms`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..boxes import clip
from ..choices import BoxConvention
from ..errors import DataError
from ..extensions import load_function
from ..masks import Masks
from ..structures import Objects

_MAX_GROWTH, _ALWAYS_ALLOWED = 16, 4_000_000
"""Limits of the output in input pixels (as for torchvision's `RandomZoomOut`) and in pixels; the larger one applies.

Without a limit, a mistake in a transform can exhaust the memory."""


@dataclass(frozen=True)
class UserTransform:
    """Wrapper of a transform with torchvision's signature, `image, target = function(image, target)`.

    `image` is a `tv_tensors.Image`, uint8 [3, H, W] RGB. `target` is a dictionary with `boxes`
    (`tv_tensors.BoundingBoxes`, XYXY in continuous pixels, [M, 4], inside the image) and `labels` (int64 [M]), and
    `masks` (`tv_tensors.Mask`, bool [M, H, W]) if the objects have masks. A label 0..K-1 marks an object. A label
    -1 - k marks an ignore region (crowd) of class k, so transforms that select boxes also select ignore regions. The
    function may change the image size and remove boxes with their labels and masks. Afterwards boxes are clipped to the
    image, and boxes without area are dropped. Keypoints are not supported, because transforms of torchvision do not
    exchange left and right.

    Attributes:
        function: transform function.
        name: option that names the function, for error messages.
        num_classes: number of classes K; None: labels are not checked against it.
    """

    function: Callable[..., Any]
    name: str
    num_classes: int | None = None

    @staticmethod
    def named(name: str, num_classes: int | None = None) -> UserTransform:
        """Load a transform by its name `package.module:function`.

        Raises:
            ConfigError: the function does not exist.
        """
        option = f"data.transforms={name}"
        return UserTransform(load_function(name, option=option), option, num_classes)

    def __call__(
        self, image: Tensor, objects: Objects, *, seed: int, convention: BoxConvention
    ) -> tuple[Tensor, Objects]:
        """Transform an image and its objects.

        Args:
            image: uint8 [3, H, W] RGB.
            objects: objects of the image, boxes in pixels of `image`.
            seed: seed of the torch, NumPy and Python generators while the function runs. The result for an image of a
                batch is therefore the same for any number of loader workers.
            convention: box convention of `objects`. The function always gets continuous boxes.

        Raises:
            DataError: the function fails or returns an invalid result, or the objects have keypoints.
        """
        from torchvision import tv_tensors  # slow import (torch._dynamo)

        if objects.keypoints is not None:
            raise DataError(f"{self.name}: transforms of the user do not support keypoints; remove the option")
        end = 1.0 if convention == "inclusive" else 0.0
        height, width = image.shape[1:]
        # A resized box may extend beyond the image, by rounding or, if inclusive, by a fraction of a pixel.
        boxes = clip(objects.boxes + objects.boxes.new_tensor([0.0, 0.0, end, end]), (height, width))
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # pyright: ignore[reportCallIssue]
            "labels": torch.where(objects.is_crowd, -1 - objects.labels, objects.labels),
        }
        if objects.masks is not None:
            target["masks"] = tv_tensors.Mask(objects.masks.to_bitmaps((height, width)))
        with _seed_generators(seed):
            try:
                result = self.function(tv_tensors.Image(image.contiguous()), target)
            except (Exception, SystemExit) as error:  # a user's function may raise anything
                reason = " ".join(str(error).split())
                raise DataError(f"{self.name}: {type(error).__name__}: {reason}") from error
        pixels, boxes, labels = self._validate(result, num_pixels=height * width)
        masks = None if objects.masks is None else self._validate_masks(result[1], len(boxes), pixels.shape[1:])
        boxes = clip(boxes, (pixels.shape[1], pixels.shape[2]))
        visible = (boxes[:, 2:] - boxes[:, :2] > end).all(dim=1)
        boxes = boxes - boxes.new_tensor([0.0, 0.0, end, end])
        is_crowd = labels < 0
        return pixels, Objects(boxes, torch.where(is_crowd, -1 - labels, labels), is_crowd, masks)[visible]

    def _validate(self, result: Any, *, num_pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Validate the function's result for an image of `num_pixels`; return image, boxes and labels."""
        from torchvision import tv_tensors

        try:
            image, target = result
            boxes, labels = target["boxes"], target["labels"]
        except (TypeError, ValueError, KeyError, IndexError):
            raise DataError(
                f"{self.name}: expected it to return (image, {{'boxes': ..., 'labels': ...}}), found"
                f" {_describe_result(result)}"
            ) from None
        is_image = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
        if not is_image or not image.numel():
            found = _describe(image) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"{self.name}: expected an image of torch.uint8 [3, H, W], found {found}")
        height, width = image.shape[1:]
        limit = max(_MAX_GROWTH * num_pixels, _ALWAYS_ALLOWED)
        if height * width > limit:
            raise DataError(f"{self.name}: expected an image of at most {limit:,} pixels, found {height}x{width}")
        if isinstance(boxes, tv_tensors.BoundingBoxes) and boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
            raise DataError(f"{self.name}: expected boxes in XYXY, found {boxes.format.name}")
        try:
            boxes, labels = (torch.as_tensor(column).as_subclass(Tensor) for column in (boxes, labels))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.name}: expected tensors of boxes and labels: {error}") from None
        other_devices = [str(tensor.device) for tensor in (image, boxes, labels) if tensor.device.type != "cpu"]
        if other_devices:
            raise DataError(f"{self.name}: expected tensors on the CPU, found a tensor on {other_devices[0]}")
        if boxes.numel() or labels.numel():  # an empty list has neither shape nor dtype
            self._check_columns(boxes, labels)
        boxes, labels = boxes.to(torch.float32).reshape(-1, 4), labels.to(torch.int64).reshape(-1)
        return image.as_subclass(Tensor).contiguous(), boxes, labels

    def _validate_masks(self, target: dict[str, Any], num_boxes: int, size: Sequence[int]) -> Masks:
        """Validate the masks that the function returns for an image of `size` (height, width)."""
        masks = target.get("masks")
        if not isinstance(masks, Tensor) or list(masks.shape) != [num_boxes, *size]:
            found = _describe(masks) if isinstance(masks, Tensor) else type(masks).__name__
            raise DataError(
                f"{self.name}: expected `masks` of {[num_boxes, *size]}, one for each box in the size of the image,"
                f" found {found}"
            )
        return Masks.from_bitmaps(masks.as_subclass(Tensor).cpu().bool(), dtype=np.float32)

    def _check_columns(self, boxes: Tensor, labels: Tensor) -> None:
        """Raise a DataError if boxes or labels are invalid, or if their numbers differ."""
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"{self.name}: expected boxes [M, 4], found {_describe(boxes)}")
        if labels.dtype != torch.int64 or labels.shape != (len(boxes),):
            raise DataError(
                f"{self.name}: expected a label of torch.int64 for each of {len(boxes)} boxes, found"
                f" {_describe(labels)}"
            )
        is_wrong = ~((boxes[:, 2:] >= boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1))
        if is_wrong.any():
            raise DataError(
                f"{self.name}: expected boxes in XYXY, x1 <= x2 and y1 <= y2, found {boxes[is_wrong][0].tolist()}"
            )
        if self.num_classes is not None:
            is_wrong = (labels >= self.num_classes) | (labels < -self.num_classes)
            if is_wrong.any():
                raise DataError(
                    f"{self.name}: expected labels 0..{self.num_classes - 1} (crowd: -1..{-self.num_classes}), found"
                    f" {int(labels[is_wrong][0])}"
                )


def _describe_result(result: Any) -> str:
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict):
        return f"(image, {{{', '.join(map(str, result[1]))}}})"
    return type(result).__name__


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


@contextmanager
def _seed_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python, and restore their states on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(f"{seed}/user")  # the bare seed would repeat the augmentations' random numbers
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed would also seed the GPU generators
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
