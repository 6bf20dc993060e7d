"""User-defined backbones for `model.backbone.name=own_backbone:FUNCTION`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Own(nn.Module):
    """Backbone of non-overlapping convolutions with maps of strides 8, 16, 32, and so on for more `levels`."""

    def __init__(self, width: int = 4, *, levels: int = 3, wrong_stride: bool = False):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in range(levels - 1))
        names = [f"C{3 + i}" for i in range(levels)]
        self.channels = dict.fromkeys(names, width)
        self.strides = {name: (4 if wrong_stride else 8) * 2**i for i, name in enumerate(names)}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(images)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return dict(zip(self.channels, maps, strict=True))


class PartlyUnused(Own):
    """Backbone with parameters that do not influence its maps."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 10)


class LeavesOut(Own):
    """Backbone that randomly skips a branch in training."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = super().forward(images)
        if not self.training or torch.rand(()) > 0.5:
            maps["C3"] = maps["C3"] + self.branch(images)
        return maps


class Drops(Own):
    """Backbone with dropout on its maps in training."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = super().forward(images)
        return {name: F.dropout(feature, training=self.training) for name, feature in maps.items()}


def no_backbone() -> nn.Module:
    return nn.Identity()
