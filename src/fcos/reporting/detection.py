"""Report sections about the detections on val: metrics, curves, thresholds, confusion matrix, errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..evaluation.coco_metrics import METRICS
from ..evaluation.evaluate import Evaluation
from ..formatting import figure, printable
from ..html_page import Cell, Chart, Page
from .analysis import Analysis
from .record import Record, same_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ERRORS = {
    "Cls": ("class", "the box is right, the class is not"),
    "Loc": ("place", "the class is right, the box overlaps too little (IoU 0.1 to 0.5)"),
    "Both": ("class and place", "both are wrong"),
    "Dupe": ("duplicate", "a second detection of an object"),
    "Bkg": ("background", "there is no object"),
    "Miss": ("missed", "an object without any detection"),
}
ALL = "all classes"
_MOST_CURVES = 7
_MOST_GREY = 100
_MOST_BARS = 12
_MOST_CLASSES = 20


def add_figures(page: Page, evaluation: Evaluation) -> None:
    """Add the metrics of all classes together and of each class."""
    section = page.section("Metrics on val")
    names = list(evaluation.metrics)
    everything = (ALL, sum(evaluation.boxes_per_class.values()), evaluation.metrics)
    classes = [(name, boxes, evaluation.per_class[name]) for name, boxes in evaluation.boxes_per_class.items()]
    rows = [
        [title, boxes, *(Cell(figure(v), bar=None if i else np.nan_to_num(v)) for i, v in enumerate(values))]
        for title, boxes, figures in (everything, *classes)
        for values in [[figures.get(name, math.nan) for name in names]]
    ]
    section.table(["class", "boxes", *names], rows)
    if not all(name in figures for name in METRICS for figures in (evaluation.metrics, *evaluation.per_class.values())):
        return
    section.text(
        "AP and AR are means over IoU 0.5 to 0.95, AP50 and AP75 at one IoU. s, m and l are objects below 32 x 32"
        " pixels, up to 96 x 96, and larger ones. AR1, AR10 and AR100 allow so many detections an image.",
        style="note",
    )
    charts = [Chart("Size of the objects", lambda axes: _bars_of_sizes(axes, evaluation.metrics))]
    if 1 < len(classes) <= _MOST_BARS:
        charts.append(
            Chart("Classes and sizes", lambda axes: _bars_of_classes(axes, evaluation), 60 + 34 * len(classes))
        )
    section.charts(charts)


def _bars_of_sizes(axes: Axes, metrics: dict[str, float]) -> None:
    places = np.arange(3)
    for shift, kind in ((-0.2, "AP"), (0.2, "AR")):
        values = [np.nan_to_num(metrics[kind + size]) for size in "sml"]
        axes.bar(places + shift, values, width=0.38, label=kind)
    axes.set_xticks(places, ["small", "medium", "large"])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1)
    axes.legend(ncols=2)


def _bars_of_classes(axes: Axes, evaluation: Evaluation) -> None:
    places = np.arange(len(evaluation.boxes_per_class))
    names = list(evaluation.boxes_per_class)
    for k, (size, meaning) in enumerate((("s", "small"), ("m", "medium"), ("l", "large"))):
        values = [np.nan_to_num(evaluation.per_class[name]["AP" + size]) for name in names]
        axes.barh(places + 0.27 * (k - 1), values, height=0.25, label=f"AP {meaning}")
    axes.set_yticks(places, [_short(name) for name in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    _legend_below(axes, ncols=3)


def add_curves(page: Page, analysis: Analysis) -> None:
    """Add precision-recall curves: the mean of all classes, and one curve per class."""
    assert analysis.run.eval is not None
    table = np.asarray(analysis.run.eval["precision"])[..., 0, -1]  # [IoU, recall, K], all sizes, 100 detections
    table = np.where(table < 0, np.nan, table)[..., _order(analysis)]
    has_objects = ~np.isnan(table[0, 0])
    mean = table[:, :, has_objects].mean(axis=2)
    at = {iou: int(np.flatnonzero(np.isclose(analysis.run.params.iou_thrs, iou))[0]) for iou in (0.5, 0.75)}
    overall = {"IoU 0.5": mean[at[0.5]], "IoU 0.75": mean[at[0.75]], "IoU 0.5 to 0.95": mean.mean(axis=0)}
    height = _height(int(has_objects.sum()))
    section = page.section("Precision and recall")
    if has_objects.sum() > _MOST_CURVES:
        section.text(
            f"Of many classes, the best and the worst have colours and names, and up to {_MOST_GREY} others are grey,"
            " here and below.",
            style="note",
        )
    section.charts(
        [
            Chart("Mean of the classes", lambda axes: _precision_curves(axes, overall, []), _height(len(overall))),
            Chart("Classes, IoU 0.5", lambda axes: _precision_of_classes(axes, table[at[0.5]], analysis), height),
            Chart("Classes, IoU 0.75", lambda axes: _precision_of_classes(axes, table[at[0.75]], analysis), height),
        ]
    )


def _precision_of_classes(axes: Axes, table: np.ndarray, analysis: Analysis) -> None:
    """Plot one curve per class; if there are many, only the best and the worst classes have a colour and a name."""
    names, area = analysis.annotations.class_names, table.mean(axis=0)
    chosen, others = _picked([int(label) for label in np.argsort(-area) if not np.isnan(area[label])])
    # Without the mark, the number would be displayed before a name in a right-to-left script.
    title = "{}\N{LEFT-TO-RIGHT MARK} {:.2f}".format
    curves = {title(_short(names[label]), area[label]): table[:, label] for label in chosen}
    _precision_curves(axes, curves, [table[:, label] for label in others])


def _picked(ranked: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Split classes, ranked from best to worst, into those with a colour and a name and those drawn in grey.

    Up to `_MOST_CURVES` classes all have a colour. Of more classes the best and the worst do, and at most about
    `_MOST_GREY` others, spread evenly, are grey.
    """
    if len(ranked) <= _MOST_CURVES:
        return ranked, []
    others = ranked[3 : 3 - _MOST_CURVES]
    return [*ranked[:3], *ranked[3 - _MOST_CURVES :]], others[:: -(-len(others) // _MOST_GREY)]


def _precision_curves(axes: Axes, curves: dict[str, np.ndarray], others: Sequence[np.ndarray]) -> None:
    recall = np.linspace(0, 1, 101)
    for precision in others:
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
    held, measured = record.best.thresholds, record.evaluation.thresholds
    held_too = held.keys() == measured.keys() and same_figures(held, measured)
    section.text(
        "fcos predict shows what scores at least its class's threshold: the one of highest F1 on val at IoU 0.5"
        f"{', which best.pt holds' if held_too else ''}. It takes another one with --threshold."
    )
    if not held_too:
        section.text("best.pt holds other thresholds or none; these are of this report's evaluation.", style="warning")
    found, wrong, missed = (values.astype(float) for values in analysis.counts_of_classes())
    with np.errstate(invalid="ignore"):
        precision, recall = found / (found + wrong), found / (found + missed)
        f1 = 2 * found / (2 * found + wrong + missed)
    names = analysis.annotations.class_names
    rows = [
        [
            name,
            Cell(f"{analysis.thresholds[k]:.3f}{'' if name in measured else ' (default)'}"),
            Cell(figure(f1[k]), bar=np.nan_to_num(f1[k])),
            precision[k],
            recall[k],
            int(found[k]),
            int(wrong[k]),
            int(missed[k]),
        ]
        for k, name in enumerate(names)
    ]
    section.table(["class", "threshold", "F1", "precision", "recall", "found", "wrong", "missed"], rows)
    height = _height(int((found + missed > 0).sum()))
    section.charts([Chart("F1 over the score threshold, IoU 0.5", lambda axes: _f1_curves(axes, analysis, f1), height)])


def _f1_curves(axes: Axes, analysis: Analysis, f1: np.ndarray) -> None:
    names = analysis.annotations.class_names
    objects = analysis.annotations.boxes_per_class()
    chosen, others = _picked([int(label) for label in np.argsort(-f1) if objects[label]])
    grid = np.linspace(0, 1, 101)
    for label in (*others, *chosen):
        own = (analysis.labels == label) & (analysis.states >= 0)
        shown, right = (
            (analysis.scores[mask][:, None] >= grid).sum(axis=0) for mask in (own, own & (analysis.states == 1))
        )
        curve = 2 * right / (shown + objects[label])
        if label in chosen:
            (line,) = axes.plot(grid, curve, label=_short(names[label]))
            axes.plot(analysis.thresholds[label], f1[label], "o", markersize=4, color=line.get_color())
        else:
            axes.plot(grid, curve, color="#8a93a0", linewidth=0.6, alpha=0.5)
    axes.set(xlabel="score threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    _legend_below(axes)


def add_confusion(page: Page, analysis: Analysis) -> None:
    """Add the confusion matrix of the classes."""
    section = page.section("Confusions")
    matrix, names = analysis.confusion, analysis.annotations.class_names
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    classes = np.arange(len(names))
    text = (
        "Rows are what it is, columns what was shown, above the thresholds and at IoU 0.5. Colours are shares of a row,"
        " in the last row of a column. Boxes are matched whatever their class, so the diagonal can differ a little from"
        " what is found in the table above."
    )
    if len(names) > _MOST_CLASSES:
        trouble = wrong[:-1].sum(axis=1) + wrong[:, :-1].sum(axis=0)
        classes = np.sort(np.argsort(-trouble, kind="stable")[:_MOST_CLASSES])
        text += f" Of {len(names)} classes, the {_MOST_CLASSES} with the most mistakes; the others are left out."
    section.text(text, style="note")
    picked = [*classes.tolist(), len(names)]
    labels = [*(names[k] for k in classes), "nothing"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    share[-1] = matrix[-1] / np.maximum(matrix.sum(axis=0), 1)
    rows = [
        [label, *(Cell(f"{matrix[i, j]:,}" if matrix[i, j] else "", heat=share[i, j]) for j in picked)]
        for label, i in zip(labels, picked, strict=True)
    ]
    section.table(["is \\ shown as", *map(_short, labels)], rows)
    pairs = [(int(wrong[i, j]), i, j) for i, j in zip(*np.nonzero(wrong[:-1, :-1]), strict=True)]
    if pairs:
        worst = sorted(pairs, key=lambda pair: -pair[0])[:8]
        section.text("Most frequent: " + ", ".join(f"{names[i]} shown as {names[j]} ({n})" for n, i, j in worst) + ".")


def add_errors(page: Page, analysis: Analysis) -> None:
    """Add the kinds of errors, with the AP50 that each costs (TIDE, Bolya et al. 2020)."""
    found = analysis.run.tide_errors(pos_thr=0.5, bg_thr=0.1)
    section = page.section("Kinds of errors")
    section.text(
        f"What AP50, now {found['ap_base']:.3f}, would gain if all errors of one kind were mended (TIDE, Bolya et al."
        " 2020). All detections count, whatever they score.",
        style="note",
    )
    gains = found["delta_ap"]
    most = max((*(gains[kind] for kind in _ERRORS), 1e-9))
    rows = [
        [title, Cell(f"+{gains[kind]:.3f}", bar=gains[kind] / most), int(found["counts"][kind]), meaning]
        for kind, (title, meaning) in _ERRORS.items()
    ]
    section.table(["error", "AP50 gained", "how many", "what it is"], rows)


def _order(analysis: Analysis) -> list[int]:
    """Return the position of every label in hotcoco's tables, which are ordered by category id."""
    position = {category: i for i, category in enumerate(analysis.run.params.cat_ids)}
    return [position[category] for category in analysis.annotations.category_ids]


def _height(curves: int) -> int:
    """Return the height of a chart with a legend for `curves` curves."""
    return 215 + 17 * -(-min(curves, _MOST_CURVES) // 2)


def _legend_below(axes: Axes, ncols: int = 2) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside lower center", ncols=ncols, columnspacing=1)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 18 else name[:17] + "..."
