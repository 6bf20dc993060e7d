"""Warnings and errors of a training with remedies: unassigned boxes, non-finite losses or gradients, out of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..checkpoint import write
from ..config import FCOSConfig
from ..data.workers import WorkerError
from ..distributed import all_gather, rank, world_size
from ..errors import TrainingError
from ..evaluation.evaluate import detecting
from ..formatting import join_some
from ..structures import Batch, Objects
from .folder import LAST
from .logs import RunLog
from .optim import autocast
from .run import Run

BATCH_FOLDER = "nonfinite"
"""Subfolder of the run folder for batches with a non-finite loss or gradient."""


def report_unassigned(run: Run, log: RunLog) -> None:
    """Warn once per run about boxes that were assigned to no location, and suggest remedies."""
    state = run.state
    if state.reported:
        return
    state.reported = True
    unassigned = state.stats.get("unassigned", 0)
    transform = run.config.data.transforms
    check = f"check the boxes that data.transforms={transform} returns: XYXY in pixels of the returned image"
    if transform and not state.boxes and len(run.train_data.boxes):
        log.message(f"warning: none of the training images so far has a box; {check}")
    elif transform and unassigned > 0.9 * state.boxes:
        log.message(f"warning: {unassigned} of {state.boxes} boxes so far are not assigned to any location; {check}")
    elif unassigned and isinstance(run.config.model, FCOSConfig):  # the message names options of FCOS
        log.message(
            f"warning: {unassigned} of {state.boxes} boxes so far ({unassigned / state.boxes:.1%}) are"
            " not assigned to any location, usually because they are small or covered by other boxes; try larger images"
            " (data.short_side), a smaller stride (model.strides) or other model.size_ranges"
        )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn a CUDA out-of-memory error into an error that suggests remedies.

    Raises:
        TrainingError: the GPU is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"GPU out of memory ({str(error).splitlines()[0]}); try train.micro_batch=auto,"
            " train.precision=bfloat16, a smaller data.short_side, or, in an evaluation, a smaller eval.batch_size"
        ) from None


@contextmanager
def save_if_a_worker_is_lost(run: Run) -> Iterator[None]:
    """Save the run if a loader worker was killed. Several processes cannot: the others are in a training step.

    Raises:
        TrainingError: a loader worker was killed; the message has the command that resumes the run.
    """
    try:
        yield
    except WorkerError as error:
        if world_size() == 1:
            run.save_last()
        raise TrainingError(f"{error}; {run.resume_hint}") from None


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
    subject = "gradients are" if all(map(math.isfinite, losses.values())) else "loss is"
    values = ", ".join(f"{name}={value:.6g}" for name, value in {**losses, "gradient norm": norm}.items())
    save_errors = [problem for problem in all_gather(_save_batch(run, batch, iteration)) if problem]
    batch_note = f"could not be saved: {save_errors[0]}" if save_errors else f"is saved in {run.folder / BATCH_FOLDER}"
    assert batch.targets is not None
    height, width = batch.images.shape[-2:]
    normalizers = run.model.loss_normalizers(batch.targets, (height, width))  # a collective
    origins = [origin for part in all_gather(_find_origins(run, batch, normalizers)) for origin in part]
    names = [name for part in all_gather(_file_names(run, batch)) for name in part]
    settings, last = run.config.train, run.folder / LAST
    precision_hint = "train.precision=bfloat16 or float32, " if settings.precision == "float16" else ""
    return (
        f"iteration {iteration}: the {subject} not finite ({values}); images: {join_some(names)};"
        f" {join_some(origins, '; ') or 'no single image reproduces this'}; the batch {batch_note};"
        f" {f'{last} is from an earlier iteration' if last.is_file() else 'no checkpoint had been saved yet'}; try"
        f" {precision_hint}a lower train.lr (now {settings.lr:g}), a longer train.warmup_iterations, or"
        " train.clip_norm=10"
    )


def _save_batch(run: Run, batch: Batch, iteration: int) -> str:
    """Save the shard of this process as tensors and plain data for `torch.load`.

    Returns:
        The error message if the file cannot be written, else an empty string.
    """
    assert batch.targets is not None
    folder = run.folder / BATCH_FOLDER
    content = {
        "iteration": iteration,
        "files": _file_names(run, batch),
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


def _file_names(run: Run, batch: Batch) -> list[str]:
    return [run.train_data.file_name(i) for i in batch.indices.tolist()]


def _find_origins(run: Run, batch: Batch, normalizers: torch.Tensor | None) -> list[str]:
    """Return the images or boxes with non-finite outputs or losses; if there are none, the non-finite gradients."""
    assert batch.targets is not None
    origins: list[str] = []
    unit_normalizers = (
        None if normalizers is None else torch.ones_like(normalizers)
    )  # those of the batch may not be finite
    for i, file in enumerate(_file_names(run, batch)):
        image = batch.images[i : i + 1], batch.sizes[i : i + 1]
        with detecting(run.model), autocast(run.device, run.config.train.precision):
            if _is_finite(run.model(*image)):
                origins += [
                    f"{file}: {text}" for text in _describe_bad_boxes(run, image, batch.targets[i], unit_normalizers)
                ]
            else:
                origins.append(f"{file}: the network's outputs are not finite")
    if not origins:
        bad = [name for name, p in run.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        origins = [f"gradients of {join_some(bad)}"] if bad else []
    return origins


def _is_finite(outputs: Any) -> bool:
    """Return whether all tensors in the (nested) outputs of a detector are finite."""
    if isinstance(outputs, torch.Tensor):
        return bool(outputs.isfinite().all())
    return all(map(_is_finite, outputs))


def _describe_bad_boxes(
    run: Run, image: tuple[torch.Tensor, torch.Tensor], objects: Objects, normalizers: torch.Tensor | None
) -> Iterator[str]:
    """Yield a description of each box whose loss is not finite when it is the only box in the image.

    Args:
        run: run with the model.
        image: image [1, 3, H, W] and its size [1, 2].
        objects: ground truth of the image.
        normalizers: denominators of the losses, see `DetectionModel.forward`.
    """
    for index in range(len(objects)):
        box = objects[index : index + 1]
        terms = run.model(*image, [box], normalizers).terms
        bad = [name for name, term in terms.items() if not term.isfinite()]
        if bad:
            corners = ", ".join(f"{value:.6g}" for value in box.boxes.flatten().tolist())
            yield f"{' and '.join(bad)} of {run.train_data.class_names[int(box.labels)]} [{corners}]"
