"""Report of `fcos doctor`: findings, the figures behind them, and their conversion to plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..data.dataset import Annotations
from ..data.source import Problem
from .coverage import FATES, Coverage
from .statistics import Histogram, SplitCounts


class Place(NamedTuple):
    """Image, and optionally boxes in it, that a finding is about.

    Attributes:
        split: train, val or test.
        image: position of the image in the annotations of the split.
        boxes: positions of the boxes in the annotations of the split.
        note: short description of the case.
    """

    split: str
    image: int
    boxes: tuple[int, ...] = ()
    note: str = ""


Case = tuple[Place, ...]
"""Places that belong together: one place for a box, several for images that look the same."""


@dataclass(frozen=True)
class Finding:
    """Anomaly in a data set that should be reviewed before a long training.

    Attributes:
        kind: name of the check, independent of the data set.
        severity: `warning` if it costs accuracy or makes metrics wrong, `note` if it is worth a look.
        message: description with figures.
        remedy: recommended action.
        cases: all cases, worst first; empty for a finding about the data set as a whole.
        classes: names of all affected classes, for a finding about classes; the message names only the first few.
    """

    kind: str
    severity: Literal["warning", "note"]
    message: str
    remedy: str
    cases: Sequence[Case] = ()
    classes: Sequence[str] = ()


def worst_first(scored: Sequence[tuple[float, Case]]) -> list[Case]:
    """Sort cases by descending score."""
    return [case for _, case in sorted(scored, key=lambda item: -item[0])]


@dataclass(frozen=True)
class Advice:
    """Options that fix a finding.

    Attributes:
        options: `key=value` options to append to `fcos train RECIPE`.
        effect: measured effect of the options.
    """

    options: tuple[str, ...]
    effect: str


@dataclass
class Report:
    """Result of `check`.

    Attributes:
        recipe: name of the config whose pyramid and input size the coverage is for.
        skips: True if `data.on_error=skip` is set, so that runs leave out broken images and boxes.
        problems: problems found while reading, by split: errors (broken data) and warnings (worth a look).
        splits: usable annotations by split.
        counts: counts of images and boxes by split.
        histograms: histograms over boxes and images by split.
        findings: all other findings, warnings first.
        covered: split that `coverage` is about; empty if no split has boxes.
        coverage: boxes that the pyramid learns, and those that it does not; None without boxes or for a detector other
            than FCOS.
        advice: options that fix the findings about coverage.
    """

    recipe: str
    skips: bool = False
    problems: dict[str, list[Problem]] = field(default_factory=dict)
    splits: dict[str, Annotations] = field(default_factory=dict)
    counts: dict[str, SplitCounts] = field(default_factory=dict)
    histograms: dict[str, list[Histogram]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    covered: str = ""
    coverage: Coverage | None = None
    advice: list[Advice] = field(default_factory=list)

    @property
    def errors(self) -> dict[str, int]:
        """Number of errors by split, for splits with errors."""
        counts = {split: sum(p.severity == "error" for p in problems) for split, problems in self.problems.items()}
        return {split: count for split, count in counts.items() if count}

    @property
    def failed(self) -> bool:
        """True if any split has an error."""
        return bool(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to plain data for JSON, with None for NaN."""
        return {
            "recipe": self.recipe,
            "failed": self.failed,
            "problems": {
                split: [problem.__dict__ for problem in problems] for split, problems in self.problems.items()
            },
            "counts": {split: counts.__dict__ for split, counts in self.counts.items()},
            "histograms": {s: [h._asdict() for h in histograms] for s, histograms in self.histograms.items()},
            "findings": [_finding(finding, self.splits) for finding in self.findings],
            "coverage": None if self.coverage is None else {"split": self.covered, **_coverage(self)},
            "advice": [{"options": list(advice.options), "effect": advice.effect} for advice in self.advice],
        }


def _finding(finding: Finding, splits: Mapping[str, Annotations]) -> dict[str, Any]:
    cases = [[_place(place, splits[place.split]) for place in case] for case in finding.cases]
    return {**finding.__dict__, "cases": cases}


def _place(place: Place, annotations: Annotations) -> dict[str, Any]:
    boxes = [
        {
            "annotation": int(annotations.annotation_ids[i]),
            "class": annotations.class_names[annotations.labels[i]],
            "xyxy": annotations.boxes[i].tolist(),
        }
        for i in place.boxes
    ]
    image = {"image": int(annotations.image_ids[place.image]), "file": annotations.file_name(place.image)}
    return {"split": place.split, **image, "boxes": boxes, "note": place.note}


def _coverage(report: Report) -> dict[str, Any]:
    coverage = report.coverage
    assert coverage is not None
    names = report.splits[report.covered].class_names
    fates = {text: int((coverage.fates == fate).sum()) for fate, text in FATES.items()}
    return {
        "setting": coverage.setting.values,
        "short_side": coverage.setting.middle_side,
        "images": coverage.images,
        "boxes": len(coverage.boxes),
        "best_possible_recall": coverage.recall if len(coverage.boxes) else None,
        "fates": fates,
        "sizes": {size: dict(zip(("boxes", "learned"), c, strict=True)) for size, c in coverage.by_size().items()},
        "classes": {
            name: dict(zip(("boxes", "learned"), coverage.count(coverage.labels == label), strict=True))
            for label, name in enumerate(names)
        },
        "levels": [level._asdict() for level in coverage.by_level()],
    }
