"""Options that let a pyramid learn more boxes: tried out, cheapest first.

What is tried: larger inputs; a pyramid that begins finer (P2 to P6) or has a finer level more (P2 to P7); size ranges
of eight strides a level as in the paper, or from quantiles of the boxes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..config_text import as_option
from ..data.dataset import Annotations
from .coverage import Coverage, cover
from .labels import double_boxes
from .report import Advice
from .setting import Setting

ENOUGH_RECALL = 0.98
"""Best possible recall below which something should be changed; the paper calls 98.4 % on COCO sufficient."""
MUCH_AMBIGUITY = 0.05
"""Share of positive locations that boxes of different classes want, above which center sampling is tried; the paper
has 3.75 % on COCO."""
CENTER_SAMPLING = 1.5  # that of the improved FCOS
_MOST_IMAGES = 200  # for trying out
_SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
_FINEST = 4  # stride of C2, the finest map that the backbones have
_STRIDES_IN_RANGE = 8  # the paper's ranges end at eight strides of their level
_LEVEL_NEEDS = 2  # strides that a box should have on its level: then it holds a location


@dataclass(frozen=True)
class _Trial:
    """A setting, what it costs, and the options that lead to it."""

    setting: Setting
    options: tuple[str, ...]
    pixels: float  # of the input, relative to now
    locations: float


def advise(
    annotations: Annotations, coverage: Coverage, *, progress: Callable[[int, int], None] | None = None
) -> list[Advice]:
    """Find the cheapest change after which the best possible recall is `ENOUGH_RECALL`, and one against ambiguity.

    Boxes that are marked twice count once: no setting can mend them.

    Args:
        annotations: of the split that was covered.
        coverage: its coverage with the present setting.
        progress: called with the number of settings tried and the number of all.
    """
    advice: list[Advice] = []
    twice = annotations.crowd.copy()
    twice[[later for _, _, later, _ in double_boxes(annotations)]] = True
    annotations, images = replace(annotations, crowd=twice), _sample(annotations)
    if coverage.recall < ENOUGH_RECALL:
        advice += _more_recall(annotations, coverage, images, progress)
    locations = max(int(coverage.positives.sum()), 1)
    now = coverage.ambiguous_classes.sum() / locations
    if now > MUCH_AMBIGUITY and not coverage.setting.center_sampling_radius:
        tried = cover(annotations, replace(coverage.setting, center_sampling_radius=CENTER_SAMPLING), images=images)
        then = tried.ambiguous_classes.sum() / max(int(tried.positives.sum()), 1)
        if then < now:
            effect = f"locations wanted by boxes of different classes: {now:.1%} -> {then:.1%}; {_recall_of(tried)}"
            advice.append(Advice((f"model.center_sampling_radius={CENTER_SAMPLING}",), effect))
    return advice


def _sample(annotations: Annotations) -> np.ndarray:
    """Images with boxes, spread evenly over the split."""
    images = np.flatnonzero(np.diff(annotations.offsets) > 0)
    return images[np.linspace(0, len(images) - 1, min(len(images), _MOST_IMAGES)).round().astype(int)]


def _recall_of(coverage: Coverage) -> str:
    return f"best possible recall {coverage.recall:.1%} on {coverage.images} images"


def _more_recall(
    annotations: Annotations, coverage: Coverage, images: np.ndarray, progress: Callable[[int, int], None] | None
) -> list[Advice]:
    now = cover(annotations, coverage.setting, images=images, recall_only=True)
    if now.recall >= ENOUGH_RECALL:
        return []
    sides = annotations.sizes[images]
    longest = float((sides.max(axis=1) / sides.min(axis=1)).max(initial=1.0))
    trials = sorted(_trials(coverage, longest), key=lambda trial: (trial.locations, trial.pixels, len(trial.options)))
    best, best_recall = None, now.recall
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
    reached = "" if best_recall >= ENOUGH_RECALL else f" (nothing that was tried reaches {ENOUGH_RECALL:.0%})"
    effect = (
        f"best possible recall {now.recall:.1%} -> {best_recall:.1%}{reached} on {len(images)} images;"
        f" {best.locations:.1f} times the locations, {best.pixels:.1f} times the pixels"
    )
    return [Advice(best.options, effect)]


def _trials(coverage: Coverage, longest: float) -> Iterator[_Trial]:
    """What is tried; `longest` is the largest ratio of an image's sides."""
    setting = coverage.setting
    old = sum(1 / stride**2 for stride in setting.strides)
    for scale, strides in itertools.product(_SCALES, _pyramids(setting.strides)):
        resized, size_options = _enlarged(setting, scale, longest)
        pixels = (resized.short_side / setting.short_side) ** 2
        stride_options = () if strides == setting.strides else (f"model.strides={as_option(strides)}",)
        ranges = [_of_strides(strides), _of_quantiles(coverage, strides, resized.short_side / setting.short_side)]
        if strides == setting.strides:
            ranges.insert(0, setting.size_ranges)
        for size_ranges in dict.fromkeys(ranges):
            kept = size_ranges == setting.size_ranges
            range_options = () if kept else (f"model.size_ranges={as_option(size_ranges)}",)
            options = (*size_options, *stride_options, *range_options)
            if options:
                trial = replace(resized, strides=strides, size_ranges=size_ranges)
                yield _Trial(trial, options, pixels, pixels * sum(1 / stride**2 for stride in strides) / old)


def _pyramids(strides: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The present levels; as many that begin finer; all of these."""
    finer = tuple(_FINEST * 2**i for i in range(len(strides)))
    if strides[0] <= _FINEST:
        return [strides]
    return list(dict.fromkeys([strides, finer, tuple(sorted({*finer, *strides}))]))


def _enlarged(setting: Setting, scale: float, longest: float) -> tuple[Setting, tuple[str, ...]]:
    """The shorter side times a factor, in whole 32 pixels; the limit of the longer one, too, where it would be met."""
    if scale == 1.0:
        return setting, ()
    short, long = (math.ceil(side * scale / 32) * 32 for side in (setting.short_side, setting.max_side))
    options = [f"data.short_side={short}"]
    if short * longest > setting.max_side:
        options.append(f"data.max_side={long}")
    else:
        long = setting.max_side
    return replace(setting, short_side=short, max_side=long), tuple(options)


def _of_strides(strides: tuple[int, ...]) -> tuple[tuple[float, float | None], ...]:
    """The paper's ranges: each ends at eight strides of its level."""
    return _ranges([_STRIDES_IN_RANGE * stride for stride in strides[:-1]])


def _of_quantiles(coverage: Coverage, strides: tuple[int, ...], scale: float) -> tuple[tuple[float, float | None], ...]:
    """Ranges that give every level as many boxes, but no level boxes that are too small for it."""
    longest = coverage.extents.max(axis=1) * scale
    shares = np.arange(1, len(strides)) / len(strides)
    ends = np.quantile(longest, shares).round().astype(int).tolist()
    smallest = [_LEVEL_NEEDS * stride for stride in strides[1:]]
    return _ranges(list(itertools.accumulate(map(max, ends, smallest), max)))


def _ranges(ends: list[int]) -> tuple[tuple[float, float | None], ...]:
    lows: list[int] = [-1, *ends]
    highs: list[int | None] = [*ends, None]
    return tuple(zip(lows, highs, strict=True))
