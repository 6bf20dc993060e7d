"""Warnings and errors of a training with remedies: unassigned boxes, non-finite losses or gradients, out of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import load_weights, read, write
from ..config import Config, FCOSConfig
from ..data.workers import WorkerError
from ..distributed import all_gather, rank, world_size
from ..errors import TrainingError, WeightsError
from ..evaluation.evaluate import detecting
from ..formatting import join_some
from ..masks import Masks
from ..models import DetectionModel, build_model
from ..precision import autocast
from ..structures import Batch, Losses, Objects
from .folder import LAST
from .logs import RunLog
from .optim import freeze_parameters
from .run import Run

BATCH_FOLDER = "nonfinite"
"""Subfolder of the run folder for steps with a non-finite loss or gradient, see `replay`."""
MAX_SAVED = 10
"""Maximum number of such steps that are saved, because each has the size of a batch and the weights."""
_KINDS_OF_STEP: dict[str, Any] = {
    "images": torch.Tensor,
    "sizes": torch.Tensor,
    "objects": list,
    "normalizers": torch.Tensor | None,
    "class_names": list,
    "model": dict,
}
"""Types of the values in a file of such a step, by key."""


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
    assert batch.targets is not None
    height, width = batch.images.shape[-2:]
    normalizers = run.model.loss_normalizers(batch.targets, (height, width))  # a collective
    save_errors = [problem for problem in all_gather(_save_step(run, batch, normalizers)) if problem]
    batch_note = f"is not saved: {save_errors[0]}" if save_errors else f"is saved in {run.folder / BATCH_FOLDER}"
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


def _save_step(run: Run, batch: Batch, normalizers: torch.Tensor | None) -> str:
    """Save the step of this process as tensors and plain data, from which `replay` repeats it.

    Returns:
        The reason if the step is not saved, else an empty string.
    """
    assert batch.targets is not None
    folder, iteration = run.folder / BATCH_FOLDER, run.state.iteration + 1
    content = {
        "iteration": iteration,
        "files": _file_names(run, batch),
        "images": batch.images.cpu(),
        "sizes": batch.sizes.cpu(),
        "objects": [_to_plain_data(objects.to("cpu")) for objects in batch.targets],
        "normalizers": None if normalizers is None else normalizers.cpu(),
        "class_names": list(run.train_data.class_names),
        "model": {name: tensor.cpu() for name, tensor in run.model.state_dict().items()},
    }
    try:
        folder.mkdir(exist_ok=True)
        if len(list(folder.glob(f"*_process_{rank()}.pt"))) >= MAX_SAVED:
            return f"{folder} has {MAX_SAVED} earlier ones"
        write(folder / f"iteration_{iteration}_process_{rank()}.pt", content)
    except OSError as error:
        return str(error)
    return ""


def _to_plain_data(objects: Objects) -> dict[str, Any]:
    masks = objects.masks
    arrays = [] if masks is None else [masks.points, masks.ring_offsets, masks.object_offsets]
    return {**vars(objects), "masks": list(map(torch.tensor, arrays))}


def _from_plain_data(columns: dict[str, Any]) -> Objects:
    arrays = columns["masks"]
    return Objects(**{**columns, "masks": Masks(*(array.numpy() for array in arrays)) if arrays else None})


def _read_step(path: Path) -> dict[str, Any]:
    """Read a file of `_save_step`, with the objects of every image as `Objects`.

    Raises:
        WeightsError: the file is missing, damaged or no saved step.
    """
    saved = read(path)
    kinds = _KINDS_OF_STEP.items()
    if isinstance(saved, dict) and all(key in saved and isinstance(saved[key], kind) for key, kind in kinds):
        is_complete = saved["images"].ndim == 4 and len(saved["images"]) == len(saved["sizes"]) == len(saved["objects"])
        if is_complete and all(isinstance(tensor, torch.Tensor) for tensor in saved["model"].values()):
            with suppress(AttributeError, KeyError, TypeError, ValueError):  # not the columns of `Objects`
                return {**saved, "objects": [_from_plain_data(columns) for columns in saved["objects"]]}
    raise WeightsError(f"{path}: this is no saved step; expected a file in {BATCH_FOLDER} of a run folder")


def replay(path: str | Path, config: Config, *, device: torch.device | str = "cpu") -> tuple[DetectionModel, Losses]:
    """Repeat the forward and backward pass of a step with a non-finite loss or gradient, as one process with one batch.

    Args:
        path: file in `RUN/nonfinite`, written by one process.
        config: config of the run, such as `load_config("RUN/config.yaml")`.
        device: where to compute.

    Returns:
        The model before the step, in training mode and with the gradients of the sum of the losses, and the losses.

    Raises:
        WeightsError: the file is missing, damaged or no saved step, or its weights do not fit the config.
    """
    saved = _read_step(Path(path))
    model = build_model(config.model, num_classes=len(saved["class_names"]), pretrained=False)
    load_weights(model, saved["model"], where=str(path))
    freeze_parameters(model, config.train.freeze)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    targets = [objects.to(device) for objects in saved["objects"]]
    normalizers = None if saved["normalizers"] is None else saved["normalizers"].to(device)
    with autocast(model.device, config.train.precision):
        losses: Losses = model(saved["images"].to(device), saved["sizes"].to(device), targets, normalizers)
    torch.stack(list(losses.terms.values())).sum().backward()
    return model, losses


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
                causes = _describe_bad_losses(run, image, batch.targets[i], unit_normalizers)
            else:
                causes = ["the network's outputs are not finite"]
        origins += [f"{file}: {cause}" for cause in causes]
    if not origins:
        bad = [name for name, p in run.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        origins = [f"gradients of {join_some(bad)}"] if bad else []
    return origins


def _is_finite(outputs: Any) -> bool:
    """Return whether all tensors in the (nested) outputs of a detector are finite."""
    if isinstance(outputs, torch.Tensor):
        return bool(outputs.isfinite().all())
    return all(map(_is_finite, outputs))


def _describe_bad_losses(
    run: Run, image: tuple[torch.Tensor, torch.Tensor], objects: Objects, normalizers: torch.Tensor | None
) -> list[str]:
    """Describe each box whose loss is not finite when it is the only box in the image, or else the loss of the image.

    Args:
        run: run with the model.
        image: image [1, 3, H, W] and its size [1, 2].
        objects: ground truth of the image.
        normalizers: denominators of the losses, see `DetectionModel.forward`.
    """

    def bad_terms(objects: Objects) -> str:
        terms = run.model(*image, [objects], normalizers).terms
        return " and ".join(name for name, term in terms.items() if not term.isfinite())

    bad = bad_terms(objects)
    if not bad:
        return []
    causes: list[str] = []
    for index in range(len(objects)):
        box = objects[index : index + 1]
        if bad_of_box := bad_terms(box):
            corners = ", ".join(f"{value:.6g}" for value in box.boxes.flatten().tolist())
            causes.append(f"{bad_of_box} of {run.train_data.class_names[int(box.labels)]} [{corners}]")
    return causes or [f"{bad} is not finite, but not because of a single box"]
