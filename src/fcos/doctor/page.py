"""Files of `fcos doctor`: an HTML page with pictures, and a JSON file with the complete report."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data.dataset import Annotations
from ..errors import DataError
from ..files import explain_write_errors, write_text
from ..formatting import percent, plural
from ..html_page import Cell, Chart, Page, PageImage, Section, Tile
from ..inference.draw import draw
from ..masks import Masks
from ..structures import Instances
from .advice import ENOUGH_RECALL
from .findings import Case, Finding, Place, Report
from .shapes import edges_of
from .statistics import Histogram
from .terminal import MAX_ALIKE, consequences, describe_case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_IMAGES = 6
"""Maximum number of pictures per finding."""
MAX_ROWS = 100
"""Maximum number of rows per table; the JSON file is complete."""
_SIDE = 480  # longer side of a picture, pixels
_CONTEXT = 3.0  # shown around a box, as a multiple of its longer side
_MIN_WINDOW = 0.25  # minimum shown, as a share of the shorter side of the image
_BEYOND_IMAGE = (127, 127, 127)  # color of parts outside the image


def save(report: Report, folder: Path) -> None:
    """Write `doctor.html` and `doctor.json`.

    Args:
        report: the report.
        folder: output folder, created if it is missing.

    Raises:
        WriteError: the disk is full or not writable.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    write_text(folder / "doctor.json", text)
    make_page(report).save(folder / "doctor.html")


def make_page(report: Report) -> Page:
    """Create the page; images are read again, and those that can no longer be read are left out."""
    roots = dict.fromkeys(str(annotations.root) for annotations in report.splits.values())
    page = Page("Data check", ", ".join(roots), "Created by fcos doctor. doctor.json contains all numbers and cases.")
    _overview(page.section("Overview"), report)
    if any(report.problems.values()):
        _problems(page.section("Errors in the data" if report.failed else "Notes on the data"), report)
    for finding in report.findings:
        _finding(page.section(finding.kind.capitalize()), finding, report.splits)
    if report.coverage is not None and len(report.coverage.boxes):
        _coverage(page.section("Best possible recall"), report)
    _statistics(page.section("Data statistics"), report)
    return page


def _overview(section: Section, report: Report) -> None:
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    notes = len(report.findings) - warnings
    notes += sum(len({p.kind for p in problems if p.severity == "warning"}) for problems in report.problems.values())
    tiles = [
        Tile("Errors", str(sum(report.errors.values())), f"in {', '.join(report.errors)}" if report.failed else ""),
        Tile("Warnings", str(warnings), "should be fixed"),
        Tile("Notes", str(notes), "worth checking"),
    ]
    tiles += [
        Tile(f"Images in {split}", str(counts.images), plural(counts.boxes, "box"))
        for split, counts in report.counts.items()
    ]
    if report.coverage is not None and len(report.coverage.boxes):
        recall = f"{report.coverage.recall:.2%}"
        tiles.append(Tile("Best possible recall", recall, f"with {report.recipe}; aim for {ENOUGH_RECALL:.0%} or more"))
    section.tiles(tiles)
    for finding in report.findings:
        section.text(finding.message, style="warning" if finding.severity == "warning" else "")
    if not report.findings:
        section.text("No findings in the data that could be read.")
    _advice(section, report)


def _advice(section: Section, report: Report) -> None:
    if report.advice:
        section.heading("Recommended options")
        for advice in report.advice:
            section.text(shlex.join(advice.options))
            section.text(advice.effect, style="note")


def _problems(section: Section, report: Report) -> None:
    rows = [
        [name, split, p.kind, f"{p.file}{', ' if p.id else ''}{p.id}", p.message]
        for severity, name in (("error", "error"), ("warning", "note"))
        for split, problems in report.problems.items()
        for p in problems
        if p.severity == severity
    ]
    for text in consequences(report):
        section.text(text, style="warning")
    section.table(["severity", "split", "kind", "file", "message"], rows[:MAX_ROWS])
    _note_truncation(section, len(rows))


def _note_truncation(section: Section, count: int, selection: str = "") -> None:
    if count > MAX_ROWS:
        section.text(f"{selection}doctor.json lists {count - MAX_ROWS} more.", style="note")


def _finding(section: Section, finding: Finding, splits: Mapping[str, Annotations]) -> None:
    section.text(finding.message, style="warning" if finding.severity == "warning" else "")
    section.text(finding.remedy)
    images = [_draw_case(case, splits) for case in finding.cases[:MAX_IMAGES]]
    drawn_images = [image for image in images if image is not None]
    if drawn_images:
        section.images(drawn_images)
    if len(finding.cases) > len(drawn_images) or any(len(case) > MAX_ALIKE for case in finding.cases):
        rows = [
            [str(number), *_row(place, splits[place.split])]
            for number, case in enumerate(finding.cases, start=1)
            for place in case
        ]
        section.table(["case", "split", "file", "class", "annotation", "note"], rows[:MAX_ROWS])
        _note_truncation(section, len(rows))


def _row(place: Place, annotations: Annotations) -> list[str]:
    names = dict.fromkeys(annotations.class_names[annotations.labels[i]] for i in place.boxes)
    ids = [str(annotations.annotation_ids[i]) for i in place.boxes]
    return [place.split, annotations.file_name(place.image), ", ".join(names), ", ".join(ids), place.note]


# ------------------------------------------------------------------------------------------------------------- pictures


def _draw_case(case: Case, splits: Mapping[str, Annotations]) -> PageImage | None:
    """Draw the images of a case, or the surroundings of its boxes, side by side; None if an image cannot be read."""
    try:
        shown = case[:MAX_ALIKE]
        crops = [_draw_place(place, splits[place.split], alone=len(case) == 1) for place in shown]
    except DataError:
        return None
    height = min(crop.height for crop in crops)
    scaled = [crop.resize((max(round(crop.width * height / crop.height), 1), height)) for crop in crops]
    sheet = Image.new("RGB", (sum(crop.width for crop in scaled) + 4 * (len(scaled) - 1), height), (127, 127, 127))
    left = 0
    for crop in scaled:
        sheet.paste(crop, (left, 0))
        left += crop.width + 4
    sheet.thumbnail((_SIDE, _SIDE))
    return PageImage(sheet, describe_case(case, splits))


def _draw_place(place: Place, annotations: Annotations, *, alone: bool) -> Image.Image:
    """Draw the section of an image around the objects of a place, or the whole image if the place has no objects.

    With `alone` (the only place of its case), a whole image is drawn with all its objects.
    """
    span = annotations.span(place.image)
    all_boxes = range(span.start, span.stop) if alone else ()
    selected = torch.tensor(place.boxes or all_boxes, dtype=torch.int64)
    instances = annotations.instances(place.image)[selected - span.start]
    image = annotations.open(place.image)
    left, top, right, bottom = _choose_window(instances, image.size) if place.boxes else (0, 0, *image.size)
    crop = Image.new("RGB", (right - left, bottom - top), _BEYOND_IMAGE)
    crop.paste(image, (-left, -top))
    factor = _SIDE / max(crop.size)
    crop = crop.resize((max(round(crop.width * factor), 1), max(round(crop.height * factor), 1)))
    instances = instances.crop(left, top, right, bottom).resize_to((crop.height, crop.width))
    picture = draw(crop, instances, scores=False, scale=1)
    if place.boxes and instances.polygons is not None:
        _draw_edges(picture, instances.polygons)
    return picture


def _draw_edges(picture: Image.Image, masks: Masks) -> None:
    """Draw the edges of polygons, which show crossings and polygons without area."""
    edges = np.concatenate([np.zeros((0, 4)), *(edges_of(ring) for rings in masks.polygons() for ring in rings)])
    canvas = ImageDraw.Draw(picture)
    for width, color in ((3, (17, 17, 17)), (1, (255, 255, 255))):
        for edge in edges.tolist():
            canvas.line(edge, fill=color, width=width)


def _choose_window(objects: Instances, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the section of an image to show around objects, as (x1, y1, x2, y2) in pixels.

    It exceeds the image for masks and keypoints that do, by half the image at most.

    Args:
        objects: the objects.
        size: (width, height) of the image.
    """
    near, far = objects.boxes[:, :2].amin(dim=0), objects.boxes[:, 2:].amax(dim=0)
    side = max(float((far - near).max()) * _CONTEXT, _MIN_WINDOW * min(size))
    points = [] if objects.polygons is None else [torch.from_numpy(objects.polygons.points)]
    if objects.keypoints is not None:
        points.append(objects.keypoints[objects.keypoints[..., 2] > 0][:, :2])
    points = torch.cat([near[None], far[None], *points])
    middle, margin = ((near + far) / 2).tolist(), side / 20
    low, high = [], []
    for center, whole, first, last in zip(
        middle, size, points.amin(dim=0).tolist(), points.amax(dim=0).tolist(), strict=True
    ):
        start = min(max(center - side / 2, 0), max(whole - side, 0))
        end = min(start + side, whole)
        low.append(math.floor(max(first - margin, -whole / 2) if first < start else start))
        high.append(math.ceil(min(last + margin, 1.5 * whole) if last > end else end))
    return low[0], low[1], high[0], high[1]


# --------------------------------------------------------------------------------------------------- figures and tables


def _coverage(section: Section, report: Report) -> None:
    coverage = report.coverage
    assert coverage is not None
    setting = coverage.setting
    section.text(
        "A box can be learned if at least one location is assigned to it. The best possible recall is the share of"
        f" these boxes, computed for {report.recipe} on {plural(coverage.images, 'image')} of {report.covered} with a"
        f" shorter side of {setting.middle_side} pixels: {', '.join(setting.options)}."
    )

    def row(name: str, boxes: int, learned: int) -> list[str | float | Cell | None]:
        return [name, boxes, learned, Cell(percent(learned, boxes), heat=1 - learned / boxes if boxes else 0)]

    columns = ["boxes", "learned", "best possible recall"]
    rows = [row(name, *numbers) for name, numbers in coverage.by_size().items()]
    section.table(["size after resizing", *columns], [*rows, row("all", *coverage.count(coverage.fates >= 0))])
    names = report.splits[report.covered].class_names
    by_class = [(name, *coverage.count(coverage.labels == label)) for label, name in enumerate(names)]
    if len(by_class) > MAX_ROWS:
        by_class.sort(key=lambda counts: counts[2] / counts[1] if counts[1] else np.inf)
    section.table(["class", *columns], [row(*counts) for counts in by_class[:MAX_ROWS]])
    _note_truncation(section, len(by_class), "Classes with the lowest best possible recall; ")
    levels = [
        [
            *row(f"stride {stride}", boxes, learned),
            positive,
            Cell(percent(several, positive), heat=several / positive if positive else 0),
            Cell(percent(classes, positive), heat=classes / positive if positive else 0),
        ]
        for stride, boxes, learned, positive, several, classes in coverage.by_level()
    ]
    section.table(["level", *columns, "positive locations", "ambiguous", "several classes"], levels)
    section.text(
        "A box is listed at the first level whose size range contains half of its longer side, and counts as learned if"
        " a location of any level is assigned to it. Positive locations are those assigned to a box. Ambiguous: share"
        " of positive locations that match several boxes; they are assigned to the smallest one. Several classes: share"
        " of positive locations that match boxes of different classes.",
        style="note",
    )


def _statistics(section: Section, report: Report) -> None:
    rows = [
        [split, c.images, c.images_without_boxes, c.boxes, *c.per_size.values(), c.crowd]
        for split, c in report.counts.items()
    ]
    sizes = next(iter(report.counts.values())).per_size if report.counts else {}
    section.table(["split", "images", "without boxes", "boxes", *sizes, "crowd"], rows)
    section.charts(list(_charts(report)))
    names = dict.fromkeys(name for c in report.counts.values() for name in c.per_class)
    most = [max(c.per_class.values(), default=0) or 1 for c in report.counts.values()]
    by_class = [(name, [c.per_class.get(name, 0) for c in report.counts.values()]) for name in names]
    if len(by_class) > MAX_ROWS:
        by_class.sort(key=lambda row: (min(row[1]), sum(row[1])))
    cells = [[name, *map(_bar, counts, most)] for name, counts in by_class[:MAX_ROWS]]
    section.table(["class", *report.counts], cells)
    _note_truncation(section, len(by_class), "Classes with the fewest boxes in any split; ")


def _bar(count: int, most: int) -> Cell:
    return Cell(str(count), bar=count / most)


def _charts(report: Report) -> Iterator[Chart]:
    """Yield a chart for every histogram, with one line per split, as shares, because splits differ in size."""
    for rows in zip(*report.histograms.values(), strict=True):
        histograms = dict(zip(report.histograms, rows, strict=True))
        if any(sum(histogram.counts) for histogram in rows):
            yield Chart(rows[0].name, partial(_draw_histograms, histograms))


def _draw_histograms(histograms: dict[str, Histogram], axes: Axes) -> None:
    for split, histogram in histograms.items():
        total = sum(histogram.counts)
        if total:
            axes.stairs(
                [100 * count / total for count in histogram.counts], histogram.edges, label=split, linewidth=1.6
            )
    edges = next(iter(histograms.values())).edges
    if edges[0] > 0 and edges[-1] / edges[0] > 50:  # the edges are powers of two
        axes.set_xscale("log", base=2)
    axes.set_ylabel("%")
    axes.legend()
