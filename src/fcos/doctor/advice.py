"""Search for options with which a feature pyramid learns more boxes (see `coverage`), cheapest first.

The search tries larger inputs; a pyramid that begins with a finer level (P2 to P6), or has an additional finer level
(P2 to P7); size ranges that end at eight strides of their level as in the paper, or at quantiles of the box sizes; and,
if center sampling excludes boxes, a larger radius or no center sampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..data.dataset import Annotations
from ..formatting import plural
from .coverage import OFF_CENTER, Coverage, cover
from .findings import Advice
from .labels import double_boxes
from .setting import Setting

ENOUGH_RECALL = 0.98
"""Best possible recall below which the options should be changed; the paper calls 98.4 % on COCO sufficient."""
MUCH_AMBIGUITY = 0.05
"""Share of positive locations that match boxes of different classes above which center sampling is tried; the paper
reports 3.75 % on COCO."""
CENTER_SAMPLING = 1.5  # radius of the improved FCOS, in strides
_MAX_IMAGES = 200  # number of images on which settings are tried
_MAX_BOXES = 2000  # maximum number of boxes of these images; the time grows with their number and that of the locations
_SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
_RADII = (CENTER_SAMPLING, 2.5, 0.0)  # 0: no center sampling, any location inside a box
_FINEST = 4  # stride of C2, the finest feature map of the backbones
_STRIDES_IN_RANGE = 8  # the size ranges of the paper end at eight strides of their level
_MIN_STRIDES_PER_BOX = 2  # a box should be at least this many strides long on its level, so that it contains a location


@dataclass(frozen=True)
class _Trial:
    """A setting to try, with the options that set it and its cost relative to the current setting."""

    setting: Setting
    options: tuple[str, ...]
    pixels: float  # of the input, relative to the current setting
    locations: float  # of all levels, relative to the current setting


def advise(
    annotations: Annotations, coverage: Coverage, *, progress: Callable[[int, int], None] | None = None
) -> list[Advice]:
    """Find the cheapest options with a best possible recall of `ENOUGH_RECALL`, and options that reduce ambiguity.

    If no options reach this recall, those with the highest recall are returned. Boxes annotated twice count once,
    because no options can fix them. Images with thousands of boxes are not used. For these reasons, and because fewer
    images are used, the figures before the change may differ from those of `coverage`.

    Args:
        annotations: annotations of the split of `coverage`.
        coverage: coverage with the current setting.
        progress: callback that receives the number of settings tried and the total.
    """
    advice: list[Advice] = []
    images = _sample(annotations)
    if not len(images):
        return []
    is_ignored = annotations.crowd.copy()
    for doubles in double_boxes(annotations, images):
        is_ignored[doubles.later] = True
    basis = f"on {plural(len(images), 'image')}"
    if (is_ignored != annotations.crowd).any():
        basis += ", duplicate boxes counted once"
    annotations = replace(annotations, crowd=is_ignored)
    if coverage.recall < ENOUGH_RECALL:
        advice += _improve_recall(annotations, coverage, images, basis, progress)
    if _ambiguity(coverage) > MUCH_AMBIGUITY and not coverage.setting.center_sampling_radius:
        setting = replace(coverage.setting, center_sampling_radius=CENTER_SAMPLING)
        before, after = (cover(annotations, tried, images=images) for tried in (coverage.setting, setting))
        if _ambiguity(after) < _ambiguity(before):
            effect = (
                f"locations that match boxes of different classes: {_ambiguity(before):.1%} -> {_ambiguity(after):.1%};"
                f" best possible recall {before.recall:.1%} -> {after.recall:.1%} {basis}"
            )
            advice.append(Advice((f"model.center_sampling_radius={CENTER_SAMPLING}",), effect))
    return advice


def _ambiguity(coverage: Coverage) -> float:
    """Return the share of the positive locations that boxes of different classes match."""
    return coverage.ambiguous_classes.sum() / max(coverage.positives.sum(), 1)


def _sample(annotations: Annotations) -> np.ndarray:
    """Return the positions of up to `_MAX_IMAGES` images with few enough boxes, spread evenly over the split."""
    counts = np.diff(annotations.offsets)
    images = np.flatnonzero((counts > 0) & (counts <= _MAX_BOXES))
    return images[np.linspace(0, len(images) - 1, min(len(images), _MAX_IMAGES)).round().astype(int)]


def _improve_recall(
    annotations: Annotations,
    coverage: Coverage,
    images: np.ndarray,
    basis: str,
    progress: Callable[[int, int], None] | None,
) -> list[Advice]:
    before = cover(annotations, coverage.setting, images=images, recall_only=True)
    if before.recall >= ENOUGH_RECALL:
        return []
    sides = annotations.sizes[images]
    longest = float((sides.max(axis=1) / sides.min(axis=1)).max(initial=1.0))
    trials = sorted(_trials(coverage, longest), key=lambda trial: (trial.locations, trial.pixels, len(trial.options)))
    best, best_recall = None, before.recall
    for done, trial in enumerate(trials):
        if progress is not None:
            progress(done, len(trials))
        recall = cover(annotations, trial.setting, images=images, recall_only=True).recall
        if recall > best_recall:
            best, best_recall = trial, recall
        if recall >= ENOUGH_RECALL:
            break
    if best is None:
        return []
    shortfall = "" if best_recall >= ENOUGH_RECALL else f" (no setting tried reaches {ENOUGH_RECALL:.0%})"
    effect = (
        f"best possible recall {before.recall:.1%} -> {best_recall:.1%}{shortfall} {basis};"
        f" {best.locations:.1f} times the locations, {best.pixels:.1f} times the pixels"
    )
    return [Advice(best.options, effect)]


def _trials(coverage: Coverage, longest: float) -> Iterator[_Trial]:
    """Yield the settings to try; `longest` is the largest ratio of longer to shorter side of an image."""
    setting = coverage.setting
    density = sum(1 / stride**2 for stride in setting.strides)
    radii = [setting.center_sampling_radius]
    if (coverage.fates == OFF_CENTER).any():
        radii += [radius for radius in _RADII if not 0 < radius <= setting.center_sampling_radius]
    for scale, strides in itertools.product(_SCALES, _pyramids(setting.strides)):
        resized = setting.enlarged(scale, longest)
        scale = resized.middle_side / setting.middle_side  # noqa: PLW2901 (as rounded)
        ranges = [_ranges_from_strides(strides), _ranges_from_quantiles(coverage, strides, scale)]
        if strides == setting.strides:
            ranges.insert(0, setting.size_ranges)
        for size_ranges, radius in itertools.product(dict.fromkeys(ranges), radii):
            trial = replace(resized, strides=strides, size_ranges=size_ranges, center_sampling_radius=radius)
            options = tuple(option for option in trial.options if option not in setting.options)
            if options:
                locations = scale**2 * sum(1 / stride**2 for stride in strides) / density
                yield _Trial(trial, options, scale**2, locations)


def _pyramids(strides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the strides of the pyramids to try: current levels; as many levels from stride 4 on; both together."""
    finer = tuple(_FINEST * 2**i for i in range(len(strides)))
    if strides[0] <= _FINEST:
        return [strides]
    return list(dict.fromkeys([strides, finer, tuple(sorted({*finer, *strides}))]))


def _ranges_from_strides(strides: tuple[int, ...]) -> tuple[tuple[float, float | None], ...]:
    """Return the size ranges of the paper: each ends at eight strides of its level."""
    return _ranges_from_ends([_STRIDES_IN_RANGE * stride for stride in strides[:-1]])


def _ranges_from_quantiles(
    coverage: Coverage, strides: tuple[int, ...], scale: float
) -> tuple[tuple[float, float | None], ...]:
    """Return size ranges with about equally many boxes per level, but no boxes that are too small for their level."""
    longest = coverage.extents.max(axis=1) * scale
    shares = np.arange(1, len(strides)) / len(strides)
    ends = np.quantile(longest, shares).round().astype(int).tolist()
    smallest = [_MIN_STRIDES_PER_BOX * stride for stride in strides[1:]]
    return _ranges_from_ends(list(itertools.accumulate(map(max, ends, smallest), max)))


def _ranges_from_ends(ends: list[int]) -> tuple[tuple[float, float | None], ...]:
    lows: list[int] = [-1, *ends]
    highs: list[int | None] = [*ends, None]
    return tuple(zip(lows, highs, strict=True))
