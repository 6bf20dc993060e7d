"""How long a run is: a number of iterations, or what fits into a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

SAFETY = 1.15
"""A measured evaluation may take this much longer at the end, when there are other detections."""
UNMEASURED = 0.25
"""The largest share of the budget that is kept for the end before that has been measured."""
MARGIN = 2.0
"""Seconds kept for what is not measured: pictures, closing files, stopping workers."""


class Length(Protocol):
    """The length of a run."""

    def total(self, iteration: int) -> float:
        """Iterations of the whole run as known after `iteration` of them; not more than that: the run is over."""
        ...

    def advance(self, step_seconds: float) -> None:
        """Take in the time of a finished step."""
        ...


class IterationLength:
    """A fixed number of iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def total(self, iteration: int) -> float:
        """The fixed number."""
        return self.iterations

    def advance(self, step_seconds: float) -> None:
        """The clock does not matter."""


class TimeLength:
    """A wall-clock budget for start-up, steps, evaluations and saving; the report of the run comes after it.

    The run's progress is t / (t + r): t seconds spent in steps so far, r seconds left for steps, that is the budget
    without the time that has passed and without the reserve for the end of the run. It never falls, it reaches 1 when
    the time is up, and an evaluation in between shortens the rest of the schedule instead of making it jump.

    Args:
        seconds: the budget, > 0.
        elapsed: tells the seconds since the start of the run, pauses between continuations left out.
        evaluation_steps: images to evaluate at the end, divided by the training batch size. Until `measured_end` is
            set, evaluating an image is taken to last as long as training on one, which is more than it needs.
        steps: steps already made, when a run continues.
        step_seconds: seconds already spent in them.
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
        """Seconds that the final evaluation and saving take, once known."""
        self._steps = steps
        self._mean = step_seconds / max(steps, 1)  # of the last ten steps or so
        self._progress = 0.0

    @property
    def reserve(self) -> float:
        """Seconds kept for the end of the run."""
        if self.measured_end is not None:
            return SAFETY * self.measured_end + MARGIN
        return min(self.evaluation_steps * self._mean, UNMEASURED * self.seconds) + MARGIN

    def total(self, iteration: int) -> float:
        """Iterations at the measured speed: infinite at first, `iteration` when no further step fits."""
        if iteration == 0:
            return math.inf  # one step is always made
        left = self.seconds - self.elapsed() - self.reserve
        if self._mean > 0:  # a coarse clock may not have moved yet
            left = left // self._mean * self._mean  # for whole steps
        if left <= 0:
            return iteration
        self._progress = max(self._progress, self.step_seconds / (self.step_seconds + left))
        return iteration / self._progress if self._progress else math.inf

    def advance(self, step_seconds: float) -> None:
        """Take in the time of a finished step."""
        self.step_seconds += step_seconds
        self._steps += 1
        self._mean += (step_seconds - self._mean) / min(self._steps, 10)
