"""The learning-rate schedule against the recorded numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcos.config import TrainConfig
from fcos.training.optim import learning_rate_factor

RTOL = 1e-12  # the same float64 arithmetic in another order


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    goldens: Any = metafunc.config.getoption("--goldens")
    if "manifest" in metafunc.fixturenames:
        files = sorted((goldens / "manifests" / "fcos").glob("*.json"))
        metafunc.parametrize("manifest", files, ids=[file.stem for file in files])
    if "schedule" in metafunc.fixturenames:
        metafunc.parametrize("schedule", json.loads((goldens / "units" / "lr_schedule.json").read_text()))


def test_short_schedules_match_the_original(schedule: dict[str, Any]) -> None:
    args, total = schedule["args"], len(schedule["lr"])
    config = TrainConfig.model_validate(
        {
            "milestones": args["milestones"],
            "gamma": args["gamma"],
            "warmup": args["warmup_method"],
            "warmup_iterations": args["warmup_iters"],
            "warmup_factor": args["warmup_factor"],
        }
    )
    ours = [schedule["base_lr"] * learning_rate_factor(step, total, config) for step in range(total)]
    assert ours == pytest.approx(schedule["lr"], rel=RTOL)


def test_default_schedule_matches_the_original_configs(manifest: Path) -> None:
    """Milestones as fractions of the run give the original's iterations for runs of any length."""
    recorded = json.loads(manifest.read_text())
    solver = recorded["merged_config"]["SOLVER"]
    config = TrainConfig.model_validate({"lr": solver["BASE_LR"]})
    for iteration, expected in recorded["lr_values_at_iteration"].items():
        factor = learning_rate_factor(int(iteration), solver["MAX_ITER"], config)
        assert [config.lr * factor, config.lr * factor * config.bias_lr_factor] == pytest.approx(expected, rel=RTOL)
