"""Report section with the images that have the best and the worst detections."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..errors import DataError
from ..evaluation.coco_metrics import to_instances
from ..html_page import Legend, Page, PageImage, Section
from ..inference.draw import enlarged
from ..inference.draw_shapes import draw_details
from ..inference.marks import Mark, draw_marks
from .analysis import Analysis

MAX_IMAGES = 6
_MAX_SIDE = 640
_TEXT_SIZE = 0.027  # font size as a share of the longer side; legible on a picture as wide as a phone
_MAX_TAGS = 12
# Okabe and Ito's colours, distinguishable with any kind of colour vision.
_CORRECT, _WRONG, _MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)


def add_images(page: Page, analysis: Analysis) -> None:
    """Add up to `MAX_IMAGES` worst and as many best images, ranked by the F1 of the shown detections."""
    correct, wrong, missed = analysis.count_by_image()
    errors = wrong + missed
    f1 = 2 * correct / np.maximum(2 * correct + errors, 1)
    images = np.flatnonzero(correct + errors)  # leaves out images with neither objects nor shown detections
    worst = images[np.lexsort((-errors[images], f1[images]))]
    best = images[np.lexsort((-correct[images], -f1[images]))]
    num_images = min(MAX_IMAGES, len(images) // 2)
    section = page.section("Best and worst images")
    section.legend(
        [
            Legend(_CORRECT, "correct"),
            Legend(_WRONG, "wrong: no matching object, or object already detected"),
            Legend(_MISSED, "missed object", dashed=True),
        ]
    )

    def caption(i: int) -> str:
        return f"{analysis.annotations.file_name(i)}: {correct[i]} correct, {wrong[i]} wrong, {missed[i]} missed"

    for title, selected in (("Worst", worst[: max(num_images, 1)]), ("Best", best[:num_images])):
        if len(selected):
            section.heading(title)
            _add(section, analysis, {int(i): caption(i) for i in selected})


def _add(section: Section, analysis: Analysis, captions: dict[int, str]) -> None:
    drawn_images = []
    for i, caption in captions.items():
        try:
            drawn_images.append(PageImage(_draw(analysis, i), caption))
        except DataError as error:
            section.text(f"Cannot show {caption} ({error})", style="warning")
    section.images(drawn_images)


def _draw(analysis: Analysis, i: int) -> Image.Image:
    """Draw correct detections, wrong detections and missed objects onto an image, with the boxes of errors on top.

    Raises:
        DataError: the image can no longer be read.
    """
    annotations = analysis.annotations
    picture = annotations.open(i)
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    picture = enlarged(picture)
    height, width = annotations.sizes[i].tolist()
    scale = np.array([picture.width / width, picture.height / height] * 2)
    names, span = annotations.class_names, annotations.span(i)
    shown = np.flatnonzero(analysis.shown & (analysis.images == i))
    shown = shown[np.argsort(-analysis.scores[shown], kind="stable")].tolist()

    def make_marks(state: int, color: tuple[int, int, int]) -> list[Mark]:
        chosen = [d for d in shown if analysis.states[d] == state]
        boxes, scores = (analysis.boxes[chosen] * scale).tolist(), analysis.scores[chosen].tolist()
        shown_names = [names[label] for label in analysis.labels[chosen]]
        return [Mark(box, color, name, score) for box, name, score in zip(boxes, shown_names, scores, strict=True)]

    missed = [
        Mark((annotations.boxes[b] * scale).tolist(), _MISSED, names[annotations.labels[b]], dashed=True)
        for b in range(span.start, span.stop)
        if analysis.missed[b]
    ]
    correct = make_marks(1, _CORRECT)
    if len(shown) > _MAX_TAGS:
        correct = [Mark(mark.box, mark.color) for mark in correct]
    missed_boxes = np.flatnonzero(analysis.missed[span])
    objects = annotations.instances(i)[missed_boxes.tolist()]
    draw_details(picture, objects.resize_to((picture.height, picture.width)), [_MISSED] * len(objects))
    found = to_instances([analysis.detections[d] for d in shown[::-1]], annotations, i)
    colors = [_CORRECT if analysis.states[d] == 1 else _WRONG for d in shown[::-1]]
    draw_details(picture, found.resize_to((picture.height, picture.width)), colors)
    text_size = round(_TEXT_SIZE * max(picture.size))
    draw_marks(picture, [*missed, *make_marks(0, _WRONG), *correct], text_size=text_size)
    return picture
