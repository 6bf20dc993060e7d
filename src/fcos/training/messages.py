"""First and last lines of the log of a run: what is trained, warnings about likely mistakes, and the result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..config import Config, DataConfig, FCOSConfig
from ..config.schema import LENGTHS
from ..config.text import as_option
from ..data import resize_size
from ..distributed import world_size
from ..formatting import join_some, plural
from .budget import IterationLength, Length
from .folder import BEST
from .run import Run

if TYPE_CHECKING:
    from ..data.dataset import Annotations


class ScalingRule(NamedTuple):
    """Learning rate that suits a batch size: `rate` times (batch size / `images`)^`exponent`.

    Sources: Goyal et al. 2017 (arXiv:1706.02677) for SGD, Malladi et al. 2022 (arXiv:2205.10287) for Adam.
    """

    name: str
    rate: float
    images: int
    exponent: float

    def __call__(self, batch_size: int) -> float:
        """Return the learning rate for batches of this size."""
        return self.rate * (batch_size / self.images) ** self.exponent


SCALING_RULES = {"sgd": ScalingRule("linear", 0.01, 16, 1.0), "adamw": ScalingRule("square-root", 2e-3, 4, 0.5)}
"""Rule per optimiser: the reference for SGD is that of the FCOS paper, for AdamW that of the small recipes of FCOS."""
_MAX_RATE_RATIO = 4.0


def describe_start(run: Run, length: Length, origin: str, *, micro_batches: int) -> str:
    """Return the first lines of the log: run, data, origin of the weights, batch, learning rate and warnings.

    Args:
        run: new or resumed run.
        length: its length.
        origin: text on the origin of the weights.
        micro_batches: number of micro-batches per batch.
    """
    train_data, val_data, settings = run.train_data, run.val_data, run.config.train
    parameters = sum(p.numel() for p in run.model.parameters()) / 1e6
    val = (
        "no val split (data.val_fraction=0.2 makes one), best.pt gets the last weights"
        if val_data is None
        else plural(len(val_data), "val image")
    )
    counts = (len(train_data), "image"), (len(train_data.boxes), "box"), (len(train_data.class_names), "class")
    rule = SCALING_RULES[settings.optimizer]
    micro_batch = -(-settings.batch_size // (world_size() * micro_batches))
    images, processes = plural(settings.batch_size, "image"), plural(world_size(), "process")
    lines = [
        f"run: {run.folder}, on {run.device}, {parameters:.1f} M parameters",
        f"data: {', '.join(plural(count, noun) for count, noun in counts)}; {val}",
        origin,
        f"step: {images} over {processes}, at most {micro_batch} in a micro-batch; learning rate {settings.lr:g}"
        f" ({rule.name} scaling rule: {rule(settings.batch_size):.3g}, from {rule.rate:g} for {rule.images} images)",
    ]
    fresh = not run.state.iteration and not settings.weights and run.config.model.backbone.weights is None
    lines += [f"warning: {text}" for text in start_warnings(run.config, train_data, fresh_backbone=fresh)]
    # With a time budget, the warm-up becomes shorter by itself.
    iterations = length.iterations if isinstance(length, IterationLength) else None
    if iterations is not None and settings.warmup != "none" and iterations <= settings.warmup_iterations:
        lines.append(
            f"warning: the run of {plural(iterations, 'iteration')} ends within the warm-up; set"
            f" train.warmup_iterations (now {settings.warmup_iterations}) to a tenth of the iterations"
        )
    return "\n".join(lines)


def describe_finished_run(run: Run) -> str:
    """Return a message for a resumed run whose length is reached already."""
    settings = run.config.train
    option = next(
        f"train.{name}={as_option(getattr(settings, name))}" for name in LENGTHS if getattr(settings, name) is not None
    )
    return f"nothing left to train: {plural(run.state.iteration, 'iteration')} are finished, and the run has {option}"


def describe_end(run: Run) -> str:
    """Return the last line of the log: the length of the run, and its best weights with their metric."""
    metric, best_metrics = run.config.train.best_metric, run.state.best
    description = "the last weights, no validation"
    if best_metrics:
        description = f"{metric} {best_metrics[metric]:.3f} on val"
    elif run.state.evaluations:
        description = f"the last weights, {metric} is undefined because val has no objects that this metric counts"
    iterations = plural(run.state.iteration, "iteration")
    return f"{iterations}, {run.elapsed() / 60:.1f} minutes; {run.folder / BEST}: {description}"


def start_warnings(config: Config, data: Annotations, *, fresh_backbone: bool) -> Iterator[str]:
    """Yield warnings about likely mistakes in config or data, each with a remedy.

    Args:
        config: config of the run.
        data: training annotations.
        fresh_backbone: True if the backbone has random weights.
    """
    backbone, settings = config.model.backbone, config.train
    if fresh_backbone and backbone.norm == "frozen_bn":
        yield (
            "the backbone has random weights and frozen batch norm, which then normalises nothing, so the network"
            " hardly learns; use model.backbone.weights=imagenet, train.weights=FILE, or another model.backbone.norm"
        )
    elif fresh_backbone and backbone.frozen_stages:
        yield (
            f"the backbone has random weights and {backbone.frozen_stages} frozen stages, which stay random;"
            " use model.backbone.frozen_stages=0, or model.backbone.weights=imagenet"
        )
    elif fresh_backbone and any(pattern.startswith(("backbone", "*")) for pattern in settings.freeze):
        yield (
            f"the backbone has random weights, and train.freeze={settings.freeze} freezes some of them;"
            " remove the option, or use model.backbone.weights=imagenet"
        )
    factor = settings.lr_factors.get("backbone.*", 1.0)
    if fresh_backbone and factor < 1 and "weights" in type(backbone).model_fields:  # your own may load its weights
        yield (
            f"the backbone has random weights, but train.lr_factors multiplies its learning rate by {factor:g};"
            " use train.lr_factors={}, or model.backbone.weights=imagenet"
        )
    recommended_lr = SCALING_RULES[settings.optimizer](settings.batch_size)
    if not 1 / _MAX_RATE_RATIO <= settings.lr / recommended_lr <= _MAX_RATE_RATIO:
        yield (
            f"train.lr={settings.lr:g} is {settings.lr / recommended_lr:.2g} times the usual value for"
            f" {settings.optimizer} with train.batch_size={settings.batch_size}; try train.lr={recommended_lr:.2g}"
        )
    counts = data.boxes_per_class()
    classes_without_boxes = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if classes_without_boxes:
        yield (
            f"{len(classes_without_boxes)} of {len(counts)} classes have no training boxes:"
            f" {join_some(classes_without_boxes)}; add images of these classes, or remove the classes from the"
            " annotations"
        )
    if isinstance(config.model, FCOSConfig):
        ranges = config.model.size_ranges
        num_uncovered = _count_uncovered(ranges, config.data, data)
        if num_uncovered:
            yield (
                f"{num_uncovered} of {len(data.boxes)} boxes have a size that no level covers; set model.size_ranges to"
                f" ranges without gaps, the last one up to null (now {[list(ends) for ends in ranges]})"
            )


def _count_uncovered(size_ranges: Sequence[tuple[float, float | None]], config: DataConfig, data: Annotations) -> int:
    """Return the number of non-crowd boxes that no level's size range covers at the largest training size."""
    short_side = config.largest_short_side
    sizes, size_index = np.unique(data.sizes, axis=0, return_inverse=True)
    size_index = size_index.reshape(-1)  # NumPy 2.0 returns a column
    resized = np.array([resize_size(height, width, short_side, config.max_side) for height, width in sizes.tolist()])
    scale = (resized[size_index] / data.sizes)[data.image_of]  # [B, 2]
    longer_sides = ((data.boxes[:, 2:] - data.boxes[:, :2]) * scale[:, ::-1]).max(axis=1, initial=0)
    # The largest distance from a location to a side is half the longer side at the centre, all of it at an edge.
    covered = [
        (longer_sides >= low) & (longer_sides / 2 <= (math.inf if high is None else high)) for low, high in size_ranges
    ]
    return int((~np.any(covered, axis=0) & ~data.crowd).sum())
