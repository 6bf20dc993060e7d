"""Length of a run: a number of iterations, or a wall-clock budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

SAFETY = 1.15
"""Factor on the measured duration of the end of the run: other detections may slow down the final evaluation."""
UNMEASURED = 0.25
"""Largest fraction of the budget to reserve for the end of the run before its duration is measured."""
MARGIN = 2.0
"""Seconds to reserve for work that is not measured: saving pictures, closing files, stopping workers."""


class Length(Protocol):
    """Interface for the length of a run."""

    def total(self, iteration: int) -> float:
        """Return the estimated total iterations of the run; a value <= `iteration` ends it.

        Args:
            iteration: number of finished iterations.
        """
        ...

    def advance(self, step_seconds: float) -> None:
        """Record the duration of a finished step."""
        ...


class IterationLength:
    """A fixed number of iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def total(self, iteration: int) -> float:
        """Return the fixed number of iterations."""
        return self.iterations

    def advance(self, step_seconds: float) -> None:
        """Do nothing: the length does not depend on time."""


class TimeLength:
    """A wall-clock budget for start-up, steps, evaluations and saving, but not for the report of the run.

    The progress of the run is t / (t + r), where t is the time spent in steps so far and r is the time left for steps:
    the budget minus the elapsed time and the reserve for the end of the run. The progress never decreases and reaches 1
    when the time is up. An evaluation during training shortens the rest of the schedule instead of making it jump.

    Args:
        seconds: budget in seconds, > 0.
        elapsed: function that returns the seconds since the start of the run, excluding the time between a stop and a
            resume.
        evaluation_steps: number of images in the final evaluation, divided by the training batch size. Until
            `measured_end` is set, evaluating an image is assumed to take as long as training on one, which is an
            overestimate.
        steps: number of steps before the run was resumed.
        step_seconds: seconds spent in these steps.
    """

    def __init__(
        self,
        seconds: float,
        *,
        elapsed: Callable[[], float],
        evaluation_steps: float = 0.0,
        steps: int = 0,
        step_seconds: float = 0.0,
    ) -> None:
        self.seconds = seconds
        self.elapsed = elapsed
        self.evaluation_steps = evaluation_steps
        self.step_seconds = step_seconds
        self.measured_end: float | None = None
        """Measured duration of the final evaluation and saving in seconds; None until measured."""
        self._steps = steps
        self._mean = step_seconds / max(steps, 1)  # seconds per step, over about the last ten steps
        self._progress = 0.0

    @property
    def reserve(self) -> float:
        """Seconds reserved for the end of the run."""
        if self.measured_end is not None:
            return SAFETY * self.measured_end + MARGIN
        return min(self.evaluation_steps * self._mean, UNMEASURED * self.seconds) + MARGIN

    def total(self, iteration: int) -> float:
        """Return the total at the measured speed: infinite at first, `iteration` if no further step fits."""
        if iteration == 0:
            return math.inf  # a run has at least one step
        left = self.seconds - self.elapsed() - self.reserve
        if self._mean > 0:  # 0 if a coarse clock has not advanced yet
            left = left // self._mean * self._mean  # only whole steps
        if left <= 0:
            return iteration
        self._progress = max(self._progress, self.step_seconds / (self.step_seconds + left))
        return iteration / self._progress if self._progress else math.inf

    def advance(self, step_seconds: float) -> None:
        """Record the duration of a finished step."""
        self.step_seconds += step_seconds
        self._steps += 1
        self._mean += (step_seconds - self._mean) / min(self._steps, 10)
