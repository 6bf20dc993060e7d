"""How far a run is: by counted iterations, or by the clock.

Both answer the same three questions, which is all that the loop and the schedule ask.
"""

from __future__ import annotations

import math
from typing import Protocol

SAFETY = 1.15
"""A measured evaluation may take this much longer at the end, when there are more detections."""
UNMEASURED = 0.25
"""The largest share of the budget that is kept for the end before that has been measured."""
MARGIN = 1.0
"""Seconds kept for what is not measured: closing files, stopping workers."""


class Length(Protocol):
    """The length of a run."""

    def total(self, iteration: int) -> float:
        """Iterations of the whole run, estimated after `iteration` of them; infinite when nothing is known yet."""
        ...

    def finished(self, iteration: int) -> bool:
        """Whether the run ends after `iteration` iterations."""
        ...

    def advance(self, step_seconds: float, elapsed: float) -> None:
        """Take in the time of a finished step and the time since the run's start, in seconds."""
        ...


class IterationLength:
    """A fixed number of iterations."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def total(self, iteration: int) -> float:
        """The fixed number."""
        return self.iterations

    def finished(self, iteration: int) -> bool:
        """Whether all are done."""
        return iteration >= self.iterations

    def advance(self, step_seconds: float, elapsed: float) -> None:
        """Nothing to learn from the clock."""


class TimeLength:
    """A wall-clock budget for everything: start-up, steps, evaluations, saving.

    The schedule's progress is t / (t + r): t seconds spent in steps so far, r seconds that are left for steps, that
    is the budget without the time that has passed and without the reserve for the end of the run. It never falls, it
    reaches 1 when the time is up, and an evaluation in between shortens the rest instead of making a jump.

    Args:
        seconds: the budget, > 0.
        evaluation_steps: images to evaluate at the end divided by the training batch size. Until `measured_end` is
            set, evaluating an image is taken to last as long as training on one, which is more than it needs.
        step_seconds: time already spent in steps, when a run continues.
        elapsed: time already spent altogether.
    """

    def __init__(
        self, seconds: float, *, evaluation_steps: float, step_seconds: float = 0.0, elapsed: float = 0.0
    ) -> None:
        self.seconds = seconds
        self.evaluation_steps = evaluation_steps
        self.step_seconds = step_seconds
        self.measured_end: float | None = None
        """Seconds that the final evaluation and saving take, once known."""
        self._steps = 0
        self._mean = 0.0
        self._elapsed = elapsed
        self._progress = 0.0

    @property
    def reserve(self) -> float:
        """Seconds kept for the end of the run."""
        if self.measured_end is not None:
            return SAFETY * self.measured_end + MARGIN
        return min(self.evaluation_steps * self._mean, UNMEASURED * self.seconds) + MARGIN

    @property
    def left(self) -> float:
        """Seconds left for steps."""
        return max(self.seconds - self._elapsed - self.reserve, 0.0)

    @property
    def progress(self) -> float:
        """How much of the run is done, 0..1."""
        if self.step_seconds > 0:
            self._progress = max(self._progress, self.step_seconds / (self.step_seconds + self.left))
        return self._progress

    def total(self, iteration: int) -> float:
        """Iterations at the measured speed."""
        return iteration / self.progress if self.progress > 0 else math.inf

    def finished(self, iteration: int) -> bool:
        """Whether no further step fits; the first one always does."""
        return iteration > 0 and self.left <= self._mean

    def advance(self, step_seconds: float, elapsed: float) -> None:
        """Take in a step; the expected length of the next one is a running mean over about ten."""
        self.step_seconds += step_seconds
        self._elapsed = elapsed
        self._steps += 1
        self._mean += (step_seconds - self._mean) / min(self._steps, 10)
