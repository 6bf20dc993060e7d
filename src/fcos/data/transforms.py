"""Transforms from a decoded image to the network input: resizing exactly as in the original, and augmentations.

Sizes are (height, width) in pixels; boxes [M, 4] float32 XYXY in pixels of the image they come with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..choices import BoxConvention, Decode, Resize
from ..config import Config, DataConfig
from ..structures import Objects
from .augmentations import AUGMENTATIONS, Augmentation, Flip, ImageAugmentation, Placement, SizeAugmentation
from .geometry import crop_boxes, crop_keypoints, resize_boxes, resize_image, resize_keypoints, resize_size
from .images import size_of
from .user_transforms import UserTransform

MIN_VISIBLE = 0.25
"""Smallest visible fraction of an object's area in a zoomed image; training ignores objects below it."""


class Transformed(NamedTuple):
    """Transformed image with its objects.

    Attributes:
        image: uint8 [3, h, w] RGB.
        objects: objects of the image in pixels of `image`; boxes are inside it, masks may extend beyond it.
    """

    image: Tensor
    objects: Objects


@dataclass(frozen=True)
class Transform:
    """Transform that resizes an image with its objects and optionally augments it.

    Attributes:
        short_sides: lengths in pixels from which the shorter side is drawn.
        max_side: upper limit of the longer side in pixels.
        augmentations: augmentations in the order in which they are applied.
        user: the user's transform, applied last.
        box_convention: convention of the input and output boxes.
        resize: method of resizing, see `resize_image`.
        decode: decoding of the images, see `reduction`.
    """

    short_sides: Sequence[int]
    max_side: int
    augmentations: Sequence[Augmentation] = ()
    user: UserTransform | None = None
    box_convention: BoxConvention = "continuous"
    resize: Resize = "pillow"
    decode: Decode = "exact"

    @property
    def is_mirrored(self) -> bool:
        """True if every image is mirrored, as in a view of test-time augmentation."""
        return any(isinstance(step, Flip) and step.probability == 1 for step in self.augmentations)

    def draw(self, seed: int, strength: float = 1.0) -> tuple[int, list[Any]]:
        """Draw the shorter side and the parameters of every augmentation; a seed gives the same values on any machine.

        Every augmentation has a separate random generator, so adding one does not change the others. Only the oldest
        ones share the generator of the shorter side (see `Augmentation.offset`).
        """
        shared = random.Random(seed)
        short_side, state = shared.choice(self.short_sides), shared.getstate()
        drawn = []
        for step in self.augmentations:
            generator = random.Random(f"{seed}/{type(step).__name__}")
            if step.offset is not None:
                generator.setstate(state)
                for _ in range(step.offset):
                    generator.random()
            drawn.append(step.draw(generator, strength))
        return short_side, drawn

    def reduction(self, size: tuple[int, int], *, seed: int = 0, strength: float = 1.0) -> int | None:
        """Return by which number to divide the sides of an image when decoding it, see `images.read_pixels`.

        The image does not become smaller than the resized one.

        Args:
            size: (height, width) of the image.
            seed: seed of the random parameters.
            strength: strength of the augmentations, 0..1.

        Returns:
            1, 2, 4 or 8; None if `decode` is `exact`.
        """
        if self.decode == "exact":
            return None
        height, width = self._place(size, *self.draw(seed, strength)).whole
        for reduction in (8, 4, 2):
            is_exact = size[0] % reduction == size[1] % reduction == 0  # other sizes would move the content
            if is_exact and size[0] >= reduction * height and size[1] >= reduction * width:
                return reduction
        return 1

    def _place(self, size: tuple[int, int], short_side: int, drawn: Sequence[Any]) -> Placement:
        placement = Placement.whole_of(resize_size(*size, short_side, self.max_side))
        for step, parameters in zip(self.augmentations, drawn, strict=True):
            if isinstance(step, SizeAugmentation):
                placement = step.place(placement, parameters)
        return placement

    def __call__(
        self,
        image: Image.Image | Tensor,
        objects: Objects | None = None,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        strength: float = 1.0,
    ) -> Transformed:
        """Transform one image.

        Args:
            image: RGB image, or its pixels, uint8 [3, H, W].
            objects: objects of the image; none by default.
            size: (height, width) of the image that `objects` refer to; default: that of `image`. Needed if `image` was
                decoded at reduced size.
            seed: seed of the random parameters.
            strength: strength of the augmentations, 0..1.

        Raises:
            DataError: the user's transform fails or returns an invalid result.
        """
        objects = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) if objects is None else objects
        short_side, drawn = self.draw(seed, strength)
        size = size or size_of(image)
        placement = self._place(size, short_side, drawn)
        pixels = resize_image(image, placement.size, whole=placement.whole, origin=placement.origin, method=self.resize)
        objects = _move_objects(objects, size, placement, self.box_convention)
        for step, parameters in zip(self.augmentations, drawn, strict=True):
            if isinstance(step, ImageAugmentation):
                pixels, objects = step.change(pixels, objects, parameters, self.box_convention)
        if self.user is not None:
            pixels, objects = self.user(pixels, objects, seed=seed, convention=self.box_convention)
        return Transformed(pixels, objects)


def _move_objects(objects: Objects, size: tuple[int, int], placement: Placement, convention: BoxConvention) -> Objects:
    """Move objects into the placed image.

    Objects outside are dropped. Objects with a visible fraction below MIN_VISIBLE become ignore regions (crowd).
    """
    boxes, masks, keypoints = resize_boxes(objects.boxes, size, placement.whole), objects.masks, objects.keypoints
    if masks is not None:
        masks = masks.scale(placement.whole[1] / size[1], placement.whole[0] / size[0])
    if keypoints is not None:
        keypoints = resize_keypoints(keypoints, size, placement.whole)
    if placement.size == placement.whole:
        return replace(objects, boxes=boxes, masks=masks, keypoints=keypoints)
    boxes, visible = crop_boxes(boxes, placement.origin, placement.size, convention)
    if masks is not None:
        masks = masks.translate(-placement.origin[0], -placement.origin[1])
    if keypoints is not None:
        keypoints = crop_keypoints(keypoints, placement.origin, placement.size)
    # A small visible piece of an object is neither a good positive example nor background.
    is_crowd = objects.is_crowd | (visible < MIN_VISIBLE)
    return Objects(boxes, objects.labels, is_crowd, masks, keypoints)[visible > 0]


def training_sides(config: DataConfig) -> Sequence[int]:
    """Return the lengths in pixels from which training draws the shorter side."""
    if config.short_side_range is None:
        return tuple(config.short_side)
    smallest, largest = config.short_side_range
    return range(smallest, largest + 1)


def train_transform(
    config: DataConfig,
    box_convention: BoxConvention = "continuous",
    *,
    num_classes: int | None = None,
    keypoint_order: Sequence[int] = (),
) -> Transform:
    """Build the transform of training images: multi-scale resizing and augmentations.

    Args:
        config: sizes, augmentations and the user's transform.
        box_convention: convention of the input and output boxes.
        num_classes: number of classes; labels from the user's transform must be below it. None: they are not checked.
        keypoint_order: keypoints that change places in a flip, see `keypoints.flip_order`.

    Raises:
        ConfigError: `data.transforms` does not name a function.
    """
    steps = [augmentation.of(config) for augmentation in AUGMENTATIONS]
    order = tuple(keypoint_order)
    augmentations = [replace(step, keypoint_order=order) if isinstance(step, Flip) else step for step in steps]
    user = None if config.transforms is None else UserTransform.named(config.transforms, num_classes)
    sides = training_sides(config)
    decode = config.decode if config.cache is None else "exact"  # a cache keeps exact pixels at full size
    return Transform(sides, config.max_side, augmentations, user, box_convention, config.resize, decode)


def test_transform(config: DataConfig) -> Transform:
    """Build the transform of images for detection: one short side, no augmentation."""
    return Transform((config.detection_short_side,), config.detection_max_side, resize=config.resize)


def detection_views(config: Config) -> list[Transform]:
    """Build the transforms of all views used in detection: `test_transform`, then those of test-time augmentation.

    Depending on the options in `eval`, some views are flipped horizontally.
    """
    base, options = test_transform(config.data), config.eval
    scaled = [replace(base, short_sides=(scale,), max_side=options.scales_max_side) for scale in options.scales]
    views = [base, _mirror(base)] if options.flip else [base]
    for view in scaled:
        views += [view, _mirror(view)] if options.scales_flip else [view]
    return views


def _mirror(view: Transform) -> Transform:
    return replace(view, augmentations=(Flip(1.0),))
