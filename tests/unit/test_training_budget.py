from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from fcos.training.budget import MARGIN, SAFETY, UNMEASURED, IterationLength, TimeLength


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(length: TimeLength, clock: Clock, seconds: Callable[[int], float]) -> Iterator[tuple[int, float]]:
    """Train on a fake clock, where step k takes `seconds(k)`; yield iteration and progress before every step."""
    iteration = 0
    while iteration < (total := length.total(iteration)):
        yield iteration, iteration / total
        duration = seconds(iteration)
        clock.now += duration
        length.advance(duration)
        iteration += 1


def test_iteration_length_is_constant() -> None:
    length = IterationLength(7)
    length.advance(1000.0)
    assert length.total(0) == length.total(7) == 7


def test_time_length_is_unknown_before_the_first_step() -> None:
    assert TimeLength(60, elapsed=Clock()).total(0) == math.inf


def test_steady_steps_fill_the_budget_up_to_the_margin() -> None:
    clock = Clock()
    progress = [p for _, p in steps(TimeLength(100, elapsed=clock), clock, lambda _: 0.5)]
    assert 100 - MARGIN - 1 <= clock.now <= 100 - MARGIN
    assert progress[-1] == pytest.approx(1 - 1 / len(progress), abs=1e-6)
    assert progress == pytest.approx([k / len(progress) for k in range(len(progress))], abs=0.02)


def test_startup_uses_budget_but_makes_no_progress() -> None:
    clock = Clock()
    clock.now = 40.0
    ran = steps(TimeLength(100, elapsed=clock), clock, lambda _: 1.0)
    assert next(ran)[1] == 0
    assert next(ran)[1] < 0.03
    assert 40 < len(list(ran)) < 60


@pytest.mark.parametrize("seconds", [lambda k: 0.2 if k < 150 else 1.0, lambda k: 1.0 if k < 50 else 0.2])
def test_progress_adapts_to_speed_and_never_decreases(seconds: Callable[[int], float]) -> None:
    clock = Clock()
    progress = [p for _, p in steps(TimeLength(100, elapsed=clock), clock, seconds)]
    assert progress == sorted(progress)
    assert progress[-1] > 0.97
    assert 96 < clock.now <= 100 - MARGIN + 1


def test_time_for_the_measured_final_work_is_reserved() -> None:
    clock = Clock()
    length = TimeLength(100, elapsed=clock, evaluation_steps=30)
    for iteration, _ in steps(length, clock, lambda _: 0.5):
        if iteration == 50:
            length.measured_end = 20.0
    assert clock.now + 20 * SAFETY + MARGIN == pytest.approx(100, abs=1)


def test_intermediate_evaluation_reduces_the_number_of_steps() -> None:
    clock, progress = Clock(), []
    for iteration, p in steps(TimeLength(100, elapsed=clock), clock, lambda _: 0.5):
        progress.append(p)
        if iteration == 80:
            clock.now += 30
    assert progress == sorted(progress)
    assert progress[-1] > 0.97
    assert len(progress) == pytest.approx(2 * (100 - 30 - MARGIN), abs=3)


def test_slow_first_step_does_not_end_the_run() -> None:
    """Until the final work is measured, its reserve is estimated from the speed, and must not use up the budget."""
    clock = Clock()
    length = TimeLength(100, elapsed=clock, evaluation_steps=1000)
    ran = list(steps(length, clock, lambda k: 10.0 if k == 0 else 0.1))
    assert len(ran) > 100
    assert clock.now <= 100 * (1 - UNMEASURED)


def test_steps_of_zero_duration_on_a_coarse_clock_fill_the_budget() -> None:
    clock = Clock()
    length = TimeLength(100, elapsed=clock)
    ran = list(steps(length, clock, lambda k: 0.5 if k % 10 == 9 else 0.0))
    assert [progress for _, progress in ran[:10]] == [0.0] * 10
    assert len(ran) == pytest.approx(20 * (100 - MARGIN), rel=0.02)


def test_one_step_runs_even_if_the_budget_is_exhausted() -> None:
    clock = Clock()
    clock.now = 1000.0
    assert len(list(steps(TimeLength(10, elapsed=clock), clock, lambda _: 1.0))) == 1


def test_resumed_run_keeps_its_progress() -> None:
    clock = Clock()
    clock.now = 50.0
    length = TimeLength(100, elapsed=clock, steps=200, step_seconds=48.0)
    assert 200 / length.total(200) == pytest.approx(0.5, abs=0.01)
    assert length.total(200) == pytest.approx(400, abs=10)
