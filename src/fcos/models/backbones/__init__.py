"""The table of backbones and their contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from .dla import DLA34
from .mobilenet import MobileNetV2
from .resnet import SHAPES, ResNet


class Backbone(Protocol):
    """A feature extractor (an `nn.Module`).

    Attributes:
        channels: channels of every map by its name.
        strides: pixels between neighbouring cells of every map by its name, finest first.
    """

    channels: dict[str, int]
    strides: dict[str, int]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [N, 3, H, W] to maps [N, channels, H / stride, W / stride] (rounded up); N may be 0."""
        ...

    def end_at(self, level: str) -> None:
        """Remove what comes after a map: nothing uses it, it would cost time and never get a gradient."""
        ...


BACKBONES: dict[str, Callable[..., Backbone]] = {
    **{name: partial(ResNet, name=name) for name in SHAPES},
    "mobilenet_v2": MobileNetV2,
    "dla34": DLA34,
}
