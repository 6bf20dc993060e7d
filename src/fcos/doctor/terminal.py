"""Terminal output of `fcos doctor`: one or two screens, most important items first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..data.dataset import Annotations
from ..data.source import summarize
from ..formatting import HYPHEN, percent, plural, printable
from .findings import Case, Finding, Report

MAX_CASES = 3
MAX_ALIKE = 3
MAX_PROBLEMS = 10
MAX_CLASSES = 12
_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}


def render(report: Report) -> RenderableType:
    """Render problems, findings, advice and tables for a rich console; long lists are cut, `report` has all items."""
    blocks = [*_problems(report), *(_finding(finding, report.splits) for finding in report.findings)]
    if report.advice:
        blocks += [Text("\nRecommended options", style="bold"), *_advice(report)]
    if report.counts:
        blocks += [Text(), _counts_table(report)]
    if report.coverage is not None and len(report.coverage.boxes):
        blocks += [Text(), _coverage_table(report), Text(_setting_line(report), style="dim")]
    return Group(*blocks, Text(), _verdict(report))


def _problems(report: Report) -> Iterator[RenderableType]:
    """Yield the errors of all splits, then the warnings of the readers."""
    for severity, name in (("error", "error"), ("warning", "note")):
        for split, problems in report.problems.items():
            chosen = [p for p in problems if p.severity == severity]
            if chosen:
                yield Text(f"{split}, {name}s: {summarize(chosen)}", style=f"bold {_STYLES[name]}")
                yield from (
                    Padding(Text(printable(str(problem))), (0, 0, 0, 2), expand=False)
                    for problem in chosen[:MAX_PROBLEMS]
                )
                yield from _more(len(chosen) - MAX_PROBLEMS)


def _more(count: int) -> Iterator[RenderableType]:
    if count > 0:
        yield Text(f"  ... and {count} more", style="dim")


def _finding(finding: Finding, splits: Mapping[str, Annotations]) -> RenderableType:
    style = _STYLES[finding.severity]
    lines: list[RenderableType] = [
        Text.assemble((f"{finding.severity}: ", f"bold {style}"), printable(finding.message))
    ]
    lines += [
        Padding(Text(describe_case(case, splits)), (0, 0, 0, 4), expand=False) for case in finding.cases[:MAX_CASES]
    ]
    lines += [Padding(line, (0, 0, 0, 2), expand=False) for line in _more(len(finding.cases) - MAX_CASES)]
    lines.append(Padding(Text(finding.remedy, style="dim"), (0, 0, 0, 2), expand=False))
    return Group(*lines)


def describe_case(case: Case, splits: Mapping[str, Annotations]) -> str:
    """Describe a case in one line: split, file, annotation ids and note of its first `MAX_ALIKE` places."""
    texts = []
    for place in case[:MAX_ALIKE]:
        annotations = splits[place.split]
        ids = ", ".join(str(annotations.annotation_ids[i]) for i in place.boxes)
        names = " and ".join(dict.fromkeys(annotations.class_names[annotations.labels[i]] for i in place.boxes))
        boxes = f", {names}, annotation{'s' if len(place.boxes) > 1 else ''} {ids}" if place.boxes else ""
        note = f" ({place.note})" if place.note else ""
        texts.append(f"{place.split} {annotations.file_name(place.image)}{boxes}{note}")
    rest = [f"{len(case) - MAX_ALIKE} more"] if len(case) > MAX_ALIKE else []
    return printable("  =  ".join(texts + rest))


def _advice(report: Report) -> Iterator[RenderableType]:
    for advice in report.advice:
        yield Padding(Text(shlex.join(advice.options), style="bold green"), (0, 0, 0, 2), expand=False)
        yield Padding(Text(advice.effect, style="dim"), (0, 0, 0, 4), expand=False)


def _counts_table(report: Report) -> Table:
    counts = list(report.counts.values())
    table = Table("", *report.counts, title="Usable images and boxes", title_justify="left")
    rows = [("images", [c.images for c in counts]), ("  without boxes", [c.images_without_boxes for c in counts])]
    rows += [("  decoded, MiB", [math.ceil(c.decoded_bytes / 2**20) for c in counts])]
    rows += [("boxes", [c.boxes for c in counts])]
    names = list(dict.fromkeys(name for c in counts for name in c.per_class))
    rows += [(f"  {printable(name)}", [c.per_class.get(name, 0) for c in counts]) for name in names[:MAX_CLASSES]]
    rest = names[MAX_CLASSES:]
    if rest:
        rows += [(f"  {plural(len(rest), 'more class')}", [sum(c.per_class.get(n, 0) for n in rest) for c in counts])]
    rows += [(f"  {size} after resizing", [c.per_size[size] for c in counts]) for size in counts[0].per_size]
    rows += [("  crowd, ignored", [c.crowd for c in counts])]
    for name, values in rows:
        table.add_row(Text(name), *(str(value) for value in values))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _coverage_table(report: Report) -> Table:
    coverage = report.coverage
    assert coverage is not None
    title = f"Boxes of {report.covered} that the pyramid can learn: best possible recall {coverage.recall:.2%}"
    table = Table(
        "", "boxes", "learned", "positive locations", "ambiguous", "several classes", title=title, title_justify="left"
    )
    for name, (boxes, learned) in coverage.by_size().items():
        table.add_row(name, str(boxes), percent(learned, boxes, HYPHEN), "", "", "")
    table.add_section()
    for stride, boxes, learned, positive, several, classes in coverage.by_level():
        shares = [percent(count, positive, HYPHEN) for count in (several, classes)]
        cells = (boxes, percent(learned, boxes, HYPHEN), positive, *shares)
        table.add_row(f"stride {stride}", *map(str, cells))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _setting_line(report: Report) -> str:
    assert report.coverage is not None
    setting = report.coverage.setting
    images = plural(report.coverage.images, "image")
    return (
        f"Computed for {report.recipe} on {images} with a shorter side of {setting.middle_side} pixels"
        f" ({' '.join(setting.options[:2])}). For other settings: fcos doctor RECIPE data=DIR KEY=VALUE"
    )


def consequences(report: Report) -> Iterator[str]:
    """Yield a sentence for every split with errors: whether they stop a run, and whether skipping broken data helps."""
    for split, count in report.errors.items():
        errors, usable = f"{plural(count, 'error')} in {split}", len(report.splits.get(split, ())) > 0
        run = "`fcos val --split test`" if split == "test" else "training"
        stops = f"{errors} will stop {run}"
        if not usable:
            yield f"{stops}."
        elif report.skips:
            yield f"{errors}: skipped, because data.on_error=skip is set."
        else:
            yield f"{stops} unless data.on_error=skip is set."


def _verdict(report: Report) -> Text:
    if report.failed:
        return Text("\n".join(consequences(report)), style="bold red")
    warnings = sum(finding.severity == "warning" for finding in report.findings)
    text = f"No errors; {plural(warnings, 'warning')} to review." if warnings else "No errors."
    return Text(text, style="green")
