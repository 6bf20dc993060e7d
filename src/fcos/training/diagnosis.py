"""Warnings and errors with remedies: likely mistakes before training, non-finite losses or gradients, out of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoint import write
from ..config import Config, DataConfig, FCOSConfig
from ..data import resize_size
from ..distributed import all_gather, rank
from ..errors import TrainingError
from ..evaluation.evaluate import detecting
from ..formatting import some
from ..structures import Batch, Objects
from .folder import LAST
from .optim import autocast
from .run import Run

if TYPE_CHECKING:
    from ..data.dataset import Annotations

REFERENCE_RATES = {"sgd": (0.01, 16), "adamw": (1e-3, 8)}
"""Reference (learning rate, batch size) of the linear scaling rule per optimiser: SGD as in the FCOS paper, AdamW as in
the small recipe."""
FOLDER = "nonfinite"
"""Subfolder of the run folder for batches with a non-finite loss or gradient."""
_FAR = 4.0


def linear_rule(config: Config) -> float:
    """Return the learning rate by the linear scaling rule, proportional to the batch size.

    Source: Goyal et al. 2017 (arXiv:1706.02677).
    """
    rate, images = REFERENCE_RATES[config.train.optimizer]
    return rate * config.train.batch_size / images


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
            "the backbone has random weights and frozen batch norm, which then normalises nothing and learns"
            " badly; use model.backbone.weights=imagenet, train.weights=FILE, or another model.backbone.norm"
        )
    elif fresh_backbone and backbone.frozen_stages:
        yield (
            f"the backbone has random weights and {backbone.frozen_stages} stages that do not learn;"
            " use model.backbone.frozen_stages=0, or model.backbone.weights=imagenet"
        )
    elif fresh_backbone and any(pattern.startswith(("backbone", "*")) for pattern in settings.freeze):
        yield (
            f"the backbone has random weights, and train.freeze={settings.freeze} keeps some of them;"
            " leave the option out, or use model.backbone.weights=imagenet"
        )
    rule = linear_rule(config)
    if not 1 / _FAR <= settings.lr / rule <= _FAR:
        yield (
            f"train.lr={settings.lr:g} is {settings.lr / rule:.2g} times what is usual for {settings.optimizer} with"
            f" {settings.batch_size} images a step; try train.lr={rule:.2g}"
        )
    counts = data.boxes_per_class()
    without = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if without:
        yield (
            f"{len(without)} of {len(counts)} classes have no box to learn from: {some(without)};"
            " add images of them, or leave them out of the annotations"
        )
    if isinstance(config.model, FCOSConfig):
        ranges = config.model.size_ranges
        uncovered = _uncovered(ranges, config.data, data)
        if uncovered:
            yield (
                f"{uncovered} of {len(data.boxes)} boxes are of a size that no level covers; give model.size_ranges"
                f" without gaps that ends with null, now {[list(ends) for ends in ranges]}"
            )


def _uncovered(size_ranges: Sequence[tuple[float, float | None]], config: DataConfig, data: Annotations) -> int:
    """Return the number of non-crowd boxes that no level's size range covers at the largest training size."""
    largest = config.largest_short_side
    sizes, which = np.unique(data.sizes, axis=0, return_inverse=True)
    resized = np.array([resize_size(height, width, largest, config.max_side) for height, width in sizes.tolist()])
    scale = (resized[which] / data.sizes)[data.image_of]  # [B, 2]
    longest = ((data.boxes[:, 2:] - data.boxes[:, :2]) * scale[:, ::-1]).max(axis=1, initial=0)
    # The largest distance from a location to a side is half the longer side at the centre, all of it at an edge.
    covered = [(longest >= low) & (longest / 2 <= (math.inf if high is None else high)) for low, high in size_ranges]
    return int((~np.any(covered, axis=0) & ~data.crowd).sum())


@contextmanager
def full_memory_is_told() -> Iterator[None]:
    """Turn a CUDA out-of-memory error into an error that suggests remedies.

    Raises:
        TrainingError: the GPU is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of the GPU is full ({str(error).splitlines()[0]}); try train.micro_batch=auto,"
            " train.precision=bfloat16, a smaller data.short_side, or, in an evaluation, a smaller eval.batch_size"
        ) from None


def explain_non_finite(run: Run, batch: Batch, losses: dict[str, float], norm: float) -> str:
    """Return a message on which number is not finite, its origin and remedies; save the batch for inspection.

    Every process must call this function.

    Args:
        run: the run, in the state before the step.
        batch: shard of this process, on the device of the run.
        losses: loss terms by name, averaged over all processes.
        norm: gradient norm.
    """
    iteration = run.state.iteration + 1
    what = "gradients are" if all(map(math.isfinite, losses.values())) else "loss is"
    numbers = ", ".join(f"{name}={value:.6g}" for name, value in {**losses, "norm of the gradients": norm}.items())
    unkept = [problem for problem in all_gather(_save_batch(run, batch, iteration)) if problem]
    batch_is = f"could not be kept: {unkept[0]}" if unkept else f"is kept in {run.folder / FOLDER}"
    assert batch.targets is not None
    height, width = batch.images.shape[-2:]
    normalizers = run.model.loss_normalizers(batch.targets, (height, width))  # a collective
    origins = [origin for part in all_gather(_origins(run, batch, normalizers)) for origin in part]
    names = [name for part in all_gather(_files(run, batch)) for name in part]
    settings, kept = run.config.train, run.folder / LAST
    other = "train.precision=bfloat16 or float32, " if settings.precision == "float16" else ""
    return (
        f"iteration {iteration}: the {what} not finite ({numbers}); images: {some(names)};"
        f" {some(origins, '; ') or 'no image gives that alone'}; the batch {batch_is};"
        f" {f'{kept} is from before' if kept.is_file() else 'nothing had been saved yet'};"
        f" try {other}a lower train.lr (now {settings.lr:g}), a longer train.warmup_iterations, or train.clip_norm=10"
    )


def _save_batch(run: Run, batch: Batch, iteration: int) -> str:
    """Save the shard of this process as tensors and plain data for `torch.load`.

    Returns:
        The error message if the file cannot be written, else an empty string.
    """
    assert batch.targets is not None
    folder = run.folder / FOLDER
    content = {
        "iteration": iteration,
        "files": _files(run, batch),
        "images": batch.images.cpu(),
        "sizes": batch.sizes.cpu(),
        "objects": [(o.boxes.cpu(), o.labels.cpu(), o.is_crowd.cpu()) for o in batch.targets],
        "class_names": list(run.train_data.class_names),
    }
    try:
        folder.mkdir(exist_ok=True)
        write(folder / f"iteration_{iteration}_process_{rank()}.pt", content)
    except OSError as error:
        return str(error)
    return ""


def _files(run: Run, batch: Batch) -> list[str]:
    return [run.train_data.file_name(i) for i in batch.indices.tolist()]


def _origins(run: Run, batch: Batch, normalizers: torch.Tensor | None) -> list[str]:
    """Return the images or boxes with non-finite outputs or losses; if there are none, the non-finite gradients."""
    assert batch.targets is not None
    found: list[str] = []
    ones = None if normalizers is None else torch.ones_like(normalizers)  # those of the batch may not be finite
    for i, file in enumerate(_files(run, batch)):
        image = batch.images[i : i + 1], batch.sizes[i : i + 1]
        with detecting(run.model), autocast(run.device, run.config.train.precision):
            if _is_finite(run.model(*image)):
                found += [f"{file}: {text}" for text in _bad_boxes(run, image, batch.targets[i], ones)]
            else:
                found.append(f"{file}: the network's outputs are not finite")
    if not found:
        bad = [name for name, p in run.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        found = [f"gradients of {some(bad)}"] if bad else []
    return found


def _is_finite(outputs: Any) -> bool:
    """Return whether all tensors in the (nested) outputs of a detector are finite."""
    if isinstance(outputs, torch.Tensor):
        return bool(outputs.isfinite().all())
    return all(map(_is_finite, outputs))


def _bad_boxes(
    run: Run, image: tuple[torch.Tensor, torch.Tensor], objects: Objects, normalizers: torch.Tensor | None
) -> Iterator[str]:
    """Yield a description of each box whose loss is not finite when it is the only box in the image.

    Args:
        run: run with the model.
        image: image [1, 3, H, W] and its size [1, 2].
        objects: ground truth of the image.
        normalizers: denominators of the losses, see `DetectionModel.forward`.
    """
    for number in range(len(objects)):
        alone = objects[number : number + 1]
        terms = run.model(*image, [alone], normalizers).terms
        bad = [name for name, term in terms.items() if not term.isfinite()]
        if bad:
            corners = ", ".join(f"{value:.6g}" for value in alone.boxes.flatten().tolist())
            yield f"{' and '.join(bad)} of {run.train_data.class_names[int(alone.labels)]} [{corners}]"
