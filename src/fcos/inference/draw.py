"""Drawing of detections: boxes with tags in the colours of their classes, masks and keypoints."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..data.opening import MAX_PIXELS
from ..errors import ConfigError
from ..structures import Instances
from .draw_shapes import draw_details
from .fonts import find_font
from .inputs import Picture, to_picture
from .marks import Mark, draw_marks

# Okabe and Ito's colours, distinguishable with any kind of colour vision; the blue is lighter, for dark pictures.
_PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (30, 120, 200), (213, 94, 0), (204, 121, 167)]
_INK = (17, 17, 17)
_PAPER = (255, 255, 255)
_READABLE_SIDE = 480  # pixels; smaller pictures are enlarged to about this shorter side
_LARGEST_SIDE = 8192  # pixels; enlarging stops at this longer side


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a label in 0..K-1: the same in every call, clearly different for adjacent labels."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    # Golden-ratio steps never repeat a hue; three levels of lightness distinguish close hues.
    hue, lightness = (0.11 + label * 0.61803398875) % 1.0, (0.55, 0.72, 0.42)[label % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Picture,
    instances: Instances,
    *,
    scores: bool = True,
    scale: int | None = None,
    skeleton: Sequence[tuple[int, int]] | None = None,
) -> Image.Image:
    """Draw boxes with their class names, numbers of tracks, masks and keypoints onto a copy of an image.

    Args:
        image: a path, URL, PIL image, array or tensor as in `Detector.predict`.
        instances: detections to draw. Their boxes are in pixels of a frame of `instances.size` and are scaled to the
            image.
        scores: write the score after the name.
        scale: whole-number factor by which the picture is enlarged first. None enlarges small pictures to a shorter
            side of about 480 pixels, so that lines and text are legible.
        skeleton: pairs of keypoints, counted from 0, that a line connects. None: those of `instances`, or if the names
            of their keypoints are unknown, those of COCO for 17 keypoints.

    Returns:
        RGB picture, `scale` times as large as the image.

    Raises:
        DataError: `image` is not a picture.
        ConfigError: `instances` is not an `Instances`, or `scale` is not a whole number of at least 1, or the result
            would have more than 178,956,970 pixels.
    """
    if not isinstance(instances, Instances):
        raise ConfigError(f"instances: expected the result of Detector.predict, found {type(instances).__name__}")
    picture = enlarged(to_picture(image), scale)
    scaled = instances.to("cpu").resize_to((picture.height, picture.width))
    order = scaled.scores.argsort(descending=True, stable=True).tolist()
    boxes, labels, names = scaled.boxes.tolist(), scaled.labels.tolist(), scaled.names
    if scaled.track_ids is not None:
        names = [f"{name} #{i}" if i > 0 else name for name, i in zip(names, scaled.track_ids.tolist(), strict=True)]
    colors = [class_color(labels[i]) for i in order[::-1]]
    draw_details(picture, scaled[order[::-1]], colors, skeleton=skeleton)
    shown_scores = scaled.scores.tolist() if scores else [None] * len(scaled)
    draw_marks(picture, [Mark(boxes[i], class_color(labels[i]), names[i], shown_scores[i]) for i in order])
    return picture


def enlarged(picture: Image.Image, scale: int | None = None) -> Image.Image:
    """Return a copy that is `scale` times as large; for `scale=None` and errors see `draw`."""
    if scale is None:
        readable, largest = round(_READABLE_SIDE / max(1, min(picture.size))), _LARGEST_SIDE // max(1, *picture.size)
        scale = max(1, min(readable, largest))
    if not isinstance(scale, int) or scale < 1:
        raise ConfigError(f"scale: expected an integer of at least 1, found {scale}")
    largest_scale = max(1, math.isqrt(MAX_PIXELS // max(1, picture.width * picture.height)))
    if scale > largest_scale:
        raise ConfigError(
            f"scale: expected at most {largest_scale} for a picture of {picture.width}x{picture.height} pixels, found"
            f" {scale}; the result would have more than {MAX_PIXELS} pixels"
        )
    if scale == 1:
        return picture.copy()
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def draw_pair(image: Picture, predictions: Instances, ground_truth: Instances) -> Image.Image:
    """Draw predictions (left) beside the ground truth (right), each with a caption above it.

    Args:
        image: a path, URL, PIL image, array or tensor as in `draw`.
        predictions: detections, drawn with their scores; boxes as in `draw`.
        ground_truth: annotated objects, drawn without scores; boxes as in `draw`.

    Returns:
        RGB picture; a small image is enlarged as in `draw`.

    Raises:
        DataError: `image` is not a picture.
    """
    panels = [
        (f"predicted: {len(predictions)}", draw(image, predictions)),
        (f"ground truth: {len(ground_truth)}", draw(image, ground_truth, scores=False)),
    ]
    width, height = panels[0][1].size
    gap = max(4, round(0.01 * width))
    size = max(12, round(0.022 * (width * height) ** 0.5))
    font = find_font(size)
    strip = round(size * 1.8)
    sheet = Image.new("RGB", (2 * width + gap, height + strip), _PAPER)
    canvas = ImageDraw.Draw(sheet)
    for left, (caption, panel) in zip((0, width + gap), panels, strict=True):
        sheet.paste(panel, (left, strip))
        canvas.text((left + size / 2, strip / 2), caption, fill=_INK, font=font, anchor="lm")
    return sheet
