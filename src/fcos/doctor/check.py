"""Checks of `fcos doctor`.

They read every split and decode every image, then compare the images, inspect the boxes, and compute which boxes the
feature pyramid of the config can learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..config import Config, DataConfig, FCOSConfig
from ..data.dataset import Annotations
from ..data.images import OnImage
from ..data.layouts import SPLITS, locate
from ..data.source import Problem
from ..data.splits import check_division, read_split
from ..errors import DataError
from ..formatting import join_some
from .advice import ENOUGH_RECALL, MUCH_AMBIGUITY, advise
from .coverage import BETWEEN, DROPPED, FATES, LEARNED, NO_LEVEL, OFF_CENTER, TAKEN, Coverage, cover
from .findings import Finding, Place, Report
from .images import Look, image_findings
from .labels import label_findings
from .setting import Setting, resized_in_training
from .shapes import shape_findings
from .split_findings import split_findings
from .statistics import describe

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]
"""Function from the name of a task to a context manager that yields a progress callback (steps done, total) or None."""
MAX_COVERED = 5000
"""Maximum number of images, spread evenly over the split, for which the coverage is computed."""
POOR_RECALL = 0.96
"""Best possible recall of a class below which the class is reported."""


def check(config: Config, *, recipe: str = "defaults", progress: Progress | None = None) -> Report:
    """Check a data set for errors and anomalies.

    The classes of val and test must be among those of train, as in `fcos train`.

    Args:
        config: config with the location of the data, and the pyramid and input size to check it for.
        recipe: name of the config in the report.
        progress: shows the progress of the longer tasks.

    Raises:
        DataError: the data is missing, its layout is not recognised, or an option about it is wrong.
    """
    progress = progress or (lambda _: nullcontext(None))
    _check_options(config.data)
    report = Report(recipe, config.data.on_error == "skip")
    setting = Setting.of(config.model, config.data) if isinstance(config.model, FCOSConfig) else None
    looks: dict[Path, Look] = {}

    def on_image(path: Path, image: Image.Image) -> None:
        looks[path] = Look.of(image)

    _read_splits(config.data, report, on_image)
    report.counts, report.histograms = describe(report.splits, partial(resized_in_training, config.data))
    findings = [
        *image_findings(report.splits, looks, config),
        *split_findings(report, partial(resized_in_training, config.data)),
        *label_findings(report.splits),
        *shape_findings(report.splits),
    ]
    report.covered = next((split for split, annotations in report.splits.items() if len(annotations.boxes)), "")
    if report.covered and setting is not None:
        annotations = report.splits[report.covered]
        with progress("computing the best possible recall") as update:
            report.coverage = cover(annotations, setting, images=_sample_images(annotations), progress=update)
        findings += _coverage_findings(report.coverage, report.covered, annotations)
        with progress("trying other settings") as update:
            report.advice = advise(annotations, report.coverage, progress=update)
    report.findings = sorted(findings, key=lambda finding: finding.severity == "note")
    return report


def _check_options(config: DataConfig) -> None:
    """Raise DataError for options that cannot be used, and missing data, which are not problems of a single split."""
    for split in SPLITS:
        if split == "train" or getattr(config, split).data_sets:
            locate(config, split)
    check_division(config)


def _read_splits(config: DataConfig, report: Report, on_image: OnImage) -> None:
    """Add the problems and the usable annotations of every split to the report."""
    class_names = None
    for split in SPLITS:
        try:
            loaded = read_split(config, split, class_names=class_names, decode=True, on_image=on_image)
        except DataError as error:
            report.problems[split] = [Problem("unreadable split", split, "", " ".join(str(error).split()))]
            continue
        if loaded is None:
            if split == "train":
                message = "no train split found; set data.train.annotations and data.train.images"
                report.problems[split] = [Problem("missing split", split, "", message)]
            continue
        report.splits[split], report.problems[split] = loaded
        class_names = class_names or report.splits[split].class_names


def _sample_images(annotations: Annotations) -> np.ndarray:
    count = len(annotations)
    return np.unique(np.linspace(0, count - 1, min(count, MAX_COVERED)).round().astype(int))


# ------------------------------------------------------------------------------------------------------------- coverage

_KINDS = {
    TAKEN: "box covered by smaller boxes",
    NO_LEVEL: "box outside all size ranges",
    OFF_CENTER: "box without a location near its centre",
    BETWEEN: "box between the locations",
    DROPPED: "one-pixel box",
}
_REMEDIES = {
    TAKEN: "Check whether objects are annotated twice. Otherwise, a finer first level (model.strides), a larger input"
    " (data.short_side) or center sampling (model.center_sampling_radius) helps.",
    NO_LEVEL: "Make model.size_ranges cover all sizes without gaps: the first range starts at -1, the last ends at"
    " null.",
    OFF_CENTER: "Increase model.center_sampling_radius, or the input size (data.short_side).",
    BETWEEN: "Increase the input size (data.short_side or data.short_side_range, data.max_side), or start with a finer"
    " level (model.strides).",
    DROPPED: "Such boxes are usually annotation errors. If they are correct, set model.box_convention=continuous.",
}


def _coverage_findings(coverage: Coverage, split: str, annotations: Annotations) -> Iterator[Finding]:
    total = len(coverage.boxes)
    severity = "warning" if coverage.recall < ENOUGH_RECALL else "note"
    image_of = annotations.image_of
    for fate, remedy in _REMEDIES.items():
        chosen = np.flatnonzero(coverage.fates == fate)
        cases = [
            (Place(split, int(image_of[coverage.boxes[i]]), (int(coverage.boxes[i]),), _describe_extent(coverage, i)),)
            for i in chosen[np.argsort(coverage.areas[chosen], kind="stable")].tolist()
        ]
        if cases:
            message = (
                f"{len(cases)} of {total} boxes ({len(cases) / total:.2%}) in {split} cannot be learned: {FATES[fate]}"
            )
            yield Finding(_KINDS[fate], severity, message, remedy, cases)
    counts = {name: coverage.count(coverage.labels == label) for label, name in enumerate(annotations.class_names)}
    recalls = {name: learned / boxes for name, (boxes, learned) in counts.items() if boxes}
    poor = sorted((recall, name) for name, recall in recalls.items() if recall < POOR_RECALL)
    if poor:
        texts = [f"{name} {recall:.0%}" for recall, name in poor]
        message = f"Classes with a low best possible recall: {join_some(texts)}"
        remedy = "See the findings about boxes that cannot be learned."
        classes = [name for _, name in poor]
        yield Finding("class with low recall", severity, message, remedy, classes=classes)
    positives = max(int(coverage.positives.sum()), 1)
    several, classes = (int(counts.sum()) / positives for counts in (coverage.ambiguous, coverage.ambiguous_classes))
    if classes > MUCH_AMBIGUITY:
        yield Finding(
            "ambiguous locations",
            "warning",
            f"{several:.1%} of the positive locations match several boxes, {classes:.1%} boxes of different classes;"
            " each location is assigned to the smallest box",
            "Center sampling (model.center_sampling_radius), a finer first level (model.strides) or a larger input"
            " (data.short_side) reduces the ambiguity.",
        )
    idle = [str(level.stride) for level in coverage.by_level() if not level.boxes and not level.locations]
    if idle and (coverage.fates == LEARNED).any():
        yield Finding(
            "level without boxes",
            "note",
            f"No box is assigned to the levels with stride {join_some(idle)} at this input size",
            "Harmless. A larger input would use these levels; other size ranges (model.size_ranges) would distribute"
            " the boxes over all levels.",
        )


def _describe_extent(coverage: Coverage, i: int) -> str:
    width, height = coverage.extents[i].tolist()
    return f"{width:.1f} x {height:.1f} pixels after resizing" if width else "a pixel or less"
