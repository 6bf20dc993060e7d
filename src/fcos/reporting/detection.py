"""Report sections about the detections on val: metrics, curves, thresholds, confusion matrix, errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.coco_metrics import METRICS
from ..evaluation.evaluate import Evaluation
from ..evaluation.proposal_recall import PROPOSAL_METRICS
from ..evaluation.results import nearly_equal
from ..formatting import format_metric, printable
from ..html_page import Cell, Chart, Page
from .analysis import Analysis
from .record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ERRORS = {
    "Cls": ("classification", "correct box, wrong class"),
    "Loc": ("localization", "correct class, inaccurate box (IoU 0.1 to 0.5)"),
    "Both": ("both", "wrong class and inaccurate box"),
    "Dupe": ("duplicate", "second detection of an object"),
    "Bkg": ("background", "detection where there is no object"),
    "Miss": ("missed", "object without any detection"),
}
ALL = "all classes"
_MAX_CURVES = 7
_MAX_GREY = 100
_MAX_BARS = 12
_MAX_CLASSES = 20


def add_metrics(page: Page, evaluation: Evaluation) -> None:
    """Add the metrics of all classes together and of each class."""
    section = page.section("Metrics on val")
    names = list(evaluation.metrics)
    overall = (ALL, sum(evaluation.boxes_per_class.values()), evaluation.metrics)
    classes = [(name, boxes, evaluation.per_class[name]) for name, boxes in evaluation.boxes_per_class.items()]
    rows = [
        [title, boxes, *(Cell(format_metric(v), bar=None if i else np.nan_to_num(v)) for i, v in enumerate(values))]
        for title, boxes, figures in (overall, *classes)
        for values in [[figures.get(name, math.nan) for name in names]]
    ]
    section.table(["class", "boxes", *names], rows)
    if not all(name in figures for name in METRICS for figures in (evaluation.metrics, *evaluation.per_class.values())):
        return
    section.text(
        "AP (average precision) and AR (average recall) are means over IoU thresholds from 0.5 to 0.95; AP50 and AP75"
        " use a single threshold, 0.5 or 0.75. The suffixes s, m and l stand for small objects (below 32 x 32 pixels),"
        " medium objects (up to 96 x 96 pixels) and large objects. AR1, AR10 and AR100 count at most 1, 10 and 100"
        " detections per image and class.",
        style="note",
    )
    if PROPOSAL_METRICS[0] in evaluation.metrics:
        section.text(
            "AR10_proposals, AR100_proposals and AR1000_proposals are the recall of at most 10, 100 and 1000 proposals"
            " per image, each matched with the object that it overlaps most, whatever their scores.",
            style="note",
        )
    charts = [Chart("AP and AR by object size", lambda axes: _bars_of_sizes(axes, evaluation.metrics))]
    if 1 < len(classes) <= _MAX_BARS:
        charts.append(
            Chart(
                "AP by class and object size", lambda axes: _bars_of_classes(axes, evaluation), 60 + 34 * len(classes)
            )
        )
    section.charts(charts)


def _bars_of_sizes(axes: Axes, metrics: dict[str, float]) -> None:
    positions = np.arange(3)
    for shift, kind in ((-0.2, "AP"), (0.2, "AR")):
        values = [np.nan_to_num(metrics[kind + size]) for size in "sml"]
        axes.bar(positions + shift, values, width=0.38, label=kind)
    axes.set_xticks(positions, ["small", "medium", "large"])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1)
    axes.legend(ncols=2)


def _bars_of_classes(axes: Axes, evaluation: Evaluation) -> None:
    positions = np.arange(len(evaluation.boxes_per_class))
    names = list(evaluation.boxes_per_class)
    for k, (size, meaning) in enumerate((("s", "small"), ("m", "medium"), ("l", "large"))):
        values = [np.nan_to_num(evaluation.per_class[name]["AP" + size]) for name in names]
        axes.barh(positions + 0.27 * (k - 1), values, height=0.25, label=f"AP {meaning}")
    axes.set_yticks(positions, [_shorten(name) for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    _legend_below(axes, ncols=3)


def add_curves(page: Page, analysis: Analysis) -> None:
    """Add precision-recall curves: the mean of all classes, and one curve per class."""
    assert analysis.run.eval is not None
    table = np.asarray(analysis.run.eval["precision"])[..., 0, -1]  # [IoU, recall, K], all sizes
    table = np.where(table < 0, np.nan, table)[..., _order(analysis)]
    has_objects = ~np.isnan(table[0, 0])
    mean = table[:, :, has_objects].mean(axis=2)
    iou_index = {iou: int(np.flatnonzero(np.isclose(analysis.run.params.iou_thrs, iou))[0]) for iou in (0.5, 0.75)}
    overall = {"IoU 0.5": mean[iou_index[0.5]], "IoU 0.75": mean[iou_index[0.75]], "IoU 0.5 to 0.95": mean.mean(axis=0)}
    height = _height(int(has_objects.sum()))
    section = page.section("Precision and recall")
    if has_objects.sum() > _MAX_CURVES:
        section.text(
            "The charts here and below show the best and the worst classes in colour, with their names; up to"
            f" {_MAX_GREY} others are grey.",
            style="note",
        )
    section.charts(
        [
            Chart("Mean over classes", lambda axes: _precision_curves(axes, overall, []), _height(len(overall))),
            Chart(
                "Per class, IoU 0.5", lambda axes: _precision_of_classes(axes, table[iou_index[0.5]], analysis), height
            ),
            Chart(
                "Per class, IoU 0.75",
                lambda axes: _precision_of_classes(axes, table[iou_index[0.75]], analysis),
                height,
            ),
        ]
    )


def _precision_of_classes(axes: Axes, table: np.ndarray, analysis: Analysis) -> None:
    """Plot one curve per class; if there are many, only the best and the worst classes have a colour and a name."""
    names, area = analysis.annotations.class_names, table.mean(axis=0)
    highlighted, grey_classes = _select_highlighted(
        [int(label) for label in np.argsort(-area) if not np.isnan(area[label])]
    )
    # Without the mark, the number would be displayed before a name in a right-to-left script.
    title = "{}\N{LEFT-TO-RIGHT MARK} {:.2f}".format
    curves = {title(_shorten(names[label]), area[label]): table[:, label] for label in highlighted}
    _precision_curves(axes, curves, [table[:, label] for label in grey_classes])


def _select_highlighted(ranked: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Split classes, ranked from best to worst, into those with a colour and a name and those drawn in grey.

    Up to `_MAX_CURVES` classes all have a colour. Of more classes the best and the worst do, and at most about
    `_MAX_GREY` others, spread evenly, are grey.
    """
    if len(ranked) <= _MAX_CURVES:
        return ranked, []
    grey_classes = ranked[3 : 3 - _MAX_CURVES]
    return [*ranked[:3], *ranked[3 - _MAX_CURVES :]], grey_classes[:: -(-len(grey_classes) // _MAX_GREY)]


def _precision_curves(axes: Axes, curves: dict[str, np.ndarray], grey_curves: Sequence[np.ndarray]) -> None:
    recall = np.linspace(0, 1, 101)
    for precision in grey_curves:
        axes.plot(recall, precision, color="#8a93a0", linewidth=0.6, alpha=0.5)
    for name, precision in curves.items():
        axes.plot(recall, precision, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    _legend_below(axes)


def add_thresholds(page: Page, analysis: Analysis, record: Record) -> None:
    """Add the score thresholds that `fcos predict` uses, with the resulting F1, precision and recall."""
    section = page.section("Score thresholds")
    assert record.best is not None
    assert record.evaluation is not None
    stored, computed = record.best.thresholds, record.evaluation.thresholds
    is_stored = stored.keys() == computed.keys() and nearly_equal(stored, computed)
    section.text(
        "fcos predict shows detections that score at least the threshold of their class. These thresholds have the"
        f" highest F1 on val at IoU 0.5{' and are stored in best.pt' if is_stored else ''}; with few objects of a class"
        " they stay close to the default. Use --threshold to set one threshold for all classes."
    )
    if not is_stored:
        section.text(
            "The thresholds shown are from the evaluation of this report; best.pt contains different thresholds or"
            " none.",
            style="warning",
        )
    correct, wrong, missed = (values.astype(float) for values in analysis.count_by_class())
    with np.errstate(invalid="ignore"):
        precision, recall = correct / (correct + wrong), correct / (correct + missed)
        f1 = 2 * correct / (2 * correct + wrong + missed)
    names = analysis.annotations.class_names
    rows = [
        [
            name,
            Cell(f"{analysis.thresholds[k]:.3f}{'' if name in computed else ' (default)'}"),
            Cell(format_metric(f1[k]), bar=np.nan_to_num(f1[k])),
            precision[k],
            recall[k],
            int(correct[k]),
            int(wrong[k]),
            int(missed[k]),
        ]
        for k, name in enumerate(names)
    ]
    section.table(["class", "threshold", "F1", "precision", "recall", "correct", "wrong", "missed"], rows)
    height = _height(int((correct + missed > 0).sum()))
    section.charts([Chart("F1 by score threshold, IoU 0.5", lambda axes: _f1_curves(axes, analysis, f1), height)])


def _f1_curves(axes: Axes, analysis: Analysis, f1: np.ndarray) -> None:
    names = analysis.annotations.class_names
    objects = analysis.annotations.boxes_per_class()
    highlighted, grey_classes = _select_highlighted([int(label) for label in np.argsort(-f1) if objects[label]])
    grid = np.linspace(0, 1, 101)
    for label in (*grey_classes, *highlighted):
        in_class = (analysis.labels == label) & (analysis.states >= 0)
        num_shown, num_correct = (
            (analysis.scores[mask][:, None] >= grid).sum(axis=0)
            for mask in (in_class, in_class & (analysis.states == 1))
        )
        curve = 2 * num_correct / (num_shown + objects[label])
        if label in highlighted:
            (line,) = axes.plot(grid, curve, label=_shorten(names[label]))
            axes.plot(analysis.thresholds[label], f1[label], "o", markersize=4, color=line.get_color())
        else:
            axes.plot(grid, curve, color="#8a93a0", linewidth=0.6, alpha=0.5)
    axes.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    _legend_below(axes)


def add_confusion(page: Page, analysis: Analysis) -> None:
    """Add the confusion matrix of the classes."""
    section = page.section("Confusion matrix")
    matrix, names = analysis.confusion, analysis.annotations.class_names
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    classes = np.arange(len(names))
    text = (
        "Rows are true classes, columns predicted classes, for detections that reach the score thresholds, matched at"
        " IoU 0.5. The last row counts detections without an object, the last column missed objects. Colours show the"
        " share of the row (in the last row: of the column). Boxes are matched regardless of class, so the diagonal can"
        " differ slightly from the correct detections in the table above."
    )
    if len(names) > _MAX_CLASSES:
        num_errors = wrong[:-1].sum(axis=1) + wrong[:, :-1].sum(axis=0)
        classes = np.sort(np.argsort(-num_errors, kind="stable")[:_MAX_CLASSES])
        text += f" Of {len(names)} classes, only the {_MAX_CLASSES} with the most errors are shown."
    section.text(text, style="note")
    shown = [*classes.tolist(), len(names)]
    labels = [*(names[k] for k in classes), "background"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    rows = [
        [label, *(Cell(f"{matrix[i, j]:,}" if matrix[i, j] else "", heat=share[i, j]) for j in shown)]
        for label, i in zip(labels, shown, strict=True)
    ]
    section.table(["true \\ predicted", *map(_shorten, labels)], rows)
    pairs = [(int(wrong[i, j]), i, j) for i, j in zip(*np.nonzero(wrong[:-1, :-1]), strict=True)]
    if pairs:
        worst = sorted(pairs, key=lambda pair: -pair[0])[:8]
        section.text(
            "Most frequent: " + ", ".join(f"{names[i]} predicted as {names[j]} ({n})" for n, i, j in worst) + "."
        )


def add_errors(page: Page, analysis: Analysis) -> None:
    """Add the kinds of errors, with the AP50 that each costs (TIDE, Bolya et al. 2020)."""
    tide = analysis.run.tide_errors(pos_thr=0.5, bg_thr=0.1)
    section = page.section("Error types")
    section.text(
        f"Gain in AP50 (now {tide['ap_base']:.3f}) if all errors of one type were corrected (TIDE, Bolya et al. 2020)."
        " All detections count, regardless of their score.",
        style="note",
    )
    gains = tide["delta_ap"]
    max_gain = max((*(gains[kind] for kind in _ERRORS), 1e-9))
    rows = [
        [title, Cell(f"+{gains[kind]:.3f}", bar=gains[kind] / max_gain), int(tide["counts"][kind]), meaning]
        for kind, (title, meaning) in _ERRORS.items()
    ]
    section.table(["error type", "AP50 gain", "count", "description"], rows)


def _order(analysis: Analysis) -> list[int]:
    """Return the position of every label in hotcoco's tables, which are ordered by category id."""
    position = {category: i for i, category in enumerate(analysis.run.params.cat_ids)}
    return [position[category] for category in analysis.annotations.category_ids]


def _height(curves: int) -> int:
    """Return the height of a chart with a legend for `curves` curves."""
    return 215 + 17 * -(-min(curves, _MAX_CURVES) // 2)


def _legend_below(axes: Axes, ncols: int = 2) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower center", ncols=ncols, columnspacing=1)


def _shorten(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 18 else name[:17] + "..."
