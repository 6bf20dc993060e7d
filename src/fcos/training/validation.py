"""Evaluations of a run on its validation set: when they are due, what they save, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..distributed import rank, world_size
from ..evaluation.evaluate import Evaluation, evaluate
from .logs import RunLog, TrainingProgress
from .run import Run, StopRequest
from .validation_pictures import save_pictures


class _SpeedKnown(Exception):
    """Signal that ends an evaluation once its speed is known."""


class Validation:
    """Evaluations during and at the end of a run. All processes must call the same methods.

    Args:
        run: the run.
        log: its log, which gets the metrics.
        stop_request: stop request of this process, which interrupts an evaluation.
    """

    def __init__(self, run: Run, log: RunLog, stop_request: StopRequest) -> None:
        self._run, self._log, self._stop_request = run, log, stop_request
        self._marks = 0  # number of multiples of `eval_every` that had been passed at the last evaluation

    def is_due(self, progress: TrainingProgress) -> bool:
        """Return whether a multiple of `eval_every` was passed since the last evaluation, before the end of the run."""
        return self._run.val_data is not None and progress.fraction < 1 and self._count_marks(progress) > self._marks

    def catch_up(self, total: float) -> None:
        """Run the evaluation that was still due when the run, now of `total` iterations, stopped."""
        last_evaluated = max(self._run.state.evaluated_at, 0)
        progress = self._run.progress(total)
        # The length of the run and `eval_every` may have changed since the last evaluation.
        self._marks = self._count_marks(progress._replace(iteration=last_evaluated, fraction=last_evaluated / total))
        if self.is_due(progress):
            self.evaluate(progress)

    def evaluate(self, progress: TrainingProgress) -> Evaluation:
        """Evaluate on the validation set, which must exist.

        Writes weights/last.pt before the evaluation and again with the metrics, and weights/best.pt if they are the
        best.

        Raises:
            KeyboardInterrupt: one of the processes was asked to stop.
        """
        run, log = self._run, self._log
        assert run.val_data is not None
        run.save_last()
        evaluation = evaluate(run.detector, run.val_data, run.config, device=run.device, progress=self._show)
        run.state.evaluations += 1
        run.state.evaluated_at, self._marks = run.state.iteration, self._count_marks(progress)
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

    def measure_end(self, seconds: float, clock: Callable[[], float]) -> float:
        """Estimate the duration of the end of the run (three saves and an evaluation) in seconds.

        The measurement itself takes about `seconds`; with several processes it takes a whole evaluation.

        Raises:
            KeyboardInterrupt: one of the processes was asked to stop.
        """
        run, start_time = self._run, clock()
        run.save_last()
        save_seconds = 3 * (clock() - start_time)
        if run.val_data is None:
            return save_seconds
        start_time = clock()
        samples: list[tuple[float, int, int]] = []

        def sample(done: int, total: int) -> None:
            self._stop_if_requested()
            samples.append((clock(), done, total))
            # Several processes must finish together.
            if len(samples) > 1 and clock() - start_time > seconds and world_size() == 1:
                raise _SpeedKnown

        try:
            evaluate(run.detector, run.val_data, run.config, device=run.device, progress=sample)
        except _SpeedKnown:
            (first_time, first_done, _), (last_time, last_done, total) = samples[0], samples[-1]
            remaining_seconds = (last_time - first_time) / (last_done - first_done) * (total - last_done)
            return save_seconds + last_time - start_time + remaining_seconds
        return save_seconds + clock() - start_time

    def _count_marks(self, progress: TrainingProgress) -> int:
        """Return the number of multiples of `eval_every` that the run has passed."""
        every = self._run.config.train.eval_every
        if every is None:
            return 0
        return math.floor((progress.iteration if every >= 1 else progress.fraction) / every + 1e-9)

    def _show(self, done: int, total: int) -> None:
        """Show the progress of an evaluation."""
        self._log.evaluating(done, total)
        self._stop_if_requested()

    def _stop_if_requested(self) -> None:
        if self._stop_request.requested:
            raise KeyboardInterrupt  # the checkpoint was saved just before the evaluation
