"""A backbone that costs next to nothing: `model.backbone.name=tiny_backbone:Tiny`."""

from __future__ import annotations

from torch import Tensor, nn


class Tiny(nn.Module):
    """Two convolutions with batch norm, of strides 8 and 16."""

    channels = {"C3": 8, "C4": 8}  # noqa: RUF012
    strides = {"C3": 8, "C4": 16}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.c3 = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU())
        self.c4 = nn.Sequential(nn.Conv2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        c3 = self.c3(images)
        return {"C3": c3, "C4": self.c4(c3)}
