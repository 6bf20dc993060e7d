"""What `fcos doctor` found: the findings, the figures behind them, and both as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..data.dataset import Annotations
from ..data.source import Problem
from .coverage import FATES, Coverage
from .statistics import Histogram, SplitCounts


class Place(NamedTuple):
    """Where something was found.

    Attributes:
        split: train, val or test.
        image: position in the annotations of the split.
        boxes: positions in them of the boxes concerned.
        note: what is special here, in a few words.
    """

    split: str
    image: int
    boxes: tuple[int, ...] = ()
    note: str = ""


Case = tuple[Place, ...]
"""The places that belong together: one for a box, several for images that are alike."""


@dataclass(frozen=True)
class Finding:
    """Something that a careful person looks at before a long training.

    Attributes:
        kind: a few words, the same in every data set.
        severity: a `warning` costs accuracy or makes figures wrong; a `note` is worth a look.
        message: what was found, with its figures.
        remedy: what to do.
        cases: all of them, the worst first; empty where it is about the data set as a whole.
        classes: names of all classes concerned, where it is about classes; the message names the first few.
    """

    kind: str
    severity: Literal["warning", "note"]
    message: str
    remedy: str
    cases: Sequence[Case] = ()
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Advice:
    """Options that mend a finding.

    Attributes:
        options: `key=value`, to paste behind `fcos train RECIPE`.
        effect: what they change, measured.
    """

    options: tuple[str, ...]
    effect: str


@dataclass
class Report:
    """The outcome of `check`.

    Attributes:
        recipe: whose pyramid and input size the coverage is for.
        skips: whether `data.on_error=skip` is set, so that runs leave out what is broken.
        problems: split -> what is broken (errors of the readers), or worth a look (their warnings).
        splits: split -> its usable annotations.
        counts: split -> counts.
        histograms: split -> figures over its boxes and images.
        findings: what else was found, the most important first.
        covered: which split `coverage` is about, "" where there is none.
        coverage: what becomes of its boxes.
        advice: options that mend the findings about coverage.
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
        """Split -> number of its errors, where there are any."""
        counts = {split: sum(p.severity == "error" for p in found) for split, found in self.problems.items()}
        return {split: count for split, count in counts.items() if count}

    @property
    def failed(self) -> bool:
        """Whether there is an error, in any split."""
        return bool(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; NaN is None."""
        return {
            "recipe": self.recipe,
            "failed": self.failed,
            "problems": {split: [problem.__dict__ for problem in found] for split, found in self.problems.items()},
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
            name: dict(zip(("boxes", "learned"), coverage.of(coverage.labels == label), strict=True))
            for label, name in enumerate(names)
        },
        "levels": [level._asdict() for level in coverage.by_level()],
    }
