"""Data structures that pass through the detector, and their units.

Boxes are XYXY in absolute pixels of the stated frame, float32. In the `continuous` convention (the default everywhere)
a box covers [x1, x2) and its width is x2 - x1. In the `inclusive` convention of the original code x2 is the last
covered pixel and the width is x2 - x1 + 1. Sizes are (height, width). Labels are 0..K-1 without background.
Images are RGB uint8.

Shape letters: N images, M ground-truth boxes of one image, D detections of one image, P keypoints of an object, S size
of a mask grid, H W image size.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor

from .choices import BoxConvention, MaskPasting
from .columns import concatenate, map_columns, require_columns, split
from .formatting import printable
from .keypoints import UNNAMED, KeypointLayout
from .masks import THRESHOLD, Masks, encode, paste, paste_exactly

if TYPE_CHECKING:
    import pandas  # pyright: ignore[reportMissingImports] (optional)
    import supervision


@dataclass(frozen=True, eq=False)
class Objects:
    """Ground truth of one image.

    Attributes:
        boxes: [M, 4] float XYXY in pixels of the image.
        labels: [M] int64 in 0..K-1.
        is_crowd: [M] bool. A crowd box is an ignore region, neither object nor background. None: no crowd boxes.
        masks: masks of the M objects in pixels of the image; None: unknown.
        keypoints: [M, P, 3] float (x, y, visibility), x and y in pixels of the image; the visibility is 0 (not
            annotated), 1 (hidden) or 2 (visible). None: unknown.
        seed: seed of the random samples that detectors draw for the image in training, 0..2^63-1.

    Raises:
        ValueError: a tensor has a wrong shape or dtype, or the lengths differ.
    """

    boxes: Tensor
    labels: Tensor
    is_crowd: Tensor = None  # pyright: ignore[reportAssignmentType] (filled in)
    masks: Masks | None = None
    keypoints: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.is_crowd is None and isinstance(self.labels, Tensor):
            object.__setattr__(self, "is_crowd", torch.zeros_like(self.labels, dtype=torch.bool))
        require_columns(self)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Objects:
        """Select objects by a mask, indices or a slice."""
        return map_columns(self, lambda column: column[index])

    def to(self, device: torch.device | str) -> Objects:
        """Copy all tensors to a device."""
        return map_columns(self, lambda column: column.to(device, non_blocking=True))

    @staticmethod
    def concatenate(images: Sequence[Objects]) -> Objects:
        """Concatenate the objects of one or more images; `split` is the inverse.

        Raises:
            ValueError: only some images have masks or keypoints.
        """
        return concatenate(images)

    def split(self, counts: Sequence[int]) -> list[Objects]:
        """Split into the objects of each image, given their numbers."""
        return split(self, counts)


class View(NamedTuple):
    """View of the images of a batch (resized or mirrored) that is passed to the detector.

    Attributes:
        images: [N, 3, H, W] uint8 RGB, zero-padded at the right and the bottom.
        sizes: [N, 2] int64, (height, width) of every image without the padding.
        flipped: True if the images are mirrored left to right.
    """

    images: Tensor
    sizes: Tensor
    flipped: bool = False

    def to(self, device: torch.device | str) -> View:
        """Copy all tensors to a device."""
        return View(self.images.to(device, non_blocking=True), self.sizes.to(device), self.flipped)


class Batch(NamedTuple):
    """Batch of a data loader.

    Attributes:
        images: [N, 3, H, W] uint8 RGB, zero-padded at the right and the bottom.
        sizes: [N, 2] int64, (height, width) of every image without the padding.
        targets: ground truth of the N images in pixels of `images`; None for inference.
        indices: [N] int64, indices into the data set's `Annotations` (`path(i)`, `image_ids[i]`, `sizes[i]`).
        more_views: the same images resized differently or mirrored, for test-time augmentation.
    """

    images: Tensor
    sizes: Tensor
    targets: Sequence[Objects] | None
    indices: Tensor
    more_views: Sequence[View] = ()

    @property
    def views(self) -> list[View]:
        """`images` as a view, followed by `more_views`."""
        return [View(self.images, self.sizes), *self.more_views]

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device. The ground truth of all images is concatenated first, to save transfers."""
        targets = self.targets
        if targets:
            targets = Objects.concatenate(targets).to(device).split([len(objects) for objects in targets])
        (images, sizes, _), *more = (view.to(device) for view in self.views)
        return Batch(images, sizes, targets, self.indices, more)


class Losses(NamedTuple):
    """Losses of a detector for a batch with ground truth.

    Attributes:
        terms: scalar losses by name, see `DetectionModel.loss_names`; their sum is minimised.
        stats: 0-dim counts of ground-truth boxes (without crowd boxes) by name, such as `unassigned`, the boxes that
            are not the target of any prediction. Training logs them as fractions of all boxes.
    """

    terms: Mapping[str, Tensor]
    stats: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """Detections of one image.

    Attributes:
        boxes: [D, 4] float32 XYXY in pixels of a frame of `size`.
        labels: [D] int64 in 0..K-1.
        scores: [D] float32 in 0..1.
        size: (height, width) of the frame.
        class_names: K class names; empty if unknown.
        mask_grids: [D, S, S] float32, probability in 0..1 that a point belongs to the object, on a grid that spans the
            box; None if the detector has no masks.
        keypoints: [D, P, 3] float32 (x, y, score), x and y in pixels of the frame; None if the detector has none.
        mask_margin: pixels of the frame by which masks extend beyond the right and lower sides of their boxes.
        polygons: masks of annotated objects in pixels of the frame, in place of `mask_grids`; they may exceed the
            boxes.
        keypoint_layout: names, skeleton and flip pairs of the keypoints; without names if unknown.
        mask_pasting: `truncated`: the corners of boxes are truncated to whole pixels for their masks; `exact`: they are
            not, and there is no margin.
        track_ids: [D] int64, numbers of the objects in a video, from 1; -1 for an object without a number yet. None:
            not tracked.

    Raises:
        ValueError: a tensor has a wrong shape or dtype, the lengths differ, or the size or class names are invalid.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    size: tuple[int, int]
    class_names: tuple[str, ...] = ()
    mask_grids: Tensor | None = None
    keypoints: Tensor | None = None
    mask_margin: float = 0.0
    polygons: Masks | None = None
    keypoint_layout: KeypointLayout = UNNAMED
    mask_pasting: MaskPasting = "truncated"
    track_ids: Tensor | None = None

    def __post_init__(self) -> None:
        require_columns(self)
        size = self.size
        try:
            height, width = map(operator.index, size)
        except (TypeError, ValueError):
            height = width = 0
        if height < 1 or width < 1:
            raise ValueError(f"Instances.size: expected (height, width), two positive integers, found {size!r:.80}")
        object.__setattr__(self, "size", (height, width))
        names = self.class_names
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"Instances.class_names: expected a tuple of strings, found {names!r:.80}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        """Return a summary such as `Instances(3 RBC, 1 WBC in 640x480)`: counts by class, and width x height."""
        return f"{type(self).__name__}({self.summary()} in {self.size[1]}x{self.size[0]})"

    def summary(self) -> str:
        """Return the number of detections by class, most frequent first, such as `3 RBC, 1 WBC`; or `nothing`."""
        counts = Counter(map(printable, self.names))
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"

    def __getitem__(self, index: SupportsIndex | Tensor | slice | Sequence[int]) -> Self:
        """Select detections by a mask, indices or a slice. An integer gives `Instances` with one detection.

        Raises:
            IndexError: an index is out of range.
            TypeError: a single index is not an integer. A single bool is rejected: a mask needs one per detection.
        """
        selection: Any = index
        if isinstance(index, Sequence):
            selection = torch.as_tensor(index, dtype=None if len(index) else torch.int64, device=self.boxes.device)
        elif not isinstance(index, slice) and getattr(index, "ndim", 0) == 0:
            if isinstance(index, bool) or getattr(index, "dtype", None) in (bool, torch.bool):
                raise TypeError(f"expected an integer or a mask of {len(self)} bools, found {index}")
            position = range(len(self))[operator.index(index)]
            selection = slice(position, position + 1)
        return map_columns(self, lambda column: column[selection])

    def __iter__(self) -> Iterator[Self]:
        """Iterate over the detections, each as `Instances` of length 1."""
        return (self[i] for i in range(len(self)))

    @property
    def names(self) -> list[str]:
        """Class name of every detection (the label as text if the names are unknown)."""
        return [self.class_names[i] if self.class_names else str(i) for i in self.labels.tolist()]

    @property
    def boxes_xywh(self) -> Tensor:
        """Boxes as in COCO files, [D, 4]: left, top, width, height in pixels."""
        return torch.cat([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], dim=1)

    @property
    def boxes_normalized(self) -> Tensor:
        """XYXY boxes as fractions of the frame's width and height, [D, 4], 0..1 for boxes inside the frame."""
        height, width = self.size
        return self.boxes / self.boxes.new_tensor([width, height] * 2)

    @property
    def masks(self) -> Tensor | None:
        """Masks of the detections in the frame, bool [D, H, W]; None if the detector has none.

        They are computed at every access. `mask_codes` needs less memory if the frame is large.
        """
        pasted = self.mask_probabilities()
        if pasted is None:
            return None
        bitmaps = [bitmap > THRESHOLD for bitmap in pasted]
        return (torch.stack(bitmaps) if bitmaps else torch.zeros(0, *self.size, dtype=torch.bool)).to(self.boxes.device)

    def mask_codes(self) -> list[dict[str, Any]] | None:
        """Return `masks` as COCO's RLE, a dict of `size` (height, width) and `counts` (text) for every detection."""
        pasted = self.mask_probabilities()
        return None if pasted is None else [encode(bitmap > THRESHOLD) for bitmap in pasted]

    def mask_probabilities(self) -> Iterator[Tensor] | None:
        """Iterate over the probabilities of the pixels of each detection, float32 [H, W]; None without masks.

        Pixels above 0.5 are the mask.
        """
        if self.polygons is not None:
            return (self.polygons[i].to_bitmaps(self.size)[0].float() for i in range(len(self)))
        if self.mask_grids is None:
            return None
        if self.mask_pasting == "exact":
            return paste_exactly(self.mask_grids, self.boxes, self.size)
        extra = 1.0 - self.mask_margin
        inclusive = self.boxes - self.boxes.new_tensor([0.0, 0.0, extra, extra])
        return paste(self.mask_grids, inclusive, self.size)

    def shapes_in_coco_form(self) -> dict[str, list[Any]]:
        """Return the lists `segmentation` (RLEs) and `keypoints` (flat lists) of all detections, those that exist."""
        codes, keypoints = self.mask_codes(), self.keypoints
        shapes: dict[str, list[Any]] = {} if codes is None else {"segmentation": codes}
        return shapes if keypoints is None else shapes | {"keypoints": keypoints.flatten(1).tolist()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: `width`, `height` and `detections`, a list of dicts of name, label, score and XYXY box.

        Detections with a mask have `segmentation`, its RLE as in COCO files, and those with keypoints have `keypoints`,
        a flat list x1, y1, score1, x2, ... as in COCO results. Tracked ones have `track_id`, None without a number yet.
        """
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        detections = [{"name": name, "label": label, "score": score, "box": box} for name, label, score, box in rows]
        more: dict[str, list[Any]] = {}
        if self.track_ids is not None:
            more["track_id"] = [number if number > 0 else None for number in self.track_ids.tolist()]
        for key, values in (more | self.shapes_in_coco_form()).items():
            for detection, value in zip(detections, values, strict=True):
                detection[key] = value
        return {"width": self.size[1], "height": self.size[0], "detections": detections}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the data of `to_dict` as JSON, on one line unless `indent` is given."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dataframe(self) -> pandas.DataFrame:
        """Convert to a `pandas.DataFrame` with a row per detection: name, label, score, x1, y1, x2, y2.

        Raises:
            ImportError: the package `pandas` is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports] (optional)
        except ImportError as error:
            raise ImportError("to_dataframe() needs `pip install pandas`") from error
        columns = {"name": self.names, "label": self.labels.tolist(), "score": self.scores.tolist()}
        for i, name in enumerate(("x1", "y1", "x2", "y2")):
            columns[name] = self.boxes[:, i].tolist()
        return pandas.DataFrame(columns)

    def to(self, device: torch.device | str) -> Self:
        """Copy all tensors to a device."""
        return map_columns(self, lambda column: column.to(device))

    @staticmethod
    def concatenate(parts: Sequence[Instances]) -> Instances:
        """Concatenate detections, all in frames of the same size; size and class names are those of the first part.

        Raises:
            ValueError: only some parts have masks or keypoints.
        """
        return concatenate(parts)

    def resize_to(self, size: tuple[int, int]) -> Self:
        """Scale to a frame of size (height, width); the scales of the two axes are independent."""
        scale_y, scale_x = (new / old for new, old in zip(size, self.size, strict=True))
        keypoints = self.keypoints
        if keypoints is not None:
            keypoints = keypoints * keypoints.new_tensor([scale_x, scale_y, 1.0])
        boxes = self.boxes * self.boxes.new_tensor([scale_x, scale_y] * 2)
        polygons = None if self.polygons is None else self.polygons.scale(scale_x, scale_y)
        return replace(self, boxes=boxes, keypoints=keypoints, polygons=polygons, size=size)

    def crop(self, x1: int, y1: int, x2: int, y2: int) -> Self:
        """Move to a frame that is the section (x1, y1, x2, y2) of the present one, or extends beyond it."""
        origin, keypoints = self.boxes.new_tensor([x1, y1]), self.keypoints
        return replace(
            self,
            boxes=self.boxes - origin.repeat(2),
            keypoints=None if keypoints is None else keypoints - keypoints.new_tensor([x1, y1, 0]),
            polygons=None if self.polygons is None else self.polygons.translate(-x1, -y1),
            size=(y2 - y1, x2 - x1),
        )

    def clip(self) -> Self:
        """Clip boxes in the `continuous` convention to the frame. Keypoints outside the frame stay."""
        height, width = self.size
        limit = self.boxes.new_tensor([width, height] * 2)
        return replace(self, boxes=torch.minimum(self.boxes.clamp(min=0), limit))

    def to_continuous(self, convention: BoxConvention) -> Self:
        """Convert boxes of the given convention to `continuous`. Boxes inside the frame stay inside."""
        if convention == "continuous":
            return self
        return replace(self, boxes=self.boxes + self.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]))

    def to_supervision(self) -> supervision.Detections:
        """Convert to `supervision.Detections`, with class names and keypoints in `data`, and `track_ids` as tracker_id.

        The keys of `data` are `class_name` and `keypoints`. If the names of the keypoints are known, `metadata` has
        `keypoint_names`, and the pairs of connected keypoints, counted from 0, as `skeleton`.

        Raises:
            ImportError: the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision() needs `pip install supervision`") from error
        import numpy as np

        masks, data = self.masks, dict[str, Any](class_name=np.array(self.names))
        names, skeleton, _ = self.keypoint_layout
        if self.keypoints is not None:
            data["keypoints"] = self.keypoints.cpu().numpy()
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=None if masks is None else masks.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.cpu().numpy(),
            data=data,
            metadata={"keypoint_names": list(names), "skeleton": list(skeleton)} if names else {},
        )
