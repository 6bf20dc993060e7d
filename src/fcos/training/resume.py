"""Resuming a run: the newest checkpoint that can be used, and its training state.

A checkpoint may be damaged, edited, or of an earlier version. Its training state is validated before anything uses it:
the optimiser's fused kernels do not check shapes.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ..checkpoint import Checkpoint, describe_shape_mismatches, generations
from ..checkpoint_checks import describe_tensor_problem, describe_weight_problems
from ..config import Config
from ..config.messages import describe_errors
from ..config.schema import MAX_BATCH_SIZE
from ..errors import WeightsError
from ..formatting import join_some
from ..interop.checkpoints import load_checkpoint
from .changed_options import describe_changed_options
from .folder import BEST, LAST
from .logs import StepResult, TrainingProgress

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class TrainState:
    """Counters and metrics of a run that a checkpoint stores for resuming.

    Attributes:
        iteration: number of finished training steps.
        images: number of images in these steps, whose batch sizes may differ.
        seconds: seconds since the start of the run, excluding the time between a stop and a resume.
        step_seconds: seconds spent in training steps.
        evaluations: number of evaluations during training.
        evaluated_at: iteration of the last evaluation; -1 if there was none.
        best: metrics of the best evaluation by `train.best_metric`; empty until an evaluation defines this metric.
        boxes: number of ground-truth boxes seen in training.
        stats: counts of these boxes by name, see `Losses.stats`.
        reported: True once unassigned boxes were reported to the user.
        skips: number of consecutive steps skipped so far because of a non-finite loss or gradient.
        stale: number of evaluations since the best one.
    """

    iteration: _Count = 0
    images: _Count = 0
    seconds: _Seconds = 0.0
    step_seconds: _Seconds = 0.0
    evaluations: _Count = 0
    evaluated_at: Annotated[int, Field(ge=-1, lt=2**63)] = -1
    best: dict[str, float] = field(default_factory=dict)
    boxes: _Count = 0
    stats: dict[str, _Count] = field(default_factory=dict)
    reported: bool = False
    skips: _Count = 0
    stale: _Count = 0


def _upgrade_state(value: Any) -> Any:
    """Convert the counters of version 0.1.0, and reject missing and unknown ones: pydantic would use the defaults."""
    if not isinstance(value, dict):
        return value
    state = {name: entry for name, entry in value.items() if name not in ("marks", "unassigned")}
    if "unassigned" in value:
        state["stats"] = {"unassigned": value["unassigned"]}
    names = {entry.name for entry in fields(TrainState)}
    if names != state.keys():
        raise ValueError(f"missing or unknown entries: {join_some(sorted(map(str, names ^ state.keys())))}")
    return state


def _upgrade_step(step: Any) -> Any:
    """Convert a step of version 0.1.0, which counted only the unassigned boxes."""
    match step:
        case (progress, (losses, grad_norm, boxes, int(unassigned), *rest), *timing):
            return (progress, (losses, grad_norm, boxes, {"unassigned": unassigned}, *rest), *timing)
    return step


def _check_tensor(tensor: Any) -> Any:
    problem = describe_tensor_problem(tensor)
    if problem:
        raise ValueError(problem)
    return tensor


def _check_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    problems = describe_weight_problems(weights)
    if problems:
        raise ValueError(join_some(problems))
    return weights


def _check_random_state(state: Tensor) -> Tensor:
    try:
        torch.Generator().set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"not the state of a random number generator: {error}") from None
    return state


def _check_cuda_random_state(state: Tensor) -> Tensor:
    if state.dtype != torch.uint8 or state.shape != (_CUDA_STATE_BYTES,):  # checkable without a GPU
        raise ValueError("not the state of a CUDA random number generator")
    return state


def _check_scaler(scaler: dict[str, float]) -> dict[str, float]:
    if scaler and (scaler.keys() != _SCALER_KEYS or not 0 < scaler["scale"] < math.inf):
        raise ValueError(f"not the state of a gradient scaler: {join_some(list(scaler))}")
    return scaler


_CUDA_STATE_BYTES = 16  # seed and offset of 8 bytes each
_SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
_SLOTS = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
"""Entries of the optimiser's state of a parameter."""
_Tensor = Annotated[Tensor, AfterValidator(_check_tensor)]
_Weights = Annotated[dict[str, Any], AfterValidator(_check_weights)]
_Metrics = dict[str, float]
_Step = tuple[TrainingProgress, StepResult, float, float, float]


class _Saved(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)


class OptimizerState(_Saved):
    """State of the optimiser, as in `torch.optim.Optimizer.state_dict`."""

    state: dict[int, dict[str, _Tensor | None]]
    param_groups: Annotated[list[dict[str, Any]], Field(min_length=1)]


class TrainingState(_Saved):
    """Entry `training` of a checkpoint, see `Run.save_last`.

    Attributes:
        state: counters and metrics of the run.
        optimizer: state of the optimiser; its numbers are positions in `learning`.
        learning: names of the trainable parameters.
        scaler: state of the gradient scaler; empty if it was not used.
        weights: weights of the model if those in the checkpoint are their moving average, otherwise None.
        updates: number of updates of the moving average.
        best: best weights that are not yet in weights/best.pt, with metrics, thresholds and iteration.
        steps: steps not yet summarised in a row of metrics.csv.
        rng: state of torch's random number generator.
        cuda_rng: the same of the GPU; None without one.
    """

    state: Annotated[TrainState, BeforeValidator(_upgrade_state)]
    optimizer: OptimizerState
    learning: list[str]
    scaler: Annotated[dict[str, int | float], AfterValidator(_check_scaler)] = {}
    weights: _Weights | None
    updates: _Count = 0
    best: tuple[_Weights, _Metrics, _Metrics, _Count] | None = None
    steps: list[Annotated[_Step, BeforeValidator(_upgrade_step)]] = []
    rng: Annotated[_Tensor, AfterValidator(_check_random_state)]
    cuda_rng: Annotated[_Tensor, AfterValidator(_check_cuda_random_state)] | None = None

    @model_validator(mode="after")
    def _check_order(self) -> TrainingState:
        if self.state.evaluated_at > self.state.iteration or len(self.steps) > self.state.iteration:
            raise ValueError("more evaluations or steps than iterations")
        if self.state.images > self.state.iteration * MAX_BATCH_SIZE:
            raise ValueError("more images than the iterations can have")
        return self


def read_training_state(checkpoint: Checkpoint, *, where: str) -> TrainingState:
    """Return the training state of a checkpoint, converted to the current format and validated.

    Args:
        checkpoint: checkpoint of this project, with valid weights.
        where: path of the checkpoint, for messages.

    Raises:
        WeightsError: the training state is missing, is damaged, or does not belong to the weights.
    """
    if checkpoint.project != "fcos" or checkpoint.training is None:
        raise WeightsError(f"{where}: contains weights only, without the training state that resuming needs")
    training = dict(checkpoint.training)
    if isinstance(training.get("state"), dict):
        training["state"] = {"images": _count_images(checkpoint), **training["state"]}
    try:
        saved = TrainingState.model_validate(training)
    except ValidationError as error:
        problems = describe_errors(error)
    else:
        problems = _describe_contradictions(saved, checkpoint)
    if problems:
        raise WeightsError(
            f"{where}: damaged checkpoint: invalid training state:"
            f" {join_some([text[:200] for text in problems], '; ')}; copy it again or use an earlier one"
        )
    return saved


def _count_images(checkpoint: Checkpoint) -> int:
    """Return the number of images of a run of an earlier version, which did not count them."""
    batch_size = checkpoint.config.get("train", {}).get("batch_size")
    return checkpoint.iteration * batch_size if isinstance(batch_size, int) else 0


def _describe_contradictions(saved: TrainingState, checkpoint: Checkpoint) -> list[str]:
    """Describe the entries of a training state that do not belong to the weights of the checkpoint."""
    problems = []
    if saved.state.iteration != checkpoint.iteration:
        problems.append(f"state.iteration: {saved.state.iteration}, but the file is of {checkpoint.iteration}")
    for name, weights in (("weights", saved.weights), ("best", saved.best and saved.best[0])):
        if weights is not None and weights.keys() != checkpoint.model.keys():
            problems.append(f"{name}: other tensors than in the model")
        problems += [f"{name}: {text}" for text in describe_shape_mismatches(checkpoint.model, weights or {})]
    kind = "adamw" if "betas" in saved.optimizer.param_groups[0] else "sgd"
    for number, state in saved.optimizer.state.items():
        name = saved.learning[number] if 0 <= number < len(saved.learning) else ""
        if name not in checkpoint.model or (state and state.keys() != _SLOTS[kind]):
            problems.append(f"optimizer.state.{number}: of no parameter, or of another optimiser than {kind}")
            continue
        for slot, tensor in state.items():
            parameter = checkpoint.model[name]
            shape = () if slot == "step" else parameter.shape
            dtype = torch.float32 if slot == "step" else parameter.dtype
            is_valid = tensor is None or (tensor.shape == shape and tensor.dtype == dtype and tensor.isfinite().all())
            if not is_valid:
                problems.append(f"optimizer.state.{number}.{slot}: expected finite {dtype} {list(shape)} as {name}")
    return problems


class ResumePoint(NamedTuple):
    """Checkpoint to resume from, with a note for the user.

    Attributes:
        checkpoint: the checkpoint; None if nothing was saved yet.
        note: message of one or more lines; empty if there is nothing to report.
        path: path or address of the checkpoint, for messages; empty without a checkpoint.
    """

    checkpoint: Checkpoint | None
    note: str
    path: str = ""


def load_last(folder: Path) -> ResumePoint:
    """Load the newest checkpoint that can be resumed from, and rename it to weights/last.pt.

    Newer ones, which are damaged or contain only weights, are renamed from last*.pt to damaged*.pt. Temporary files of
    killed processes are removed.

    Raises:
        WeightsError: none of the existing checkpoints can be used.
    """
    last = folder / LAST
    for temporary in last.parent.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)
    problems = {last: f"{last}: this is a folder; expected a checkpoint"} if last.is_dir() else {}
    weights = [folder / BEST] if (folder / BEST).is_file() else []
    for path in generations(last):
        try:
            checkpoint = load_checkpoint(path)
            weights.append(path)
            read_training_state(checkpoint, where=str(path))
        except WeightsError as error:
            problems[path] = str(error)
            continue
        if path == last:
            return ResumePoint(checkpoint, "", str(path))
        warnings = [f"warning: {problem}" for problem in problems.values()] or [f"warning: {last} is missing"]
        note = f"  resuming from the previous checkpoint, {path}"
        for unusable in problems:
            new_name = _free_name(unusable.with_name(unusable.name.replace("last", "damaged", 1)))
            unusable.replace(new_name)
            note += f"; renamed {unusable} to {new_name}"
        path.replace(last)
        return ResumePoint(checkpoint, "\n".join([*warnings, note]), str(last))
    if problems:
        remedy = f" with train.weights={weights[0]}" if weights else ""
        lines = "\n  ".join(problems.values())
        raise WeightsError(
            f"train.resume: no checkpoint in {folder} can be resumed from:\n  {lines}\nstart a new run in another"
            f" folder{remedy}"
        )
    last.parent.mkdir(exist_ok=True)
    return ResumePoint(None, f"nothing was saved in {folder} yet; starting from the beginning")


def _free_name(path: Path) -> Path:
    """Return a path, or if it exists, the first free one of NAME.2.pt, NAME.3.pt and so on."""
    numbered = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(2))
    return path if not path.exists() else next(name for name in numbered if not name.exists())


def load_run(folder: Path, config: Config) -> ResumePoint:
    """Load the checkpoint to resume from, with a note that also lists the options that differ from those of the run.

    Raises:
        ConfigError: the options change the meaning of the weights.
        WeightsError: none of the existing checkpoints can be used.
    """
    point = load_last(folder)
    if point.checkpoint is None:
        return point
    differences = describe_changed_options(point.checkpoint.config, config, where=point.path)
    return point._replace(note="\n".join(filter(None, (point.note, differences))))
