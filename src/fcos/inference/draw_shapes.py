"""Drawing of masks and skeletons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from ..keypoints import COCO_PERSON
from ..masks import THRESHOLD
from ..structures import Instances

_FILL, _RIM = 0.4, 0.35  # opacity of the area of a mask, and of the dark line around it
_INK = (17, 17, 17)


def draw_details(
    picture: Image.Image,
    instances: Instances,
    colors: Sequence[tuple[int, int, int]],
    *,
    skeleton: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Draw the masks and keypoints of objects, those that exist; the last ones are on top.

    Args:
        picture: RGB picture to draw on; it is modified.
        instances: objects in pixels of the picture.
        colors: RGB of every object, 0..255.
        skeleton: pairs of connected keypoints; None: those of `instances`, see `draw`.
    """
    masks = instances.mask_probabilities()
    if masks is not None:
        draw_masks(picture, masks, colors)
    if instances.keypoints is not None:
        skeleton = skeleton_of(instances) if skeleton is None else skeleton
        draw_skeletons(picture, instances.keypoints.tolist(), colors, skeleton=skeleton)


def skeleton_of(instances: Instances) -> Sequence[tuple[int, int]]:
    """Return the pairs of connected keypoints; if the names are unknown, those of COCO for 17 keypoints."""
    if instances.keypoint_layout.names:
        return instances.keypoint_layout.skeleton
    is_person = instances.keypoints is not None and instances.keypoints.shape[1] == len(COCO_PERSON.names)
    return COCO_PERSON.skeleton if is_person else ()


def draw_masks(picture: Image.Image, masks: Iterable[Tensor], colors: Sequence[tuple[int, int, int]]) -> None:
    """Fill masks with a transparent colour, and draw their outlines; the last masks are on top.

    A dark rim separates touching objects of the same class, and keeps light colours visible.

    Args:
        picture: RGB picture to draw on; it is modified.
        masks: probabilities of every object, float [H, W] in the size of the picture.
        colors: RGB of every object, 0..255.
    """
    line = _line_width(picture)
    pixels = np.asarray(picture, dtype=np.float32).copy()
    for mask, color in zip(masks, colors, strict=True):
        bitmap = mask.numpy() > THRESHOLD
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if not len(rows):
            continue
        margin = line + 1
        window = (
            slice(max(rows[0] - margin, 0), rows[-1] + 1 + margin),
            slice(max(columns[0] - margin, 0), columns[-1] + 1 + margin),
        )
        part, inside = pixels[window], bitmap[window]
        rim, border = _spread(inside, line) & ~inside, inside & _spread(~inside, line)
        part[rim] *= 1 - _RIM
        part[inside] += _FILL * (np.array(color, dtype=np.float32) - part[inside])
        part[border] = color
    picture.paste(Image.fromarray(pixels.round().astype(np.uint8)))


def _spread(bitmap: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels at most `distance` pixels from a bitmap along both axes, bool [H, W]."""
    image = Image.fromarray(bitmap.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * distance + 1))) > 0


def draw_skeletons(
    picture: Image.Image,
    keypoints: Sequence[Sequence[Sequence[float]]],
    colors: Sequence[tuple[int, int, int]],
    *,
    skeleton: Sequence[tuple[int, int]],
) -> None:
    """Draw keypoints as dots, and lines between connected ones; the last objects are on top.

    Args:
        picture: RGB picture to draw on; it is modified.
        keypoints: x, y and visibility or score of every keypoint of every object; only those above 0 are drawn.
        colors: RGB of every object, 0..255.
        skeleton: pairs of connected keypoints, counted from 0.
    """
    line = _line_width(picture)
    canvas = ImageDraw.Draw(picture)
    for points, color in zip(keypoints, colors, strict=True):
        places = {i: (x, y) for i, (x, y, visibility) in enumerate(points) if visibility > 0}
        bones = [(places[a], places[b]) for a, b in skeleton if a in places and b in places]
        for width, ink in ((2 * line + 3, _INK), (2 * line, color)):  # a dark rim, as around boxes
            for start, end in bones:
                canvas.line((*start, *end), fill=ink, width=width)
        for x, y in places.values():
            for radius, ink in ((2 * line + 2.5, _INK), (2 * line + 1, color)):
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _line_width(picture: Image.Image) -> int:
    return max(1, round(0.002 * (picture.width * picture.height) ** 0.5))
