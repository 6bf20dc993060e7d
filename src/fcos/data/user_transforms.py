"""The user's own training transforms, in the style of torchvision.transforms.v2 (`data.transforms`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from ..boxes import clip
from ..choices import BoxConvention
from ..errors import DataError
from ..extensions import load_function
from ..structures import Objects

_MOST_GROWTH = 16
"""As torchvision's `RandomZoomOut` enlarges an image at most; without a limit a mistake fills the memory."""


@dataclass(frozen=True)
class UserTransform:
    """Calls a transform as torchvision's are called: `image, target = function(image, target)`.

    `image` is a `tv_tensors.Image`, uint8 [3, H, W] RGB; `target` is a dictionary of `boxes`
    (`tv_tensors.BoundingBoxes`, XYXY in continuous pixels, [M, 4], inside the image) and `labels` (int64 [M]). A label
    of 0..K-1 is an object; -1 - k marks a region of class k that is ignored (crowd), so that whatever selects boxes
    selects these too. The function may change the size of the image and leave boxes out. Afterwards boxes are clipped
    to the image, and those without area dropped.

    Attributes:
        function: the transform.
        name: the option that names it, for messages.
        num_classes: K; None: labels are not checked against it.
    """

    function: Callable[..., Any]
    name: str
    num_classes: int | None = None

    @staticmethod
    def named(name: str, num_classes: int | None = None) -> UserTransform:
        """The transform `package.module:function`.

        Raises:
            ConfigError: there is no such function.
        """
        option = f"data.transforms={name}"
        return UserTransform(load_function(name, option=option), option, num_classes)

    def __call__(
        self, image: Tensor, objects: Objects, *, seed: int, convention: BoxConvention
    ) -> tuple[Tensor, Objects]:
        """Transform an image and its objects.

        Args:
            image: uint8 [3, H, W] RGB.
            objects: in pixels of `image`.
            seed: for the generators of torch, numpy and Python while the function runs; it always does the same to the
                same image of a batch, whatever the number of loader workers.
            convention: of the boxes, which the function sees as continuous ones.

        Raises:
            DataError: the function fails, or returns something else.
        """
        end = 1.0 if convention == "inclusive" else 0.0
        height, width = image.shape[1:]
        # After resizing a box may end beyond the image: by rounding, or by a part of a pixel when it was inclusive.
        boxes = clip(objects.boxes + objects.boxes.new_tensor([0.0, 0.0, end, end]), (height, width))
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),  # pyright: ignore[reportCallIssue]
            "labels": torch.where(objects.is_crowd, -1 - objects.labels, objects.labels),
        }
        with _seeded(seed):
            try:
                result = self.function(tv_tensors.Image(image.contiguous()), target)
            except (Exception, SystemExit) as error:  # whatever a user's function raises
                reason = " ".join(str(error).split())
                raise DataError(f"{self.name}: {type(error).__name__}: {reason}") from error
        pixels, boxes, labels = self._checked(result, num_elements=image.numel())
        boxes = clip(boxes, (pixels.shape[1], pixels.shape[2]))
        visible = (boxes[:, 2:] - boxes[:, :2] > end).all(dim=1)
        boxes = boxes - boxes.new_tensor([0.0, 0.0, end, end])
        is_crowd = labels < 0
        return pixels, Objects(boxes, torch.where(is_crowd, -1 - labels, labels), is_crowd)[visible]

    def _checked(self, result: Any, *, num_elements: int) -> tuple[Tensor, Tensor, Tensor]:
        """Image, boxes and labels, if the function returned what it should for an image of `num_elements`."""
        try:
            image, target = result
            boxes, labels = target["boxes"], target["labels"]
        except (TypeError, ValueError, KeyError, IndexError):
            raise DataError(
                f"{self.name}: expected it to return (image, {{'boxes': ..., 'labels': ...}}), found"
                f" {type(result).__name__}"
            ) from None
        is_image = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3
        if not is_image or not image.numel():
            found = _described(image) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"{self.name}: expected an image of torch.uint8 [3, H, W], found {found}")
        if image.numel() > _MOST_GROWTH * num_elements:
            height, width = image.shape[1:]
            raise DataError(
                f"{self.name}: expected an image of at most {_MOST_GROWTH} times the pixels that it got, found"
                f" {height}x{width}"
            )
        if isinstance(boxes, tv_tensors.BoundingBoxes) and boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
            raise DataError(f"{self.name}: expected boxes in XYXY, found {boxes.format.name}")
        try:
            boxes, labels = (torch.as_tensor(column).as_subclass(Tensor) for column in (boxes, labels))
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.name}: expected tensors of boxes and labels: {error}") from None
        others = [str(tensor.device) for tensor in (image, boxes, labels) if tensor.device.type != "cpu"]
        if others:
            raise DataError(f"{self.name}: expected tensors on the CPU, found one on {others[0]}")
        if boxes.numel() or labels.numel():  # an empty list says neither shape nor type
            self._check_columns(boxes, labels)
        boxes, labels = boxes.to(torch.float32).reshape(-1, 4), labels.to(torch.int64).reshape(-1)
        return image.as_subclass(Tensor).contiguous(), boxes, labels

    def _check_columns(self, boxes: Tensor, labels: Tensor) -> None:
        """Refuse boxes and labels that do not belong together, or that no image has."""
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"{self.name}: expected boxes [M, 4], found {_described(boxes)}")
        if labels.dtype != torch.int64 or labels.shape != (len(boxes),):
            raise DataError(
                f"{self.name}: expected a label of torch.int64 for each of {len(boxes)} boxes, found"
                f" {_described(labels)}"
            )
        wrong = ~(boxes[:, 2:] >= boxes[:, :2]).all(dim=1)  # not a number, too
        if wrong.any():
            raise DataError(
                f"{self.name}: expected boxes in XYXY, x1 <= x2 and y1 <= y2, found {boxes[wrong][0].tolist()}"
            )
        if self.num_classes is not None:
            wrong = (labels >= self.num_classes) | (labels < -self.num_classes)
            if wrong.any():
                raise DataError(
                    f"{self.name}: expected labels 0..{self.num_classes - 1} (crowd: -1..{-self.num_classes}), found"
                    f" {int(labels[wrong][0])}"
                )


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, numpy and Python start from a seed, and go on as before afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(f"{seed}/user")  # the seed alone would repeat what the augmentations have drawn
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed seeds those of GPUs, too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
