"""Annotations as flat arrays, and a data set that reads and transforms images.

Shape letters: I images, B boxes of all images, K classes, M boxes of one image, H W image size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..choices import BoxConvention
from ..errors import DataError
from ..keypoints import UNNAMED, KeypointLayout
from ..masks import Masks, to_text
from ..structures import Instances, Objects
from .cache import PixelCache
from .geometry import to_inclusive
from .images import open_rgb, read_pixels, size_of, tensor_to_image
from .source import Keypoints
from .transforms import Transform
from .values import encodable


@dataclass(frozen=True, eq=False)
class Annotations:
    """Checked annotations of a split, stored in a fixed number of flat arrays.

    Forked loader workers share the memory of the arrays and never copy it. Every spawned worker gets a copy.

    Attributes:
        root: folder of the images.
        names: concatenated file names, encoded as in the file system.
        name_offsets: int64 [I + 1], start of each file name in `names`.
        image_ids: int64 [I], original ids (1, 2, ... for formats without ids).
        sizes: int32 [I, 2] (height, width), as displayed (after the EXIF rotation).
        offsets: int64 [I + 1], start of each image's boxes in the arrays [B].
        boxes: float32 [B, 4] XYXY, continuous, in pixels of the original image, inside it.
        labels: int64 [B] in 0..K-1.
        crowd: bool [B], True for ignore regions: neither object nor background (COCO's iscrowd or ignore, VOC's
            difficult).
        areas: float32 [B], annotated area (COCO: of the segmentation) or else box area.
        annotation_ids: int64 [B], original ids (1, 2, ... for formats without ids).
        class_names: K names.
        category_ids: K original ids; label k has the id category_ids[k].
        bit_depth: number of bits used in images with 16 bits per pixel, see `to_rgb`.
        masks: masks of the B objects in float64, continuous pixels of the original image; None if they were not read.
        keypoints: keypoints of the B objects in continuous pixels of the original image; None if they were not read.
        cache: cache of the decoded images; None: they are decoded each time.
    """

    root: Path
    names: bytes
    name_offsets: np.ndarray
    image_ids: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    annotation_ids: np.ndarray
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    bit_depth: int = 16
    masks: Masks | None = None
    keypoints: Keypoints | None = None
    cache: PixelCache | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Return the file name of an image as annotated, relative to `root`."""
        return os.fsdecode(self.names[self.name_offsets[index] : self.name_offsets[index + 1]])

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.file_name(index)

    def span(self, index: int) -> slice:
        """Return the slice of an image's boxes in `boxes`, `labels`, `crowd`, `areas` and `annotation_ids`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    @property
    def image_of(self) -> np.ndarray:
        """Position of each box's image, int64 [B]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def keypoint_layout(self) -> KeypointLayout:
        """Names, skeleton and flip pairs of the keypoints; empty if none were read."""
        return UNNAMED if self.keypoints is None else self.keypoints.layout

    def boxes_per_class(self) -> np.ndarray:
        """Return the number of boxes per class without crowds, int64 [K]."""
        return np.bincount(self.labels[~self.crowd], minlength=len(self.class_names))

    def boxes_per_image(self) -> np.ndarray:
        """Return the number of boxes per image without crowds, int64 [I]."""
        return np.bincount(self.image_of[~self.crowd], minlength=len(self))

    def open(self, index: int) -> Image.Image:
        """Read an image in RGB, with its EXIF orientation applied.

        Raises:
            DataError: the file is missing, truncated or not an image.
        """
        if self.cache is not None:
            return tensor_to_image(self.read_pixels(index))
        return open_rgb(self.path(index), bit_depth=self.bit_depth)

    def read_pixels(self, index: int, *, reduction: int | None = None) -> Tensor:
        """Read the pixels of an image, uint8 [3, H, W]; they equal those of `open` without a `reduction`.

        Args:
            index: position of the image.
            reduction: divisor of the sides, see `images.read_pixels`; not with a cache.

        Raises:
            DataError: see `open`.
        """
        path = self.path(index)
        decode = partial(read_pixels, path, bit_depth=self.bit_depth, reduction=reduction)
        return decode() if self.cache is None else self.cache.get(index, path, decode)

    def digest(self) -> str:
        """Return the SHA-256 of the data used in evaluation: classes, image ids and sizes, boxes, and the bit depth.

        The boxes include their labels, crowd flags and areas, and masks and keypoints if they were read.
        """
        digest = hashlib.sha256(repr((self.class_names, self.category_ids)).encode())
        if self.bit_depth != 16:  # the default is left out, because earlier versions did not include the bit depth
            digest.update(f"bit_depth={self.bit_depth}".encode())
        for column in (self.image_ids, self.sizes, self.offsets, self.boxes, self.labels, self.crowd, self.areas):
            digest.update(column.tobytes())
        if self.masks is not None:
            for column in (self.masks.points, self.masks.ring_offsets, self.masks.object_offsets):
                digest.update(column.tobytes())
        if self.keypoints is not None:
            digest.update(self.keypoints.values.astype(np.float32).tobytes())  # as in earlier versions
        return digest.hexdigest()

    def inclusive(self) -> Annotations:
        """Return a copy with the original's inclusive boxes, without boxes whose width or height is a pixel or less."""
        image_of = self.image_of
        boxes, is_kept = to_inclusive(torch.from_numpy(self.boxes), torch.from_numpy(self.sizes[image_of]))
        mask = is_kept.numpy()
        counts = np.bincount(image_of[mask], minlength=len(self))
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes.numpy()[mask],
            labels=self.labels[mask],
            crowd=self.crowd[mask],
            areas=self.areas[mask],
            annotation_ids=self.annotation_ids[mask],
            masks=None if self.masks is None else self.masks[mask],
            keypoints=None if self.keypoints is None else self.keypoints[mask],
        )

    def as_one_class(self) -> Annotations:
        """Return a copy in which all objects are of the class `object`, with the category id 1."""
        return replace(self, labels=np.zeros_like(self.labels), class_names=("object",), category_ids=(1,))

    def instances(self, index: int) -> Instances:
        """Return the objects of an image as detections with score 1, for pictures."""
        objects, (height, width) = self.objects(index), self.sizes[index].tolist()
        return Instances(
            objects.boxes,
            objects.labels,
            torch.ones(len(objects)),
            (height, width),
            self.class_names,
            keypoints=objects.keypoints,
            polygons=objects.masks,
            keypoint_layout=self.keypoint_layout,
        )

    def objects(self, index: int) -> Objects:
        """Return the objects of an image, in pixels of the original image; coordinates are float32."""
        span = self.span(index)
        columns = (self.boxes, self.labels, self.crowd)
        return Objects(
            *(torch.from_numpy(column[span]) for column in columns),
            masks=None if self.masks is None else self.masks[span].astype(np.float32),
            keypoints=None if self.keypoints is None else torch.from_numpy(self.keypoints.values[span].astype("f4")),
        )

    def to_coco(self) -> dict[str, Any]:
        """Return the ground truth as a COCO dictionary with the original ids; its XYWH boxes are computed from `boxes`.

        Masks, if they were read, are compressed RLEs with `counts` as text; keypoints come with their names. Bytes of a
        file name that are not valid Unicode are escaped.
        """
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        categories = np.array(self.category_ids)[self.labels]
        columns = (self.annotation_ids, self.image_ids[self.image_of], categories, boxes, self.areas, self.crowd)
        annotations: list[dict[str, Any]] = [
            {"id": i, "image_id": image, "category_id": c, "bbox": box, "area": area, "iscrowd": int(crowd)}
            for i, image, c, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if self.masks is not None:
            for annotation, code in zip(annotations, self._mask_codes(), strict=True):
                annotation["segmentation"] = code
        names = {}
        if self.keypoints is not None:
            for annotation, values in zip(annotations, self.keypoints.values, strict=True):
                annotation["keypoints"] = values.reshape(-1).tolist()
                annotation["num_keypoints"] = int((values[:, 2] > 0).sum())
            names = _category_keys(self.keypoints.layout)
        return {
            "images": [
                {"id": image_id, "file_name": encodable(self.file_name(i)), "height": height, "width": width}
                for i, (image_id, (height, width)) in enumerate(
                    zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
                )
            ],
            "annotations": annotations,
            "categories": [
                {"id": i, "name": name, **names} for i, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def _mask_codes(self) -> Iterator[dict[str, Any]]:
        assert self.masks is not None
        for index in range(len(self)):
            height, width = self.sizes[index].tolist()
            yield from map(to_text, self.masks[self.span(index)].to_rles((height, width)))


def _category_keys(layout: KeypointLayout) -> dict[str, Any]:
    """Return the keys of a COCO category that describe its keypoints, see `coco_shapes.keypoint_layout`."""
    skeleton = [[a + 1, b + 1] for a, b in layout.skeleton]
    pairs = {} if layout.pairs is None else {"flip_pairs": [[a + 1, b + 1] for a, b in layout.pairs]}
    return {"keypoints": list(layout.names), "skeleton": skeleton, **pairs}


class Sample(NamedTuple):
    """One transformed image.

    Attributes:
        image: uint8 [3, H, W] RGB.
        objects: objects of the image, boxes in pixels of `image` and in the data set's box convention.
        index: position in the data set.
        more_views: additional views of the same image, uint8 [3, h, w] each.
        warning: reason why the user's transform was skipped, or why the cache cannot be used; empty if neither failed.
    """

    image: Tensor
    objects: Objects
    index: int
    more_views: tuple[Tensor, ...] = ()
    warning: str = ""


class DetectionDataset:
    """Data set that reads and transforms the images of a split.

    `dataset[index]` returns a Sample, with seed 0. `dataset.load(index, seed)` draws scale, flip, zoom and colours from
    the given seed. An image is decoded only once, even if `more_views` add further transforms of it.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        transform: Transform,
        more_views: Sequence[Transform] = (),
        box_convention: BoxConvention = "continuous",
    ) -> None:
        self.annotations = annotations if box_convention == "continuous" else annotations.inclusive()
        self.transform, self.more_views = transform, more_views

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index, 0)

    def load(self, index: int, seed: int, strength: float = 1.0) -> Sample:
        """Read and transform one image.

        Args:
            index: position of the image.
            seed: seed of the random parameters.
            strength: strength of the augmentations, 0..1.

        Raises:
            DataError: the file cannot be read, or its size has changed since the data was checked.
        """
        path = self.annotations.path(index)
        height, width = self.annotations.sizes[index].tolist()
        size = height, width
        reduction = self.transform.reduction(size, seed=seed, strength=strength)
        is_pillow = self.transform.resize == "pillow" and not reduction  # which needs an image of its own
        image = self.annotations.open(index) if is_pillow else self.annotations.read_pixels(index, reduction=reduction)
        if size_of(image) not in (size, (height // (reduction or 1), width // (reduction or 1))):
            found_height, found_width = size_of(image)
            raise DataError(
                f"{path}: is {found_width}x{found_height}, but was {width}x{height} when the data was checked"
            )
        objects = self.annotations.objects(index)
        warning = ""
        transform = self.transform
        try:
            pixels, objects = transform(image, objects, size=size, seed=seed, strength=strength)
        except DataError as error:  # the user's transform failed; this must neither end a run nor cost an image
            warning = f"{path}: {error}; the image is used without this transform"
            transform = replace(transform, user=None)
            pixels, objects = transform(image, objects, size=size, seed=seed, strength=strength)
        if self.annotations.cache is not None:
            warning = warning or self.annotations.cache.take_failure()
        more_views = tuple(view(image, seed=seed).image for view in self.more_views)
        return Sample(pixels, objects, index, more_views, warning)
