"""Small untrained R-CNNs and their targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from detectors import tiny_config
from torch import Tensor

from fcos.masks import Masks
from fcos.models import build_model
from fcos.models.rcnn import RCNN
from fcos.structures import Objects

DETAILS: dict[str, Any] = {
    "mask": {"enabled": True, "conv_channels": [16]},
    "keypoints": {"enabled": True, "conv_channels": [16], "num_keypoints": 5},
}
FROZEN: dict[str, Any] = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}


def build(*, num_classes: int = 3, **options: Any) -> RCNN:
    config = tiny_config(name="rcnn", score_threshold=0.001, **options)
    model = build_model(config.model, num_classes=num_classes, pretrained=False)
    assert isinstance(model, RCNN)
    return model


def with_details(objects: Objects, *, num_keypoints: int = 5) -> Objects:
    """Add triangles as masks, and visible keypoints on the diagonals of the boxes."""
    polygons = [[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in objects.boxes.tolist()]
    steps = torch.linspace(0.1, 0.9, num_keypoints)[:, None]
    corner, other = objects.boxes[:, None, :2], objects.boxes[:, None, 2:]
    points = corner + steps * (other - corner)
    keypoints = torch.cat([points, torch.full_like(points[..., :1], 2)], dim=2)
    return replace(objects, masks=Masks.from_polygons(polygons), keypoints=keypoints)


def some_objects() -> list[Objects]:
    """Return the objects of two images, the second without any."""
    boxes = torch.tensor([[4.0, 6, 50, 50], [20, 10, 60, 62]])
    full = Objects(boxes, torch.tensor([0, 2]), seed=3)
    return [with_details(full), with_details(full[:0])]


def total(terms: Any) -> Tensor:
    return torch.stack(list(terms.values())).sum()
