from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fcos.config import TrainConfig
from fcos.training.optim import (
    WeightAverage,
    build_optimizer,
    learning_rate_factor,
    parameter_settings,
    set_learning_rate,
)


def settings(**options) -> TrainConfig:
    return TrainConfig.model_validate(options)


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1, bias=False))


def constant(**options) -> TrainConfig:
    return settings(**{"warmup": "none", "milestones": [], **options})


def test_biases_have_double_learning_rate_and_no_weight_decay() -> None:
    found = parameter_settings(small_model(), settings(lr=0.1, weight_decay=0.01))
    assert {s.name: (s.lr, s.weight_decay) for s in found} == {
        "0.weight": (0.1, 0.01),
        "0.bias": (0.2, 0.0),
        "1.weight": (0.1, 0.01),
        "1.bias": (0.2, 0.0),
        "2.weight": (0.1, 0.01),
    }


def test_frozen_parameters_have_no_settings() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    assert [s.name for s in parameter_settings(model, settings())] == ["1.weight", "1.bias", "2.weight"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_optimizer_has_a_group_per_distinct_setting(optimizer: str) -> None:
    groups = build_optimizer(small_model(), settings(optimizer=optimizer)).param_groups
    assert [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups] == [(3, 0.01, 1e-4), (2, 0.02, 0.0)]


def test_sgd_step_matches_the_textbook_formula() -> None:
    model = nn.Linear(2, 1, bias=False)
    start, gradient = model.weight.detach().clone(), torch.tensor([[1.0, -2.0]])
    optimizer = build_optimizer(model, settings(lr=0.1, momentum=0.9, weight_decay=0.5))
    expected, velocity = start, torch.zeros_like(start)
    for _ in range(3):
        model.weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.5 * expected
        expected = expected - 0.1 * velocity
    torch.testing.assert_close(model.weight.detach(), expected)


def test_set_learning_rate_keeps_the_ratio_of_the_groups() -> None:
    optimizer = build_optimizer(small_model(), settings(lr=0.1))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.025, 0.05]


def test_milestones_may_mix_iterations_and_fractions() -> None:
    config = constant(milestones=[10, 0.5], gamma=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in (9, 10, 49, 50)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_falls_from_one_to_zero() -> None:
    config = constant(schedule="cosine")
    factors = [learning_rate_factor(step, 4, config) for step in range(5)]
    assert factors == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0])


def test_cosine_stays_at_zero_after_its_end() -> None:
    assert learning_rate_factor(7, 4, constant(schedule="cosine")) == 0


@pytest.mark.parametrize("schedule", ["cosine", "multistep"])
def test_learning_rate_does_not_decay_while_length_is_unknown(schedule: str) -> None:
    assert learning_rate_factor(0, math.inf, constant(schedule=schedule, milestones=[0.5])) == 1


def test_warmup_none_ignores_warmup_iterations() -> None:
    assert learning_rate_factor(0, 10, constant(warmup_iterations=5)) == 1


def test_weight_average_adapts_faster_at_first() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.9)
    nn.init.ones_(model.weight)
    expected = 0.0
    for t in range(200):
        average.update(model)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay)
    assert average.model.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_statistics_have_the_decay_of_the_weights_by_default_and_counters_are_copied() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    model(torch.randn(8, 2) + 5)
    average.update(model)
    ours, theirs = average.model.state_dict(), model.state_dict()
    torch.testing.assert_close(ours["running_mean"], 0.9 * theirs["running_mean"])  # first decay: 0.1
    assert ours["num_batches_tracked"] == theirs["num_batches_tracked"] == 1


@pytest.mark.parametrize("momentum", [0.1, 0.03])
def test_averaged_statistics_are_as_old_as_the_averaged_weights(momentum: float) -> None:
    model = nn.BatchNorm1d(1, momentum=momentum).double()
    average = WeightAverage(model, decay=0.99, statistics="same_age")
    for step in range(3000):
        nn.init.constant_(model.weight, step)
        model(torch.full((2, 1), step, dtype=torch.float64))
        average.update(model)
    averaged = average.model.state_dict()
    assert averaged["weight"].item() == pytest.approx(2999 - 99, abs=0.01)
    assert averaged["running_mean"].item() == pytest.approx(2999 - 99, abs=0.01)
    assert averaged["num_batches_tracked"] == 3000


def test_statistics_are_copied_while_their_average_is_longer_than_that_of_the_weights() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5, statistics="same_age")
    for _ in range(20):
        model(torch.randn(8, 2) + 5)
        average.update(model)
        averaged, latest = average.model.state_dict(), model.state_dict()
        assert all(torch.equal(averaged[name], latest[name]) for name in latest if name != "weight")


def test_weight_average_does_not_change_the_model() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    WeightAverage(model, decay=0.9).update(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_warm_up_takes_at_most_a_tenth_of_a_run_with_a_time_budget() -> None:
    options = {"warmup": "linear", "warmup_factor": 0.0, "warmup_iterations": 500, "milestones": []}
    in_minutes, in_steps = constant(max_minutes=5, **options), constant(iterations=100, **options)
    steps = (0, 5, 10, 99)
    assert [learning_rate_factor(step, 100.0, in_minutes) for step in steps] == pytest.approx([0, 0.5, 1, 1])
    assert [learning_rate_factor(step, 100, in_steps) for step in steps] == pytest.approx([0, 0.01, 0.02, 0.198])
    assert learning_rate_factor(250, 90_000.0, in_minutes) == pytest.approx(0.5)  # the option is the maximum
    assert learning_rate_factor(5, math.inf, in_minutes) == pytest.approx(0.01)  # before the speed is known
