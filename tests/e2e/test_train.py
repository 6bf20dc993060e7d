"""Training from images on disk to a detector that finds the training objects, through every component."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

import fcos
from fcos.config import Config
from fcos.interop.checkpoints import load_checkpoint
from fcos.training.loop import TrainResult, train

CLASSES = ("red", "blue")
SIDE = 96


LEVELS = {
    "fcos": {
        "head": {"num_convs": 1, "regression": "relu_stride"},
        "center_sampling_radius": 1.5,
        "size_ranges": [[-1, 64], [64, 128], [128, None]],
    },
    "retinanet": {"head": {"num_convs": 1, "norm": "gn"}, "anchor_sizes": [24, 48, 96]},
}


@pytest.fixture(scope="module", params=LEVELS)
def trained(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    config = {
        "model": {
            "name": request.param,
            "backbone": {"name": "mobilenet_v2", "weights": None},
            "fpn": {"channels": 64},
            "strides": [8, 16, 32],
            **LEVELS[request.param],
        },
        "data": {"root": data, "short_side": SIDE, "max_side": SIDE, "workers": 0},
        "train": {
            "iterations": 60,
            "batch_size": 4,
            "optimizer": "adamw",
            "lr": 2e-3,
            "bias_lr_factor": 1.0,
            "schedule": "cosine",
            "warmup": "linear",
            "warmup_iterations": 5,
            "clip_norm": 10.0,
            "ema": 0.9,
        },
        "output_dir": tmp_path_factory.mktemp("runs") / "rectangles",
        "device": "cpu",
    }
    return train(Config.model_validate(config))


def test_training_reaches_ap50_above_0_8(trained: TrainResult) -> None:
    assert trained.metrics["AP50"] > 0.8


def test_evaluation_of_best_weights_reproduces_the_training_metrics(trained: TrainResult, data: Path) -> None:
    again = fcos.evaluate(trained.run / "weights/best.pt", "device=cpu")
    assert again.metrics == pytest.approx(trained.metrics, nan_ok=True)


def test_trained_detector_finds_and_classifies_the_objects(trained: TrainResult, data: Path) -> None:
    detector = fcos.load(trained.run / "weights/best.pt", device="cpu")
    truth = json.loads((data / "val.json").read_text())["annotations"][:2]
    found = detector.predict(data / "images/0.png", threshold=0.3)
    assert set(found.names) == set(CLASSES)
    for annotation, name in zip(truth, CLASSES, strict=True):
        x, y, width, height = annotation["bbox"]
        first = found.names.index(name)
        overlap = box_iou(found.boxes[first : first + 1], torch.tensor([[x, y, x + width, y + height]]))
        assert overlap.item() > 0.5


def test_checkpoint_stores_class_names_and_category_ids(trained: TrainResult) -> None:
    checkpoint = load_checkpoint(trained.run / "weights/best.pt")
    assert checkpoint.class_names == CLASSES
    assert checkpoint.category_ids == (10, 20)
    assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.model.values())
