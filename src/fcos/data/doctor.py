"""The check-up of a data set: every problem, and the counts (`fcos doctor`)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..config import DataConfig
from ..errors import DataError
from .dataset import Annotations
from .source import Problem, summary
from .splits import SPLITS, locate, read_split


@dataclass(frozen=True)
class SplitCounts:
    """What is usable of one split.

    Attributes:
        images: number of images.
        images_without_boxes: how many of them have none.
        boxes: number of boxes, crowd included.
        crowd: how many of them are crowd.
        per_class: class name -> boxes that are not crowd.
    """

    images: int
    images_without_boxes: int
    boxes: int
    crowd: int
    per_class: dict[str, int]


@dataclass
class Report:
    """The outcome of `check`.

    Attributes:
        problems: split -> all its problems, errors and warnings.
        counts: split -> counts, for the splits that could be read.
    """

    problems: dict[str, list[Problem]] = field(default_factory=dict)
    counts: dict[str, SplitCounts] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether there is an error: something that stops a run."""
        return any(p.severity == "error" for problems in self.problems.values() for p in problems)

    def render(self) -> RenderableType:
        """Tables of the counts and every problem, for a rich console."""
        table = Table("", *self.counts, title="What can be used", title_justify="left")
        rows = [("images", [c.images for c in self.counts.values()])]
        rows += [("  without boxes", [c.images_without_boxes for c in self.counts.values()])]
        rows += [("boxes", [c.boxes for c in self.counts.values()])]
        for name in dict.fromkeys(name for c in self.counts.values() for name in c.per_class):
            rows.append((escape(f"  {name}"), [c.per_class.get(name, 0) for c in self.counts.values()]))
        rows += [("  crowd, ignored", [c.crowd for c in self.counts.values()])]
        for name, values in rows:
            table.add_row(name, *(str(value) for value in values))
        for column in table.columns[1:]:
            column.justify = "right"
        parts: list[RenderableType] = [table] if self.counts else []
        for split, problems in self.problems.items():
            for severity, style in (("error", "red"), ("warning", "yellow")):
                chosen = [p for p in problems if p.severity == severity]
                if chosen:
                    parts.append(Text(f"{split}, {severity}s: {summary(chosen)}", style=f"bold {style}"))
                    parts += [Text(f"  {problem}") for problem in chosen]
        if not self.failed:
            parts.append(Text("No errors.", style="green"))
        return Group(*parts)


def check(config: DataConfig) -> Report:
    """Read every split completely, decoding every image.

    The classes of val and test must be among those of train (as `fcos train` demands).

    Raises:
        DataError: there is no data, or its layout is not understood.
    """
    locate(config, "train")  # no data at all is not a problem of a split
    report, class_names = Report(), None
    for split in SPLITS:
        try:
            loaded = read_split(config, split, class_names=class_names, decode=True)
        except DataError as error:
            report.problems[split] = [Problem("unreadable split", split, "", str(error))]
            continue
        if loaded is None:
            if split == "train":
                message = "there is no train split; give data.train.annotations and data.train.images"
                report.problems[split] = [Problem("missing split", split, "", message)]
            continue
        annotations, problems = loaded
        class_names = class_names or annotations.class_names
        report.counts[split], report.problems[split] = _count(annotations), problems
    return report


def _count(annotations: Annotations) -> SplitCounts:
    per_class = np.bincount(annotations.labels[~annotations.crowd], minlength=len(annotations.class_names)).tolist()
    return SplitCounts(
        images=len(annotations),
        images_without_boxes=int((np.diff(annotations.offsets) == 0).sum()),
        boxes=len(annotations.boxes),
        crowd=int(annotations.crowd.sum()),
        per_class=dict(zip(annotations.class_names, per_class, strict=True)),
    )
