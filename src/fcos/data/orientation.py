"""EXIF orientation of images and boxes.

Images are used as viewers show them. Boxes usually refer to the displayed image, too, but some tools ignore EXIF and
annotate the stored pixels. The annotated image size tells which, unless the orientation keeps the size.

Shape letters: I images, B boxes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import ExifTags, Image

from ..formatting import join_some, plural
from .source import Problem, Source

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = (5, 6, 7, 8)
_REVERSALS = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
"""Steps through rows and columns that display an image, after rows and columns were exchanged for `_SWAPPING`."""
_METADATA = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_TOLERANCE = 0.5  # pixels; as for boxes that extend beyond their image


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (as stored) if it is missing or invalid."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow may raise almost any exception for damaged EXIF data, which viewers ignore
        return 1
    return int(orientation) if orientation in _TRANSPOSITIONS else 1


def swaps_sides(orientation: int) -> bool:
    """Return True if an orientation exchanges width and height."""
    return orientation in _SWAPPING


def apply_orientation(image: Image.Image) -> Image.Image:
    """Return an image as displayed; the result has no orientation any more.

    Unlike `PIL.ImageOps.exif_transpose`, this does not write the other EXIF tags again, which fails for odd values.
    """
    orientation = read_orientation(image)
    if orientation == 1:
        return image
    displayed = image.transpose(_TRANSPOSITIONS[orientation])
    for key in _METADATA:
        displayed.info.pop(key, None)
    return displayed


def orient_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return stored pixels as displayed.

    Args:
        pixels: [H, W, 3] as stored.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        [H', W', 3], contiguous.
    """
    if orientation in _SWAPPING:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = _REVERSALS[orientation]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def to_displayed(source: Source, sizes: np.ndarray, orientations: np.ndarray) -> tuple[Source, list[Problem]]:
    """Convert boxes, masks and keypoints that refer to stored pixels to the displayed images.

    Boxes refer to stored pixels if the annotated size is the stored one, unless they fit only into the displayed image.

    Args:
        source: split as read from its files.
        sizes: int32 [I, 2], (height, width) of the displayed images.
        orientations: int64 [I], EXIF orientations; 1 for unusable images.

    Returns:
        The source with the boxes of the displayed images, in their unit, and warnings.
    """
    num_boxes = np.bincount(source.image_of, minlength=len(sizes))
    can_tell = np.isin(orientations, _SWAPPING) & (sizes[:, 0] != sizes[:, 1]) & (source.sizes > 0).all(axis=1)
    is_stored = can_tell & (source.sizes == sizes[:, ::-1]).all(axis=1) & (num_boxes > 0)
    extents = np.ones_like(sizes) if source.relative else sizes  # largest coordinates in the unit of the boxes
    is_stored &= _fits(source, extents[:, ::-1]) | ~_fits(source, extents)
    warnings = []
    unclear = np.flatnonzero((orientations > 1) & (num_boxes > 0) & ~can_tell)
    if len(unclear):
        text = (
            f"{plural(len(unclear), 'image')} with an EXIF orientation, and no annotated size that tells whether the"
            " boxes refer to the image before or after it; used as boxes after it"
        )
        warnings.append(_warning("unclear orientation", source, unclear, text))
    converted = np.flatnonzero(is_stored)
    if len(converted):
        text = f"{plural(len(converted), 'image')} annotated before the EXIF orientation; boxes are converted"
        warnings.append(_warning("converted orientation", source, converted, text))
    selected = np.flatnonzero(is_stored[source.image_of])
    if not len(selected):
        return source, warnings
    boxes, images = source.boxes.copy(), source.image_of[selected]
    boxes[selected] = _display(boxes[selected], extents[images], orientations[images])
    return _display_shapes(replace(source, boxes=boxes), selected, extents, orientations), warnings


def _display_shapes(source: Source, selected: np.ndarray, extents: np.ndarray, orientations: np.ndarray) -> Source:
    """Convert the masks and keypoints of the boxes at the positions `selected`.

    Args:
        source: split as read from its files.
        selected: positions of boxes.
        extents: [I, 2], (height, width) of the displayed images in the unit of the boxes.
        orientations: int64 [I], EXIF orientations.
    """
    masks, keypoints, images = source.masks, source.keypoints, source.image_of[selected]
    if masks is not None:
        points, starts = masks.points.copy(), masks.ring_offsets[masks.object_offsets]
        for box, image in zip(selected, images, strict=True):
            of_box = slice(starts[box], starts[box + 1])
            points[of_box] = _display_points(points[of_box], extents[image], orientations[image])
        masks = replace(masks, points=points)
    if keypoints is not None:
        values = keypoints.values.copy()
        for box, image in zip(selected, images, strict=True):
            is_annotated = values[box, :, 2] > 0
            points = values[box, is_annotated, :2]
            values[box, is_annotated, :2] = _display_points(points, extents[image], orientations[image])
        keypoints = replace(keypoints, values=values)
    return replace(source, masks=masks, keypoints=keypoints)


def _display_points(points: np.ndarray, size: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Convert points [T, 2] of one image like boxes without extent."""
    sizes, orientations = (np.repeat(value[None], len(points), axis=0) for value in (size, orientation))
    return _display(np.concatenate([points, points], axis=1), sizes, orientations)[:, :2]


def _fits(source: Source, sizes: np.ndarray) -> np.ndarray:
    """Return a mask [I] of the images whose boxes fit into images of the given sizes (height, width)."""
    frames = sizes[source.image_of][:, ::-1]
    is_inside = (source.boxes[:, :2] >= -_TOLERANCE) & (source.boxes[:, 2:] <= frames + _TOLERANCE)
    fits = np.ones(len(sizes), dtype=bool)
    fits[source.image_of[~is_inside.all(axis=1)]] = False
    return fits


def _display(boxes: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> np.ndarray:
    """Convert boxes [B, 4] of stored pixels to displayed images of sizes [B, 2] whose sides are exchanged.

    For boxes in fractions of the image, the sizes are 1.
    """
    x1, y1, x2, y2 = boxes.T
    height, width = sizes.T
    mirrors_x, mirrors_y = np.isin(orientations, (6, 7)), np.isin(orientations, (7, 8))
    return np.stack(
        [
            np.where(mirrors_x, width - y2, y1),
            np.where(mirrors_y, height - x2, x1),
            np.where(mirrors_x, width - y1, y2),
            np.where(mirrors_y, height - x1, x2),
        ],
        axis=1,
    )


def _warning(kind: str, source: Source, images: np.ndarray, message: str) -> Problem:
    examples = join_some([source.file_names[i] for i in images])
    return Problem(kind, str(source.root), "", f"{message}: {examples}", "warning")
