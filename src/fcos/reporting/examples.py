"""Report section with the images that have the best and the worst detections."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..data.images import open_rgb
from ..errors import DataError
from ..html_page import Legend, Page, PageImage, Section
from ..inference.draw import Mark, draw_marks, enlarged
from .analysis import Analysis

COUNT = 6
_LONGEST = 640
_TEXT = 0.027  # font size as a share of the longer side; legible on a picture as wide as a phone
_MOST_TAGS = 12
# Okabe and Ito's colours, distinguishable with any kind of colour vision.
_RIGHT, _WRONG, _MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)


def add_pictures(page: Page, analysis: Analysis) -> None:
    """Add up to `COUNT` worst and as many best images, ranked by the F1 of the shown detections."""
    found, wrong, missed = analysis.counts_of_images()
    errors = wrong + missed
    f1 = 2 * found / np.maximum(2 * found + errors, 1)
    images = np.flatnonzero(found + errors)  # leaves out images with neither objects nor shown detections
    worst = images[np.lexsort((-errors[images], f1[images]))]
    best = images[np.lexsort((-found[images], -f1[images]))]
    each = min(COUNT, len(images) // 2)
    section = page.section("Best and worst images")
    section.legend(
        [
            Legend(_RIGHT, "found"),
            Legend(_WRONG, "wrong: no such object there, or found already"),
            Legend(_MISSED, "missed", dashed=True),
        ]
    )

    def caption(i: int) -> str:
        return f"{analysis.annotations.file_name(i)}: {found[i]} found, {wrong[i]} wrong, {missed[i]} missed"

    for title, chosen in (("Worst", worst[: max(each, 1)]), ("Best", best[:each])):
        if len(chosen):
            section.heading(title)
            _add(section, analysis, {int(i): caption(i) for i in chosen})


def _add(section: Section, analysis: Analysis, captions: dict[int, str]) -> None:
    pictures = []
    for i, caption in captions.items():
        try:
            pictures.append(PageImage(_draw(analysis, i), caption))
        except DataError as error:
            section.text(f"No picture of {caption} ({error})", style="warning")
    section.pictures(pictures)


def _draw(analysis: Analysis, i: int) -> Image.Image:
    """Draw correct detections, wrong detections and missed objects onto an image, with the errors on top.

    Raises:
        DataError: the image can no longer be read.
    """
    annotations = analysis.annotations
    picture = open_rgb(annotations.path(i))
    picture.thumbnail((_LONGEST, _LONGEST))
    picture = enlarged(picture)
    height, width = annotations.sizes[i].tolist()
    scale = np.array([picture.width / width, picture.height / height] * 2)
    names, span = annotations.class_names, annotations.span(i)
    shown = np.flatnonzero(analysis.shown & (analysis.images == i))
    shown = shown[np.argsort(-analysis.scores[shown], kind="stable")].tolist()

    def marks(state: int, color: tuple[int, int, int]) -> list[Mark]:
        chosen = [d for d in shown if analysis.states[d] == state]
        boxes, scores = (analysis.boxes[chosen] * scale).tolist(), analysis.scores[chosen].tolist()
        written = [names[label] for label in analysis.labels[chosen]]
        return [Mark(box, color, name, score) for box, name, score in zip(boxes, written, scores, strict=True)]

    missed = [
        Mark((annotations.boxes[b] * scale).tolist(), _MISSED, names[annotations.labels[b]], dashed=True)
        for b in range(span.start, span.stop)
        if analysis.missed[b]
    ]
    found = marks(1, _RIGHT)
    if len(shown) > _MOST_TAGS:
        found = [Mark(mark.box, mark.color) for mark in found]
    text_size = round(_TEXT * max(picture.size))
    draw_marks(picture, [*missed, *marks(0, _WRONG), *found], text_size=text_size)
    return picture
