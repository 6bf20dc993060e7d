"""Two processes train an R-CNN like one process."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from processes import train_in_processes

from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint
from fcos.training import loop


def losses_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    return [{name: float(value) for name, value in row.items() if name.startswith("loss_")} for row in rows]


def test_two_processes_have_the_losses_and_weights_of_one(data: Path, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "model": {
                "name": "rcnn",
                "backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"},
                "fpn": {"channels": 32},
                "strides": [8, 16],  # further stages of the backbone get no gradient
                "anchor_sizes": [24, 48],
                "proposals": {"samples_per_image": 32, "train_max_proposals": 50},
                "box": {"linear_channels": 32, "samples_per_image": 24},
            },
            "data": {"root": data, "short_side": 96, "max_side": 96, "workers": 0},
            # The batch does not divide into equal parts.
            "train": {"iterations": 4, "batch_size": 3, "lr": 1e-3, "warmup": "none", "log_every": 1},
            "output_dir": tmp_path / "two",
            "device": "cpu",
        }
    )
    train_in_processes(2, config)
    loop.train(config.model_copy(update={"output_dir": tmp_path / "one"}))
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == 4
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)  # sums in another order; metrics.csv has six digits
    first, second = (load_checkpoint(tmp_path / name / "weights/last.pt").model for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
