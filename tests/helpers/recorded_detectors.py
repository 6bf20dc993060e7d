"""Detections recorded from detectron2 and mmdetection (tests/fixtures/detectors/README.md), and the same of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fill_dialects import fill_array, generator
from torch import Tensor

from fcos.checkpoint import Checkpoint, load_weights
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.interop.checkpoints import from_content
from fcos.models import DetectionModel, build_model
from fcos.structures import Instances

FOLDER = Path(__file__).parents[1] / "fixtures" / "detectors"
NAMES = sorted(file.stem for file in FOLDER.glob("*.npz"))
CLASSES = ("apple", "bus", "cat", "dog", "egg")
SIZES, ORIGINAL_SIZES = [(128, 160), (96, 144)], [(256, 320), (200, 300)]
"""(height, width) of the images in network-input pixels, and of the original images."""
LIMITS: dict[str, dict[str, Any]] = {
    "retinanet": {"pre_nms_top_k": 100, "max_detections": 12},
    "rcnn": {"proposals": {"pre_nms_top_k": 60, "max_proposals": 50}, "max_detections": 12},
}
"""Limits with which the detections were recorded, as options of `model`."""


@dataclass
class Recorded:
    """Recorded detector: names and shapes of its tensors, its synthetic weights, and its detections."""

    name: str

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        with np.load(FOLDER / f"{self.name}.npz") as numbers:
            return dict(numbers)

    @property
    def shapes(self) -> dict[str, list[int]]:
        return dict(zip(self.numbers["names"].tolist(), json.loads(str(self.numbers["shapes"])), strict=True))

    def state(self) -> dict[str, Tensor]:
        """Return the synthetic weights; those of predictions are scaled so that there are many detections."""
        facts, state = json.loads(str(self.numbers["facts"])), {}
        for name, shape in self.shapes.items():
            layer, _, kind = name.rpartition(".")
            values = fill_array(name, shape, facts["seed"], facts["extra"])
            if f"gain/{layer}" in self.numbers:
                gain, bias = self.numbers[f"gain/{layer}"], self.numbers[f"bias/{layer}"]
                values = bias if kind == "bias" else values * np.float32(gain)
            state[name] = torch.from_numpy(np.asarray(values))
        return state

    def empty_state(self) -> dict[str, Tensor]:
        """Return tensors of the recorded names and shapes without memory."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}

    def content(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """Return the content of a file of the project with these tensors."""
        return {"state_dict" if self.name.startswith("mmdetection") else "model": state}

    def class_names(self) -> tuple[str, ...]:
        return ("person",) if "keypoint" in self.name else CLASSES

    def checkpoint(self) -> Checkpoint:
        return from_content(self.content(self.state()), where=self.name, class_names=self.class_names())


def detector(checkpoint: Checkpoint) -> DetectionModel:
    """Build our detector with the converted weights and the recorded limits."""
    section = checkpoint.config["model"]
    limits = LIMITS[section["name"]]
    merged = {**section, **{k: {**section[k], **v} if isinstance(v, dict) else v for k, v in limits.items()}}
    config = validate({**checkpoint.config, "model": merged}, where="x")
    assert flatten(limits).items() <= flatten(config.model.model_dump()).items()
    model = build_model(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    load_weights(model, checkpoint.model, where="x")
    return model.eval()


def images() -> tuple[Tensor, Tensor]:
    """Return the recorded images, uint8 RGB [2, 3, H, W] padded with noise, and their sizes."""
    batch = torch.full((len(SIZES), 3, *SIZES[0]), 77, dtype=torch.uint8)
    for i, (height, width) in enumerate(SIZES):
        coarse = generator(f"image{i}", 12).integers(0, 256, (3, height // 16, width // 16))
        noise = generator(f"noise{i}", 12).integers(0, 32, (3, height, width))
        pixels = np.kron(coarse, np.ones((1, 16, 16), dtype=np.int64)) * 7 // 8 + noise
        batch[i, :, :height, :width] = torch.from_numpy(pixels.astype(np.uint8))
    return batch, torch.tensor(SIZES)


def detect(model: DetectionModel) -> list[Instances]:
    """Return our detections in pixels of the original images."""
    found = model.detect(*images())
    return [image.resize_to(size) for image, size in zip(found, ORIGINAL_SIZES, strict=True)]
