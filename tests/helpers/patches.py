"""Backbone that is not in the package; a test adds it to a copy of the package."""

from __future__ import annotations

from torch import Tensor, nn


class Patches(nn.Module):
    """Backbone of non-overlapping convolutions with maps of strides 8 and 16.

    Images are zero-padded to a multiple of 16.

    Args:
        name: `patches`.
        weights: None.
        norm: `bn`.
        frozen_stages: 0.
        width: number of channels of every map.
    """

    def __init__(self, *, name: str, weights: None, norm: str, frozen_stages: int, width: int):
        super().__init__()
        self.c3 = nn.Sequential(nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width), nn.ReLU())
        self.c4 = nn.Sequential(nn.Conv2d(width, width, 2, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.channels = {"C3": width, "C4": width}
        self.strides = {"C3": 8, "C4": 16}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        height, width = images.shape[-2:]
        c3 = self.c3(nn.functional.pad(images, (0, -width % 16, 0, -height % 16)))
        maps = {"C3": c3, "C4": self.c4(c3)}
        return {
            name: x[..., : -(-height // self.strides[name]), : -(-width // self.strides[name])]
            for name, x in maps.items()
        }
