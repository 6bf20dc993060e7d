"""What travels through the detector, and the units of everything.

Boxes are XYXY in absolute pixels of the stated frame, float32. In the `continuous` convention (the default everywhere)
a box covers [x1, x2) and its width is x2 - x1. In the `inclusive` convention of the original code x2 is the last
covered pixel and the width is x2 - x1 + 1. Sizes are (height, width). Labels are 0..K-1 without background.
Images are RGB uint8.

Shape letters: N images, M ground-truth boxes of one image (padded), D detections of one image, H W image size.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor

if TYPE_CHECKING:
    import supervision

BoxConvention = Literal["continuous", "inclusive"]


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the largest number of boxes of an image.

    Attributes:
        boxes: [N, M, 4] float32 XYXY, pixels of the padded batch image; zeros where padded.
        labels: [N, M] int64 in 0..K-1; -1 where padded.
        crowd: [N, M] bool; such a box is neither object nor background: locations inside it are ignored.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor

    @staticmethod
    def pad(boxes: Sequence[Tensor], labels: Sequence[Tensor], crowd: Sequence[Tensor] | None = None) -> Targets:
        """Stack the boxes [M_i, 4], labels [M_i] and crowd flags [M_i] (default: none) of the images of a batch."""
        count, most = len(boxes), max((len(b) for b in boxes), default=0)
        padded = Targets(
            boxes=torch.zeros(count, most, 4),
            labels=torch.full((count, most), -1, dtype=torch.int64),
            crowd=torch.zeros(count, most, dtype=torch.bool),
        )
        for i, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
            padded.boxes[i, : len(image_boxes)] = image_boxes
            padded.labels[i, : len(image_labels)] = image_labels
            if crowd is not None:
                padded.crowd[i, : len(crowd[i])] = crowd[i]
        return padded

    def of(self, images: slice) -> Targets:
        """The ground truth of some images of the batch."""
        return Targets(*(t[images] for t in self))

    def to(self, device: torch.device | str) -> Targets:
        """Move to a device."""
        return Targets(*(t.to(device, non_blocking=True) for t in self))


class View(NamedTuple):
    """The images of a batch as the detector sees them.

    Attributes:
        images: [N, 3, H, W] uint8 RGB, zero-padded at the right and the bottom.
        sizes: [N, 2] int64, (height, width) of every image without the padding.
        flipped: whether the images are mirrored left to right.
    """

    images: Tensor
    sizes: Tensor
    flipped: bool = False

    def to(self, device: torch.device | str) -> View:
        """Move to a device."""
        return View(self.images.to(device, non_blocking=True), self.sizes.to(device), self.flipped)


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: [N, 3, H, W] uint8 RGB, zero-padded at the right and the bottom.
        sizes: [N, 2] int64, (height, width) of every image without the padding.
        targets: the ground truth in pixels of `images`; None when detecting.
        indices: [N] int64, positions in the data set's `Annotations` (its `path(i)`, `image_ids[i]`, `sizes[i]`).
        more_views: the same images at other sizes or mirrored, for test-time augmentation.
    """

    images: Tensor
    sizes: Tensor
    targets: Targets | None
    indices: Tensor
    more_views: Sequence[View] = ()

    @property
    def views(self) -> list[View]:
        """The images as they are, and all other views of them."""
        return [View(self.images, self.sizes), *self.more_views]

    def to(self, device: torch.device | str) -> Batch:
        """Move to a device."""
        targets = None if self.targets is None else self.targets.to(device)
        (images, sizes, _), *more = (view.to(device) for view in self.views)
        return Batch(images, sizes, targets, self.indices, more)


class Losses(NamedTuple):
    """What a detector answers to a batch with ground truth.

    Attributes:
        terms: scalars by name; their sum is minimised.
        unassigned: 0-dim int64, boxes of the images (crowd left out) that nothing in the model learns.
        normalizers: what the terms were divided by; other parts of the same batch want the same.
    """

    terms: dict[str, Tensor]
    unassigned: Tensor
    normalizers: Tensor


@dataclass(frozen=True, eq=False)
class Instances:
    """The detections of one image.

    Attributes:
        boxes: [D, 4] float32 XYXY in pixels of a frame of `size`.
        labels: [D] int64 in 0..K-1.
        scores: [D] float32 in 0..1.
        size: (height, width) of the frame.
        class_names: the K names; empty when unknown.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    size: tuple[int, int]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: SupportsIndex | Tensor | slice | Sequence[int]) -> Instances:
        """Select detections by a mask, indices or a slice; a number selects one, which stays `Instances`.

        Raises:
            IndexError: there is no such detection.
            TypeError: a single value that is no whole number; a bool is none, a mask has one for every detection.
        """
        picked: Any = index
        if isinstance(index, Sequence):
            picked = torch.as_tensor(index, dtype=None if len(index) else torch.int64, device=self.boxes.device)
        elif not isinstance(index, slice) and getattr(index, "ndim", 0) == 0:
            if isinstance(index, bool) or (isinstance(index, Tensor) and index.dtype == torch.bool):
                raise TypeError(f"expected a number or a mask of {len(self)} bools, found {index}")
            place = range(len(self))[operator.index(index)]
            picked = slice(place, place + 1)
        return replace(self, boxes=self.boxes[picked], labels=self.labels[picked], scores=self.scores[picked])

    def __iter__(self) -> Iterator[Instances]:
        """Every detection alone."""
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """The class name of every detection (the label as text when the names are unknown)."""
        return [self.class_names[i] if self.class_names else str(i) for i in self.labels.tolist()]

    def to(self, device: torch.device | str) -> Instances:
        """Move to a device."""
        return replace(self, boxes=self.boxes.to(device), labels=self.labels.to(device), scores=self.scores.to(device))

    def resize_to(self, size: tuple[int, int]) -> Instances:
        """Scale the boxes to a frame of another (height, width), each axis by its own ratio."""
        scale_y, scale_x = (new / old for new, old in zip(size, self.size, strict=True))
        return replace(self, boxes=self.boxes * self.boxes.new_tensor([scale_x, scale_y] * 2), size=size)

    def to_continuous(self, convention: BoxConvention) -> Instances:
        """Convert boxes of the given convention to `continuous` ones, inside the frame."""
        if convention == "continuous":
            return self
        return replace(self, boxes=self.boxes + self.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))

    def to_supervision(self) -> supervision.Detections:
        """Convert to `supervision.Detections` (XYXY, confidence, class_id, data["class_name"]).

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision() needs `pip install fcos-vision[supervision]`") from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )
