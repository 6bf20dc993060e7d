"""Page of an explanation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from ..formatting import plural, printable
from ..html_page import Cell, Legend, Page, PageImage, Section, Tile
from .explain import Explanation
from .pictures import MISSED, OTHER, OWN, draw_boxes, draw_detections, draw_miss, level_color, map_charts
from .trace import Stage

_MAX_ROWS = 100
_MAX_MISSES = 12
_STAGES = {
    Stage.TOP_K: "beyond top k",
    Stage.EMPTY: "no area",
    Stage.NMS: "suppressed",
    Stage.LIMIT: "beyond limit",
    Stage.DETECTED: "detections",
}


def write_page(explanation: Explanation, path: Path, *, title: str, label: int | None = None) -> None:
    """Write an explanation as an HTML page, which makes no network requests.

    Args:
        explanation: the explanation.
        path: file to write.
        title: name of the image.
        label: class whose scores are shown; None: the one with the highest score.

    Raises:
        WriteError: the disk is full or not writable.
    """
    make_page(explanation, title=title, label=label).save(path)


def make_page(explanation: Explanation, *, title: str, label: int | None = None) -> Page:
    """Create the page, see `write_page`."""
    height, width = explanation.resized
    image = explanation.image
    subtitle = f"{image.width} x {image.height} pixels, resized to {width} x {height} for the detector"
    page = Page(f"Explanation of {printable(title)}", subtitle, "Created by fcos explain.")
    _add_detections(page.section("Detections"), explanation)
    if explanation.objects is not None:
        _add_misses(page.section("Missed objects"), explanation)
    _add_scores(page.section("Scores"), explanation, explanation.strongest_class if label is None else label)
    _add_quality(page.section("Predicted IoU" if explanation.quality_name == "iou" else "Centerness"), explanation)
    _add_candidates(page.section("Candidates and suppression"), explanation)
    return page


def _add_detections(section: Section, explanation: Explanation) -> None:
    trace, shown = explanation.trace, explanation.shown
    below = len(trace.detections) - len(shown)
    tiles = [
        Tile("Detections", str(len(shown)), f"{below} more below the score threshold" if below else ""),
        Tile("Candidates", f"{int((trace.stages > Stage.EMPTY).sum()):,}", "boxes before suppression"),
        Tile("Locations", f"{len(explanation.points):,}", f"on {plural(len(explanation.strides), 'level')}"),
    ]
    if explanation.objects is not None:
        num_objects = int((~explanation.objects.is_crowd).sum())
        tiles.append(Tile("Objects", str(num_objects), f"{len(explanation.misses)} missed"))
    section.tiles(tiles)
    section.text(
        "Every location of every level predicts a box. A dot is the location that produced a detection; its lines are"
        " the four distances that it predicts, to the sides of its box. Colours are levels."
    )
    section.legend([Legend(level_color(i), f"stride {stride}") for i, stride in enumerate(explanation.strides)])
    section.images([PageImage(draw_detections(explanation), "Detections with their locations")])
    rows = []
    for number, i in enumerate(shown.tolist()[:_MAX_ROWS], start=1):
        location, label = int(trace.locations[i]), int(trace.labels[i])
        level = int(explanation.levels[location])
        x, y = explanation.points[location].tolist()
        quality = float(torch.cat([level_map.flatten() for level_map in explanation.quality])[location])
        rows.append(
            [
                str(number),
                explanation.class_names[label],
                Cell(f"{float(trace.scores[i]):.3f}", bar=float(trace.scores[i])),
                quality,
                explanation.strides[level],
                f"{x:.0f}, {y:.0f}",
                int((trace.suppressors == i).sum()),
            ]
        )
    if not rows:
        section.text("No detection reaches the score threshold of its class.")
        return
    quality_name = "IoU" if explanation.quality_name == "iou" else explanation.quality_name
    section.table(["detection", "class", "score", quality_name, "stride", "location", "suppressed boxes"], rows)


def _add_misses(section: Section, explanation: Explanation) -> None:
    assert explanation.objects is not None
    misses, labels = explanation.misses, explanation.objects.labels.tolist()
    if not misses:
        section.text("Every object is matched to a shown detection of its class, at IoU 0.5.")
        return
    section.text(
        "An object is missed if no shown detection of its class is matched to it at IoU 0.5. The reasons follow from"
        " the outputs of the head and from the assignment of objects to locations in training."
    )
    counts = Counter(miss.reason for miss in misses)
    section.table(["reason", "objects"], [[reason, count] for reason, count in counts.most_common()])
    section.legend(
        [
            Legend(MISSED, "missed object", dashed=True),
            Legend(OWN, "best box for it, and its location"),
            Legend(OTHER, "box that suppressed or replaced it"),
        ]
    )
    section.images(
        [
            PageImage(
                draw_miss(explanation, miss),
                f"{explanation.class_names[labels[miss.index]]}, {miss.reason}: {miss.text}",
            )
            for miss in misses[:_MAX_MISSES]
        ]
    )
    if len(misses) > _MAX_MISSES:
        rows = [[explanation.class_names[labels[miss.index]], miss.reason, miss.text] for miss in misses[_MAX_MISSES:]]
        section.table(["class", "reason", "explanation"], rows[:_MAX_ROWS], "Other missed objects")


def _add_scores(section: Section, explanation: Explanation, label: int) -> None:
    maps = [level[label] for level in explanation.scores]
    name = explanation.class_names[label]
    quality = "predicted IoU" if explanation.quality_name == "iou" else "centerness"
    section.text(
        f"Score of the class {name} at every location: its probability combined with the {quality}. Each level learns"
        " the objects of its size range. All levels have one colour scale. White boxes are the shown detections, solid"
        " on the level that produced them."
    )
    high = max(*(float(level.max()) for level in maps), 1e-3)
    section.charts(map_charts(explanation, maps, high=high, label=f"score of {printable(name)}"))


def _add_quality(section: Section, explanation: Explanation) -> None:
    if explanation.quality_name == "iou":
        label = "predicted IoU"
        text = "The IoU that every location predicts for its box. It ranks boxes by their accuracy."
    else:
        label = "centerness"
        text = (
            "Centerness is 1 in the middle of an object and falls to 0 at its border. It lowers the scores of locations"
            " far from the middle, whose boxes are less accurate. Outside objects its values mean nothing: they are not"
            " trained."
        )
    section.text(text)
    section.charts(map_charts(explanation, explanation.quality, high=1.0, label=label))


def _add_candidates(section: Section, explanation: Explanation) -> None:
    trace = explanation.trace
    section.text(
        "Predictions (location and class) above score_threshold, by the step that dropped them. The pre_nms_top_k best"
        " of each level whose boxes have an area inside the image are candidates. Of boxes of a class whose IoU exceeds"
        " nms_threshold only the best remains. The max_detections best of the image are detections, and those that"
        " reach the threshold of their class are shown."
    )
    levels, is_shown = explanation.levels[trace.locations], torch.zeros(len(trace.scores), dtype=torch.bool)
    is_shown[explanation.shown] = True
    rows = []
    for level, stride in enumerate(explanation.strides):
        here = levels == level
        counts = [int((here & (trace.stages == stage)).sum()) for stage in _STAGES]
        rows.append([f"stride {stride}", int(here.sum()), *counts, int((here & is_shown).sum())])
    rows.append(["all levels", *(sum(row[column] for row in rows) for column in range(1, len(rows[0])))])
    section.table(["level", "predictions", *_STAGES.values(), "shown"], rows)
    best_first = trace.scores.argsort(descending=True, stable=True)
    before = best_first[trace.stages[best_first] > Stage.EMPTY].tolist()
    after = trace.detections.tolist()
    section.images(
        [
            PageImage(draw_boxes(explanation, before), f"Before suppression: {plural(len(before), 'candidate')}"),
            PageImage(
                draw_boxes(explanation, after),
                f"After suppression: {plural(len(after), 'detection')}, also below the thresholds of shown ones",
            ),
        ]
    )
    suppressed = best_first[trace.stages[best_first] == Stage.NMS].tolist()
    number_of = {i: number for number, i in enumerate(explanation.shown.tolist(), start=1)}
    rows = [
        [
            explanation.class_names[int(trace.labels[i])],
            float(trace.scores[i]),
            explanation.strides[int(levels[i])],
            f"{float(trace.scores[other]):.3f}{f' (detection {number_of[other]})' if other in number_of else ''}",
            explanation.strides[int(levels[other])],
            float(trace.overlaps[i]),
        ]
        for i in suppressed[:_MAX_ROWS]
        for other in [int(trace.suppressors[i])]
    ]
    if rows:
        caption = f"The {len(rows)} best suppressed boxes, and the boxes that suppressed them"
        section.table(["class", "score", "stride", "suppressed by score", "its stride", "IoU"], rows, caption)
