"""Two processes train an R-CNN like one process."""

from __future__ import annotations

import csv
import json
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


@pytest.fixture
def data_with_details(data: Path, tmp_path: Path) -> Path:
    """Return the data set with a mask and two keypoints for every object."""
    tree = json.loads((data / "train.json").read_text())
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
        annotation["keypoints"] = [x + 1, y + 1, 2, x + width / 2, y + height / 2, 2]
    root = tmp_path / "data"
    root.mkdir()
    (root / "images").symlink_to(data / "images")
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(tree))
    return root


@pytest.mark.parametrize("details", [False, True], ids=["boxes", "masks and keypoints"])
def test_two_processes_have_the_losses_and_weights_of_one(
    details: bool, data_with_details: Path, tmp_path: Path
) -> None:
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
                "mask": {"enabled": details, "conv_channels": [16]},
                "keypoints": {"enabled": details, "conv_channels": [16], "num_keypoints": 2},
            },
            "data": {
                "root": data_with_details,
                "short_side": 96,
                "max_side": 96,
                "workers": 0,
                "masks": details,
                "keypoints": details,
            },
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
    assert ("loss_mask" in one[0]) == ("loss_keypoints" in one[0]) == details
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)  # sums in another order; metrics.csv has six digits
    first, second = (load_checkpoint(tmp_path / name / "weights/last.pt").model for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
