"""The training loop, from a config to a run folder with weights. Start reading at `train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..allocator import keep_freed_memory
from ..config import Config
from ..data import build_train_loader
from ..data.dataset import Annotations
from ..distributed import broadcast, on_rank_zero, rank, resolve_device, world_size
from ..structures import Batch
from .budget import Length, TimeLength
from .diagnosis import explain_out_of_memory, report_unassigned, save_if_a_worker_is_lost
from .elastic import explain_lost_processes, join_processes
from .logs import RunLog, Step, TrainingProgress
from .messages import describe_end, describe_finished_run, describe_start
from .optim import learning_rate_factor, set_learning_rate
from .prepare import build_length, prepare_run
from .run import Run, StopRequest
from .step import train_step, wrap_model
from .validation import Validation

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
    device = resolve_device(config.device)
    keep_freed_memory(device)
    join_processes(device)
    with ExitStack() as stack:
        run, micro_batches, origin = prepare_run(config, name, device, stack, elapsed=lambda: clock() - start_time)
        ddp_model, state, length = wrap_model(run), run.state, build_length(run)
        log = stack.enter_context(
            RunLog(run.folder, run.config, iteration=state.iteration, evaluations=state.evaluations, steps=run.unlogged)
        )
        stop_request = stack.enter_context(StopRequest(run, log))
        stack.enter_context(save_if_a_worker_is_lost(run))
        validation = Validation(run, log, stop_request)
        total = _total(length, state.iteration)
        # After all checks, so that a failed start does not block the next one.
        keeps_config = on_rank_zero(lambda: _save_config(run, total))
        log.message(describe_start(run, length, origin, micro_batches=micro_batches))
        if total <= state.iteration:
            log.message(describe_finished_run(run))
        validation.catch_up(total)
        for progress, step in _steps(ddp_model, run, length, stop_request, clock, micro_batches=micro_batches):
            log.step(progress, step)
            if progress.epoch >= 1:
                report_unassigned(run, log)
            if state.iteration % run.config.train.checkpoint_every == 0:
                run.save_last()
            if step.result.stop:
                stop_request.stop()
            if validation.is_due(progress):
                validation.evaluate(progress)
            if isinstance(length, TimeLength) and length.measured_end is None and progress.fraction >= MEASURE_AT:
                length.measured_end = validation.measure_end(0.02 * length.seconds, clock)
        _finish(run, log, validation)
    splits = (None, None) if keeps_config else (run.train_data, run.val_data)
    return TrainResult(run.folder, state.best, *splits)


def _steps(
    ddp_model: nn.Module,
    run: Run,
    length: Length,
    stop_request: StopRequest,
    clock: Callable[[], float],
    *,
    micro_batches: int,
) -> Iterator[tuple[TrainingProgress, Step]]:
    """Train until the run has reached its length or is stopped early; yield the progress and the step after each step.

    See `train` and `train_step` for the arguments.
    """
    state, settings = run.state, run.config.train
    total = _total(length, state.iteration)
    batches = _batches(run, lambda: total)
    while state.iteration < (total := _total(length, state.iteration)) and not run.is_out_of_patience:
        start_time = clock()
        batch = next(batches)
        waited = clock() - start_time
        factor = learning_rate_factor(state.iteration, total, settings)
        set_learning_rate(run.optimizer, factor)
        result = train_step(ddp_model, batch, run, stop_request, micro_batches=micro_batches)
        step = Step(result, lr=settings.lr * factor, seconds=clock() - start_time, waited=waited)
        length.advance(step.seconds)
        run.count(step)
        yield run.progress(total), step


def _batches(run: Run, total: Callable[[], float]) -> Iterator[Batch]:
    """Return an iterator over this process's shards of the batches, starting after the images that the run has seen.

    Args:
        run: the run.
        total: function that returns the current estimate of the total iterations.
    """
    first_batch = run.state.images // run.config.train.batch_size
    offset = first_batch - run.state.iteration  # not 0 if the run was resumed with another batch size
    loader = build_train_loader(
        run.config,
        run.train_data,
        start_iteration=first_batch,
        total=lambda: total() + offset,
        rank=rank(),
        world_size=world_size(),
    )
    return iter(loader)


def _total(length: Length, iteration: int) -> float:
    """Return the total iterations of the run; under a time budget those of rank 0, because clocks differ."""
    total = length.total(iteration)
    return broadcast(total) if isinstance(length, TimeLength) else total


def _save_config(run: Run, total: float) -> bool:
    """Write config.yaml, except for a finished run, whose current options have no effect; return whether it is kept."""
    is_trained = run.state.iteration >= total or run.is_out_of_patience
    is_evaluated = run.val_data is None or run.state.evaluated_at == run.state.iteration
    is_kept = is_trained and is_evaluated and run.keep_config()
    if not is_kept:
        run.save_config()
    return is_kept


def _finish(run: Run, log: RunLog, validation: Validation) -> None:
    """Finish the run after its last iteration: evaluate, save, and print a summary."""
    log.sum_up()
    report_unassigned(run, log)
    evaluation = None
    if run.is_out_of_patience:
        metric = run.config.train.best_metric
        log.message(f"stopped early: no better {metric} in the last {run.state.stale} evaluations")
    elif run.val_data is None:
        run.save_last()
    elif run.state.evaluated_at != run.state.iteration or not run.state.best:
        # Otherwise the run was resumed after its final evaluation.
        evaluation = validation.evaluate(run.progress(max(run.state.iteration, 1)))
    if not run.state.best:
        run.save_last_as_best(evaluation)
    run.require_saved()
    log.message(describe_end(run))
