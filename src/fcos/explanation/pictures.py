"""Pictures and maps of an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ..html_page import WIDTH, Chart
from ..inference.draw import class_color, enlarged
from ..inference.marks import Mark, draw_marks
from .explain import Explanation
from .misses import Miss

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinguishable with any kind of colour vision.
MISSED, OWN, OTHER = (240, 228, 66), (86, 180, 233), (213, 94, 0)
"""Colours of a missed object, of the box for it, and of the box that replaced it."""
_MAX_SIDE = 900
_TEXT_SIZE = 0.024  # font size as a share of the longer side
_CONTEXT = 2.5  # shown around a missed object, as a multiple of its longer side
_MIN_WINDOW = 0.3  # smallest shown part, as a share of the image's shorter side
_MAX_TAGS = 30
_COLORMAP = "viridis"  # its lightness rises evenly, so it can be read with any kind of colour vision


def level_color(level: int) -> tuple[int, int, int]:
    """Return the RGB colour of a pyramid level."""
    return class_color(level)


def draw_detections(explanation: Explanation) -> Image.Image:
    """Draw the shown detections in the colours of their levels, with the location that predicted each.

    Lines run from the location to the four sides of its box, which are the distances that the head predicts.
    """
    picture, scale = _canvas(explanation)
    trace, shown = explanation.trace, explanation.shown.tolist()
    marks, canvas = [], ImageDraw.Draw(picture, "RGBA")
    line = max(2, round(0.002 * max(picture.size)))
    for number, i in reversed(list(enumerate(shown, start=1))):
        location = int(trace.locations[i])
        color = level_color(int(explanation.levels[location]))
        box = (trace.boxes[i].numpy() * scale).tolist()
        x, y = (explanation.points[location].numpy() * scale[:2]).tolist()
        for end in ((box[0], y), (x, box[1]), (box[2], y), (x, box[3])):
            canvas.line((x, y, *end), fill=(*color, 255), width=line)
        radius = 2.5 * line
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=(0, 0, 0), width=line // 2)
        tagged = number <= _MAX_TAGS
        name = f"{number} {explanation.class_names[int(trace.labels[i])]}" if tagged else ""
        marks.insert(0, Mark(box, color, name, float(trace.scores[i]) if tagged else None))
    _draw(picture, marks)
    return picture


def draw_boxes(explanation: Explanation, predictions: Sequence[int]) -> Image.Image:
    """Draw the boxes of predictions without tags, in the colours of their levels."""
    picture, scale = _canvas(explanation)
    canvas = ImageDraw.Draw(picture, "RGBA")
    line = max(1, round(0.0015 * max(picture.size)))
    for i in reversed(predictions):
        color = level_color(int(explanation.levels[int(explanation.trace.locations[i])]))
        canvas.rectangle((explanation.trace.boxes[i].numpy() * scale).tolist(), outline=(*color, 200), width=line)
    return picture


def draw_miss(explanation: Explanation, miss: Miss) -> Image.Image:
    """Draw a missed object, the box that was best for it, its location, and the box that replaced it."""
    assert explanation.objects is not None
    objects, names = explanation.objects, explanation.class_names
    x1, y1, x2, y2 = objects.boxes[miss.index].tolist()
    image = explanation.image
    side = max(_CONTEXT * max(x2 - x1, y2 - y1), _MIN_WINDOW * min(image.size))
    center_x, center_y = (x1 + x2) / 2, (y1 + y2) / 2
    window = (
        max(round(center_x - side / 2), 0),
        max(round(center_y - side / 2), 0),
        min(round(center_x + side / 2), image.width),
        min(round(center_y + side / 2), image.height),
    )
    crop = image.crop(window)
    picture = _fitted(crop)
    scale, origin = np.array([picture.width / crop.width, picture.height / crop.height] * 2), np.array(window[:2] * 2)

    def place(box: Sequence[float]) -> list[float]:
        return ((np.array(box) - origin) * scale).tolist()

    marks = [Mark(place([x1, y1, x2, y2]), MISSED, names[int(objects.labels[miss.index])], dashed=True)]
    if miss.other >= 0:
        label, score = int(explanation.trace.labels[miss.other]), float(explanation.trace.scores[miss.other])
        marks.append(Mark(place(explanation.trace.boxes[miss.other].tolist()), OTHER, names[label], score))
    if miss.box is not None and miss.reason not in ("wrong class", "matched to another object"):
        marks.append(Mark(place(miss.box), OWN))
    _draw(picture, marks)
    if miss.location >= 0:
        x, y = ((explanation.points[miss.location].numpy() - origin[:2]) * scale[:2]).tolist()
        radius = 0.012 * max(picture.size)
        place_of_dot = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(picture).ellipse(place_of_dot, fill=OWN, outline=(0, 0, 0), width=2)
    return picture


def map_charts(explanation: Explanation, maps: Sequence[Tensor], *, high: float, label: str) -> list[Chart]:
    """Create a chart of a map [H, W] of every level over the area of the image, with the shown detections outlined.

    Args:
        explanation: the explanation.
        maps: a map in 0..1 of every level.
        high: value of the brightest colour, > 0.
        label: label of the colour scale.
    """
    height, width = explanation.resized
    charts = []
    for level, stride, values in zip(range(len(maps)), explanation.strides, maps, strict=True):
        # The cells that the image covers, without those in the padding.
        cells = values[: -(-height // stride), : -(-width // stride)].numpy()
        title = f"Stride {stride}, {cells.shape[1]} x {cells.shape[0]} locations: up to {cells.max():.2f}"
        draw = _MapDrawing(explanation, level, cells, high, label)
        charts.append(Chart(title, draw, min(max(round(0.8 * WIDTH * height / width) + 40, 130), 520)))
    return charts


class _MapDrawing:
    """Function that draws a map on axes in pixels of the original image."""

    def __init__(self, explanation: Explanation, level: int, cells: np.ndarray, high: float, label: str) -> None:
        self.explanation, self.level, self.cells, self.high, self.label = explanation, level, cells, high, label

    def __call__(self, axes: Axes) -> None:
        from matplotlib.patches import Rectangle
        from matplotlib.patheffects import withStroke

        explanation, stride = self.explanation, self.explanation.strides[self.level]
        size = np.array([explanation.image.height, explanation.image.width])
        bottom, right = np.array(self.cells.shape) * stride * size / explanation.resized
        drawn = axes.imshow(
            self.cells,
            cmap=_COLORMAP,
            vmin=0.0,
            vmax=self.high,
            extent=(0, float(right), float(bottom), 0),
            interpolation="none",
        )
        for i in explanation.shown.tolist()[:_MAX_TAGS]:
            x1, y1, x2, y2 = explanation.trace.boxes[i].tolist()
            is_own = int(explanation.levels[int(explanation.trace.locations[i])]) == self.level
            width, style = (1.3, "-") if is_own else (0.8, ":")
            box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=width, linestyle=style)
            box.set_path_effects([withStroke(linewidth=width + 1, foreground="#333333")])  # visible on bright cells
            axes.add_patch(box)
        axes.set(xlim=(0, explanation.image.width), ylim=(explanation.image.height, 0))
        axes.grid(visible=False)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.colorbar(drawn, ax=axes, label=self.label, shrink=0.9).outline.set_visible(False)  # pyright: ignore


def _canvas(explanation: Explanation) -> tuple[Image.Image, np.ndarray]:
    """Return a copy of the image for drawing, and the scale [4] of boxes."""
    picture, image = _fitted(explanation.image), explanation.image
    return picture, np.array([picture.width / image.width, picture.height / image.height] * 2)


def _fitted(image: Image.Image) -> Image.Image:
    """Return a copy of a readable size."""
    picture = image.copy()
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return enlarged(picture)


def _draw(picture: Image.Image, marks: Sequence[Mark]) -> None:
    draw_marks(picture, marks, text_size=max(round(_TEXT_SIZE * max(picture.size)), 12))
