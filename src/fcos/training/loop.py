"""The training loop, from a config to a run folder with weights. Start reading at `train`."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..allocator import keep_freed_memory
from ..checkpoint import Checkpoint
from ..config import Config
from ..config.backbones import is_own
from ..config.text import suggest
from ..data import build_train_loader, load_annotations
from ..data.dataset import Annotations
from ..data.loader import try_user_transform
from ..distributed import broadcast, on_all_ranks, on_rank_zero, rank, resolve_device, world_size
from ..errors import ConfigError, DataError
from ..evaluation.evaluate import Evaluation, check_keypoints, evaluate, metric_names, warn_of_crowded_images
from ..formatting import plural
from ..interop.checkpoints import load_checkpoint
from ..models import DetectionModel, build_model
from ..models.backbones import license_warning
from ..models.layers import with_gpu_batch_norm
from ..structures import Batch
from .budget import IterationLength, Length, TimeLength
from .diagnosis import explain_out_of_memory, report_unassigned, save_if_a_worker_is_lost
from .elastic import explain_lost_processes, join_processes, remember
from .folder import BEST, check_apart_from_data, find_folder, lock_folder, new_folder
from .loggers import check_loggers
from .logs import RunLog, Step, TrainingProgress
from .messages import describe_finished_run, describe_start, warn_about_warmup
from .optim import freeze_parameters, learning_rate_factor, parameter_settings, set_learning_rate
from .original_run import find_resume_point, restore
from .run import Run, StopRequest
from .start import start_from
from .step import count_micro_batches, require_compiler, train_step, wrap_model
from .validation_pictures import save_pictures

MEASURE_AT = 0.25
"""Fraction of a wall-clock budget after which the end of the run (evaluation and saving) is timed. By then the model
detects enough objects for a typical evaluation time."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        run: run folder, with weights/best.pt.
        metrics: validation metrics of weights/best.pt by name, see `Evaluation`; empty without a val split, or if
            `train.best_metric` is undefined on it.
        train_data: training annotations; None if other processes trained (`train.devices`), or if a finished run was
            resumed, whose data may be other than that given now.
        val_data: validation annotations; None without a val split, or if `train_data` is None.
    """

    run: Path
    metrics: dict[str, float]
    train_data: Annotations | None = field(default=None, repr=False)
    val_data: Annotations | None = field(default=None, repr=False)


@explain_out_of_memory()
@explain_lost_processes()
def train(config: Config, *, name: str = "fcos", clock: Callable[[], float] = time.monotonic) -> TrainResult:
    """Train a detector, evaluate it, and write weights, metrics and logs to the run folder.

    Args:
        config: config of the whole run.
        name: name of the run; its folder is runs/NAME unless `config.output_dir` is set.
        clock: function that returns the time in seconds; the budget `train.max_minutes` starts when this function is
            called.

    Raises:
        ConfigError: options contradict each other or the data, or the folder already holds a run.
        DataError: the annotations cannot be used, see `load_annotations`.
        WeightsError: the initial weights cannot be read or do not fit the model.
        TrainingError: the loss or its gradients are not finite, or another process is gone; weights/last.pt is then
            from an earlier iteration. Also raised if the GPU is out of memory, or if the final files cannot be saved.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped one of the processes; weights/last.pt holds the last step.
    """
    start_time = clock()
    settings = config.train
    device = resolve_device(config.device)
    keep_freed_memory(device)
    join_processes(device)
    with ExitStack() as stack:
        run, micro_batches, origin = _set_up(config, name, device, stack, elapsed=lambda: clock() - start_time)
        ddp_model, state, length = wrap_model(run), run.state, _build_length(run)
        log = RunLog(
            run.folder, run.config, iteration=state.iteration, evaluations=state.evaluations, steps=run.unlogged
        )
        stack.enter_context(log)
        stop_request = stack.enter_context(StopRequest(run, log))
        stack.enter_context(save_if_a_worker_is_lost(run))
        total = _total(length, state.iteration)
        # After all checks, so that a failed start does not block the next one.
        keeps_config = on_rank_zero(lambda: _save_config(run, total))
        log.message(describe_start(run, origin, micro_batches=micro_batches))
        if isinstance(length, IterationLength):
            warn_about_warmup(run, length.iterations, log)
        if total <= state.iteration:
            log.message(describe_finished_run(run))
        _evaluate_if_overdue(run, log, stop_request, total=total)
        batches = _batches(run)
        while state.iteration < (total := _total(length, state.iteration)) and not _out_of_patience(run):
            step_start = clock()
            batch = next(batches)
            waited = clock() - step_start
            factor = learning_rate_factor(state.iteration, total, settings)
            set_learning_rate(run.optimizer, factor)
            result = train_step(ddp_model, batch, run, stop_request, micro_batches=micro_batches)
            step = Step(result, lr=settings.lr * factor, seconds=clock() - step_start, waited=waited)
            length.advance(step.seconds)
            run.count(step)
            progress = run.progress(total)
            log.step(progress, step)

            if progress.epoch >= 1:
                report_unassigned(run, log)
            if state.iteration % settings.checkpoint_every == 0:
                run.save_last()
            if result.stop:
                stop_request.stop()
            if _evaluation_due(run, progress):
                _evaluate(run, log, stop_request, progress)
            if isinstance(length, TimeLength) and length.measured_end is None and progress.fraction >= MEASURE_AT:
                length.measured_end = _measure_end(run, 0.02 * length.seconds, clock, stop_request)

        _finish(run, log, stop_request)
    splits = (None, None) if keeps_config else (run.train_data, run.val_data)
    return TrainResult(run.folder, state.best, *splits)


def _set_up(
    config: Config, name: str, device: torch.device, stack: ExitStack, *, elapsed: Callable[[], float]
) -> tuple[Run, int, str]:
    """Set up a new or resumed run, and lock its folder until `stack` is closed.

    Returns:
        The run, the number of micro-batches per batch, and a text for the user on the origin of the weights.
    """
    launch_key = f"fcos/{next(_train_calls)}"
    folder = on_rank_zero(lambda: find_folder(config, name, launch_key=launch_key))
    train_data, val_data = on_all_ranks(lambda: _load_data(config))
    if not folder:
        on_all_ranks(lambda: check_apart_from_data(config, (train_data, val_data)))
    if folder:
        on_rank_zero(partial(stack.enter_context, lock_folder(folder, is_new=False)))
    resumed, note, resume_path = on_rank_zero(partial(find_resume_point, config, folder))
    torch.manual_seed(config.train.seed)
    model, origin, licence = on_all_ranks(lambda: _build(config, train_data, resumed))
    if device.type == "cuda":
        with_gpu_batch_norm(model)
    # Channels-last training is about 10% faster on the CPU.
    model = model.to(device).to(memory_format=torch.channels_last).train()
    on_all_ranks(lambda: _check_options(config, model, train_data))
    most_boxes = int(np.diff(train_data.offsets).max(initial=0))
    # Counting is a collective, so all processes must have passed the checks.
    micro_batches = on_all_ranks(lambda: count_micro_batches(model, config, most_boxes=most_boxes))
    if not folder:
        folder = on_rank_zero(lambda: new_folder(config, name))
        on_rank_zero(partial(stack.enter_context, lock_folder(folder, is_new=True)))
    run = Run(folder, config, model=model, train_data=train_data, val_data=val_data, elapsed=elapsed, licence=licence)
    if resumed:
        on_all_ranks(partial(restore, run, resumed, where=resume_path))
        if resumed.project != "fcos":
            run.save_last()  # from now on, the run resumes from its own folder
    if rank() == 0:
        remember(launch_key, str(folder))
    return run, micro_batches, f"{note}\n{origin}" if note else origin


def _check_options(config: Config, model: DetectionModel, train_data: Annotations) -> None:
    """Raise an error for options that cannot be trained with, before the run folder is created."""
    parameter_settings(model, config.train)
    check_loggers(config)
    metric, metrics = config.train.best_metric, metric_names(config)
    if metric not in metrics:
        hint = suggest(metric, metrics)
        raise ConfigError(f"train.best_metric={metric}: no such metric{hint}; known: {', '.join(metrics)}")
    if config.train.compile:
        require_compiler(model.device)
    try_user_transform(config, train_data)


_train_calls = itertools.count()
"""Counter of the `train` calls of this process. It identifies a run across restarts by the elastic launcher."""


def _load_data(config: Config) -> tuple[Annotations, Annotations | None]:
    one_class = config.model.is_class_agnostic
    train_data = load_annotations(config.data, "train", one_class=one_class)
    if train_data is None:
        raise DataError(
            f"data: no train split in {config.data.root}; expected data=DIR, or data.train.annotations=FILE"
        )
    num_classes, num_data_classes = config.model.num_classes, len(train_data.class_names)
    if num_classes not in (None, num_data_classes):
        raise ConfigError(
            f"model.num_classes: {num_classes}, but the data has {num_data_classes} classes; remove the option"
        )
    names, ids = train_data.class_names, train_data.category_ids
    val_data = load_annotations(config.data, "val", class_names=names, category_ids=ids, one_class=one_class)
    warn_of_crowded_images(val_data, config)
    for data in filter(None, (train_data, val_data)):
        check_keypoints(config, data)
    return train_data, val_data


def _build(config: Config, data: Annotations, resumed: Checkpoint | None) -> tuple[DetectionModel, str, str]:
    """Build the model; return it with a line on the origin of its weights, and their licence."""
    weights = None if resumed else config.train.weights
    fresh = resumed is None and weights is None
    model = build_model(config.model, num_classes=len(data.class_names), pretrained=fresh)
    freeze_parameters(model, config.train.freeze)
    if resumed:
        return model, f"weights: iteration {resumed.iteration} of this run", resumed.licence
    if weights:
        checkpoint = load_checkpoint(weights)
        return model, start_from(model, checkpoint, config.model, data.class_names, where=weights), checkpoint.licence
    backbone = config.model.backbone
    initialisation = "initialised by its function" if is_own(backbone.name) else "random"
    licence = license_warning(backbone.name, backbone.weights)
    return model, f"weights: backbone {backbone.weights or initialisation}, the rest random", licence


def _build_length(run: Run) -> Length:
    settings = run.config.train
    if settings.max_minutes is not None:
        return TimeLength(
            settings.max_minutes * 60,
            elapsed=run.elapsed,
            evaluation_steps=len(run.val_data or ()) / settings.batch_size,
            steps=run.state.iteration,
            step_seconds=run.state.step_seconds,
        )
    if settings.epochs is not None:
        images = settings.epochs * len(run.train_data)
        earlier = run.state.images - run.state.iteration * settings.batch_size  # not 0 if the batch size has changed
        return IterationLength(max(1, math.ceil((images - earlier) / settings.batch_size)))
    assert settings.iterations is not None
    return IterationLength(settings.iterations)


def _batches(run: Run) -> Iterator[Batch]:
    """Return an iterator over this process's shards of the batches, starting after the images that the run has seen."""
    first_batch = run.state.images // run.config.train.batch_size
    loader = build_train_loader(
        run.config, run.train_data, start_iteration=first_batch, rank=rank(), world_size=world_size()
    )
    return iter(loader)


def _total(length: Length, iteration: int) -> float:
    """Return the total iterations of the run; under a time budget those of rank 0, because clocks differ."""
    total = length.total(iteration)
    return broadcast(total) if isinstance(length, TimeLength) else total


def _save_config(run: Run, total: float) -> bool:
    """Write config.yaml, except for a finished run, whose current options have no effect; return whether it is kept."""
    is_trained = run.state.iteration >= total or _out_of_patience(run)
    is_evaluated = run.val_data is None or run.state.evaluated_at == run.state.iteration
    is_kept = is_trained and is_evaluated and run.keep_config()
    if not is_kept:
        run.save_config()
    return is_kept


def _evaluation_due(run: Run, progress: TrainingProgress) -> bool:
    """Return whether a multiple of `eval_every` was passed since the last evaluation; `_finish` handles the end."""
    return run.val_data is not None and progress.fraction < 1 and _count_marks(run, progress) > run.marks


def _count_marks(run: Run, progress: TrainingProgress) -> int:
    """Return the number of multiples of `eval_every` that the run has passed."""
    every = run.config.train.eval_every
    if every is None:
        return 0
    return math.floor((progress.iteration if every >= 1 else progress.fraction) / every + 1e-9)


def _evaluate_if_overdue(run: Run, log: RunLog, stop_request: StopRequest, *, total: float) -> None:
    """Run the evaluation that was still due when the run stopped."""
    last_evaluated = max(run.state.evaluated_at, 0)
    progress = run.progress(total)
    # The length of the run and `eval_every` may have changed since the last evaluation.
    run.marks = _count_marks(run, progress._replace(iteration=last_evaluated, fraction=last_evaluated / total))
    if _evaluation_due(run, progress):
        _evaluate(run, log, stop_request, progress)


def _out_of_patience(run: Run) -> bool:
    """Return whether early stopping applies: the last `train.patience` evaluations brought no new best."""
    patience = run.config.train.patience
    return patience is not None and run.state.stale >= patience


def _evaluate(run: Run, log: RunLog, stop_request: StopRequest, progress: TrainingProgress) -> Evaluation:
    """Evaluate on the validation set.

    Writes weights/last.pt before the evaluation and again with the metrics, and weights/best.pt if they are the best.
    """

    def show(done: int, total: int) -> None:
        log.evaluating(done, total)
        if stop_request.requested:
            raise KeyboardInterrupt  # the checkpoint was saved just before the evaluation

    assert run.val_data is not None
    run.save_last()
    evaluation = evaluate(run.detector, run.val_data, run.config, device=run.device, progress=show)
    run.state.evaluations += 1
    run.state.evaluated_at, run.marks = run.state.iteration, _count_marks(run, progress)
    run.save_if_best(evaluation)
    log.evaluation(progress, evaluation.metrics)
    metric = run.config.train.best_metric
    if run.state.evaluations == 1 and math.isnan(evaluation.metrics[metric]):
        log.message(
            f"warning: train.best_metric={metric} is undefined because val has no objects that this metric counts;"
            " best.pt will contain the last weights"
        )
    run.save_last(evaluation)
    if rank() == 0:
        try:
            save_pictures(
                run.folder / "pictures",
                run.val_data,
                evaluation.detections,
                evaluation.thresholds,
                default_threshold=run.model.default_threshold,
            )
        except OSError as error:  # a full disk must not end the run
            log.message(f"warning: could not draw the detections: {error}")
    return evaluation


def _finish(run: Run, log: RunLog, stop_request: StopRequest) -> None:
    """Finish the run after its last iteration: evaluate, save, and print a summary."""
    log.sum_up()
    report_unassigned(run, log)
    evaluation = None
    if _out_of_patience(run):
        metric = run.config.train.best_metric
        log.message(f"stopped early: no better {metric} in the last {run.state.stale} evaluations")
    elif run.val_data is None:
        run.save_last()
    elif run.state.evaluated_at != run.state.iteration or not run.state.best:
        # Otherwise the run was resumed after its final evaluation.
        evaluation = _evaluate(run, log, stop_request, run.progress(max(run.state.iteration, 1)))
    if not run.state.best:
        run.save_last_as_best(evaluation)
    run.require_saved()
    metric, best_metrics = run.config.train.best_metric, run.state.best
    description = "the last weights, no validation"
    if best_metrics:
        description = f"{metric} {best_metrics[metric]:.3f} on val"
    elif run.state.evaluations:
        description = f"the last weights, {metric} is undefined because val has no objects that this metric counts"
    iterations = plural(run.state.iteration, "iteration")
    log.message(f"{iterations}, {run.elapsed() / 60:.1f} minutes; {run.folder / BEST}: {description}")


class _SpeedKnown(Exception):
    """Signal that ends an evaluation once its speed is known."""


def _measure_end(run: Run, seconds: float, clock: Callable[[], float], stop_request: StopRequest) -> float:
    """Estimate the duration of the end of the run (three saves and an evaluation) in seconds.

    The measurement itself takes about `seconds`; with several processes it takes a whole evaluation.
    """
    start_time = clock()
    run.save_last()
    save_seconds = 3 * (clock() - start_time)
    if run.val_data is None:
        return save_seconds
    start_time = clock()
    samples: list[tuple[float, int, int]] = []

    def progress(done: int, total: int) -> None:
        if stop_request.requested:
            raise KeyboardInterrupt  # the checkpoint has just been saved
        samples.append((clock(), done, total))
        # Several processes must finish together.
        if len(samples) > 1 and clock() - start_time > seconds and world_size() == 1:
            raise _SpeedKnown

    try:
        evaluate(run.detector, run.val_data, run.config, device=run.device, progress=progress)
    except _SpeedKnown:
        (first_time, first_done, _), (last_time, last_done, total) = samples[0], samples[-1]
        remaining_seconds = (last_time - first_time) / (last_done - first_done) * (total - last_done)
        return save_seconds + last_time - start_time + remaining_seconds
    return save_seconds + clock() - start_time
