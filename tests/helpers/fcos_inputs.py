"""Small inputs of FCOS: images, sizes, ground truth, and a tiny detector."""

from __future__ import annotations

from typing import Any

import torch
from detectors import build_fcos, tiny_config
from ground_truth import objects_of
from torch import Tensor

from fcos.models.fcos import FCOS
from fcos.structures import Objects


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def sizes_of(*sizes: tuple[int, int]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)


def two_boxes(images: int = 2) -> list[Objects]:
    boxes, labels = torch.tensor([[4.0, 4.0, 60.0, 50.0], [20.0, 10.0, 40.0, 30.0]]), torch.tensor([0, 2])
    return objects_of([boxes] * images, [labels] * images)


def build(**model: Any) -> FCOS:
    return build_fcos(tiny_config(**model).model, num_classes=3)
