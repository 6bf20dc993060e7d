"""Checks of all images and boxes of a Source; the usable ones become Annotations, the others are reported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DataError
from ..formatting import plural
from ..progress import progress_bar
from .box_format import find_wrong_formats
from .dataset import Annotations
from .images import OnImage, check_images
from .opening import MAX_PIXELS
from .orientation import swaps_sides, to_displayed
from .shape_checks import (
    BOXES_OF_MASKS,
    find_missing_masks,
    require_shapes,
    to_pixels,
    with_boxes_of_masks,
    without_empty_shapes,
)
from .source import Problem, Source, unused_ids

_PROGRESS_BAR_MIN = 1000  # number of images from which a progress bar is shown


def check_split(
    source: Source,
    *,
    class_names: Sequence[str] | None,
    category_ids: Sequence[int] | None,
    decode: bool,
    on_image: OnImage | None = None,
    max_pixels: int | None = MAX_PIXELS,
    bit_depth: int = 16,
    masks: bool = False,
    keypoints: bool = False,
    boxes_of_masks: bool = False,
    lossless: bool = False,
) -> tuple[Annotations, list[Problem]]:
    """Check all images and boxes of a split.

    Boxes that extend beyond their image are clipped. Clipping by more than half a pixel is reported as a warning.

    Args:
        source: split as read from its files.
        class_names: classes in label order; None: the classes of the source.
        category_ids: ids of `class_names`, used for classes that the source lacks. If None, or if an id is in use, the
            class gets an unused id.
        decode: decode every image instead of checking only its header and end.
        on_image: callback for every decoded image.
        max_pixels: largest number of pixels of an image; None: no limit.
        bit_depth: number of bits used in images with 16 bits per pixel.
        masks: masks are required of all objects but crowds.
        keypoints: keypoints are required, of any object.
        boxes_of_masks: replace the boxes by those around the masks, which are required.
        lossless: keep the masks and keypoints of any object, also if they are not required, and the values in the
            files: boxes and areas are float64, and boxes are not clipped. A split without classes is allowed.

    Returns:
        The usable images and boxes, and all problems.

    Raises:
        DataError: the data has no classes, or none of the required masks or keypoints.
    """
    masks_for = "data.masks=true" if masks else BOXES_OF_MASKS if boxes_of_masks else None
    if lossless:
        source = without_empty_shapes(source)
    source = require_shapes(source, masks_for=masks_for, keypoints=keypoints)
    names = tuple(source.class_names if class_names is None else class_names)
    if not names and not lossless:
        raise _no_classes(source)
    image_ok, sizes, orientations, image_problems = _check_images(source, decode, on_image, max_pixels, bit_depth)
    source, orientation_problems = to_displayed(source, sizes, orientations)
    format_problems = [] if boxes_of_masks else [*find_wrong_formats(source, sizes)]
    source = to_pixels(source, sizes)
    if boxes_of_masks:
        source = with_boxes_of_masks(source)
    labels, label_problems = _map_labels(source, names)
    boxes, box_ok, box_problems = _check_boxes(source, sizes, candidates=image_ok[source.image_of] & (labels >= 0))
    if masks_for or not lossless:
        box_ok, shape_problems = find_missing_masks(source, box_ok)
        box_problems += shape_problems
    images, kept = np.flatnonzero(image_ok), _order_by_image(source, box_ok)
    areas, area_problems = _check_areas(source, kept, boxes[kept], sizes)
    annotations = _select_usable(
        source if masks or lossless else replace(source, masks=None),
        images,
        kept,
        sizes=sizes[images],
        boxes=source.boxes[kept] if lossless else boxes[kept],
        labels=labels[kept],
        areas=areas if lossless else areas.astype(np.float32),
        class_names=names,
        category_ids=_category_ids(source, names, category_ids),
        bit_depth=bit_depth,
    )
    return annotations, [
        *source.problems,
        *format_problems,
        *image_problems,
        *orientation_problems,
        *label_problems,
        *box_problems,
        *area_problems,
        *_summary_warnings(source, annotations, source.image_ids[images]),
    ]


def _no_classes(source: Source) -> DataError:
    reason = f"; the first problem is {source.problems[0]}" if source.problems else ""
    where = source.annotation_file(0) if source.annotation_files else source.root
    return DataError(f"{where}: expected annotations with at least one class, found none{reason}")


def _select_usable(source: Source, images: np.ndarray, kept: np.ndarray, **attributes: Any) -> Annotations:
    """Return the images at the positions `images` and the boxes at `kept`; `attributes` holds the checked values."""
    names = [os.fsencode(source.file_names[i]) for i in images]
    num_boxes = np.bincount(source.image_of[kept], minlength=len(source.file_names))[images]
    return Annotations(
        root=source.root,
        names=b"".join(names),
        name_offsets=_to_offsets(np.array([len(name) for name in names], dtype=np.int64)),
        image_ids=_make_ids_unique(source.image_ids[images]),
        offsets=_to_offsets(num_boxes),
        crowd=source.crowd[kept],
        masks=None if source.masks is None else source.masks[kept],
        keypoints=None if source.keypoints is None else source.keypoints[kept],
        annotation_ids=_make_ids_unique(source.numbers[kept]) if _has_ids(source) else np.arange(1, len(kept) + 1),
        **attributes,
    )


def _order_by_image(source: Source, mask: np.ndarray) -> np.ndarray:
    """Return the positions of the boxes in a mask [B], in the order of their images."""
    positions = np.flatnonzero(mask)
    return positions[np.argsort(source.image_of[positions], kind="stable")]


def _has_ids(source: Source) -> bool:
    """Return whether the annotation files contain ids of images and boxes, which only COCO does."""
    return source.unit == "annotation"


def _summary_warnings(source: Source, annotations: Annotations, file_ids: np.ndarray) -> list[Problem]:
    """Return warnings about the number of images with new ids and of images without boxes.

    Args:
        source: split as read from its files.
        annotations: usable images and boxes.
        file_ids: int64 [I], ids of the usable images in their files.
    """
    warnings = []
    num_new_ids = int((annotations.image_ids != file_ids).sum())
    if num_new_ids and _has_ids(source):
        message = f"{plural(num_new_ids, 'image')} with an id that another file also uses; new ids assigned"
        warnings.append(Problem("repeated image id", str(source.root), "", message, "warning"))
    num_without_boxes = int((np.diff(annotations.offsets) == 0).sum())
    if num_without_boxes:
        message = f"{num_without_boxes} of {len(annotations)} images have no boxes; they are used as background"
        warnings.append(Problem("image without boxes", str(source.root), "", message, "warning"))
    return warnings


def _make_ids_unique(ids: np.ndarray) -> np.ndarray:
    """Replace repeated ids [I], except for their first occurrence, by unused ones. Concatenated files may share ids."""
    _, first = np.unique(ids, return_index=True)
    repeated = np.setdiff1d(np.arange(len(ids)), first)
    ids = ids.copy()
    ids[repeated] = unused_ids(ids.tolist(), len(repeated))
    return ids


def _to_offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _check_images(
    source: Source, decode: bool, on_image: OnImage | None, max_pixels: int | None, bit_depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Problem]]:
    """Return a mask of the usable images [I], their sizes [I, 2] as displayed, EXIF orientations [I], and the problems.

    The annotated size may be the one before or after the EXIF orientation.
    """
    paths = [source.path(i) for i in range(len(source.file_names))]
    usable, orientations = np.ones(len(paths), dtype=bool), np.ones(len(paths), dtype=np.int64)
    sizes, problems = np.zeros((len(paths), 2), dtype=np.int32), []
    with progress_bar("checking images", shown=len(paths) >= _PROGRESS_BAR_MIN) as update:
        checks = check_images(paths, decode=decode, on_image=on_image, max_pixels=max_pixels, bit_depth=bit_depth)
        for i, check in enumerate(checks):
            sizes[i], orientations[i] = check.size, check.orientation
            declared = tuple(source.sizes[i].tolist())
            accepted = (check.size, check.size[::-1] if swaps_sides(check.orientation) else check.size)
            message = check.problem
            kind = "missing image" if message == "no such file" else "unreadable image"
            if message is None and 0 not in declared and declared not in accepted:
                kind = "wrong image size"
                (height, width), declared_size = check.size, f"{declared[1]}x{declared[0]}"
                message = f"{source.annotation_file(i)} says {declared_size} but the image is {width}x{height}"
            if message is not None:
                usable[i] = False
                problems.append(Problem(kind, str(paths[i]), f"image {source.image_ids[i]}", message))
            update(i + 1, len(paths))
    return usable, sizes, orientations, problems


def _map_labels(source: Source, names: Sequence[str]) -> tuple[np.ndarray, list[Problem]]:
    """Return labels [B] as positions in `names`, -1 if absent, and one problem per unknown class that has boxes."""
    label_of_name = {name: label for label, name in enumerate(names)}
    new_labels = np.array([label_of_name.get(name, -1) for name in source.class_names], dtype=np.int64)
    problems = []
    for old in np.flatnonzero(new_labels < 0):
        boxes = np.flatnonzero(source.labels == old)
        if len(boxes):
            count, expected = plural(len(boxes), "box"), f"{', '.join(names):.200}"
            message = f"{count} of class {source.class_names[old]!r}; expected one of {expected}"
            problems.append(source.box_problem(int(boxes[0]), "unknown class", message))
    labels = new_labels[source.labels] if len(source.labels) else source.labels
    return labels, problems


def _category_ids(source: Source, names: Sequence[str], preferred: Sequence[int] | None) -> tuple[int, ...]:
    """Return the id of every name: the source's id, else the preferred one if free, else an unused one."""
    ids = dict(zip(source.class_names, source.category_ids, strict=True))
    for label, name in enumerate(names):
        if name not in ids:
            used = set(ids.values())
            ids[name] = preferred[label] if preferred and preferred[label] not in used else unused_ids(used, 1)[0]
    return tuple(ids[name] for name in names)


def _check_boxes(
    source: Source, sizes: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Return boxes [B, 4] float32 clipped to their images, a mask of the usable boxes [B], and the problems.

    Only the boxes in the mask `candidates` [B] are checked.
    """
    frames = sizes[source.image_of].astype(np.float64)[:, [1, 0, 1, 0]]
    finite = np.isfinite(source.boxes).all(axis=1)
    raw = np.where(np.expand_dims(finite, 1), source.boxes, 0.0)
    boxes = np.clip(raw, 0, frames).astype(np.float32)
    with np.errstate(over="ignore"):
        extent = raw[:, 2:] - raw[:, :2]
    inverted = (extent < 0).any(axis=1)
    outside = ((raw[:, :2] >= frames[:, :2]) | (raw[:, 2:] <= 0)).any(axis=1)
    empty = (extent == 0).any(axis=1) | (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    clipped = (np.abs(boxes - raw) > 0.5).any(axis=1)
    problems: list[Problem] = []
    for i in np.flatnonzero(candidates & ~finite):
        problems.append(
            source.box_problem(int(i), "box without numbers", "its box does not consist of four finite numbers")
        )
    remaining = candidates & finite
    for kind, mask, text in (
        ("inverted box", inverted, "has x2 < x1 or y2 < y1"),
        ("box outside image", outside & ~(extent == 0).any(axis=1), "is outside the image"),
        ("empty box", empty, "has no area"),
    ):
        bad = np.flatnonzero(remaining & mask)
        problems += [source.box_problem(int(i), kind, f"{_format_box(raw[i], frames[i])} {text}") for i in bad]
        remaining[bad] = False
    for i in np.flatnonzero(remaining & clipped):
        message = f"{_format_box(raw[i], frames[i])} extends beyond the image; clipped"
        problems.append(source.box_problem(int(i), "clipped box", message, "warning"))
    return boxes, remaining, problems


def _check_areas(
    source: Source, kept: np.ndarray, boxes: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, list[Problem]]:
    """Return the areas of the boxes at the positions `kept`, float64, and the problems.

    An area that is missing, not positive or larger than the image is replaced by the area of the box.
    """
    areas = source.areas[kept]
    too_large = areas > sizes[source.image_of[kept]].prod(axis=1, dtype=np.float64)
    problems = [
        source.box_problem(
            int(kept[i]), "wrong area", f"area {areas[i]:g} is larger than the image; the box is used", "warning"
        )
        for i in np.flatnonzero(too_large)
    ]
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.where((areas > 0) & ~too_large, areas, box_areas), problems


def _format_box(box: np.ndarray, frame: np.ndarray) -> str:
    return f"box x1 y1 x2 y2 = {' '.join(f'{v:g}' for v in box)} of the {frame[0]:g}x{frame[1]:g} image"
