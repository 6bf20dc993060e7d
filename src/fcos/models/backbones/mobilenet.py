"""MobileNetV2 as a feature extractor, built from torchvision's.

Source: Sandler et al., CVPR 2018 (arXiv:1801.04381).
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from ..layers import NORMS, freeze
from ..weights import load_weights

_ENDS = {"C2": 4, "C3": 7, "C4": 14, "C5": 18}  # one past the last block of a stage


class MobileNetV2(nn.Module):
    """Stages C2 to C5 (24, 32, 96, 320 channels), named as in torchvision so that its weights load.

    Args:
        weights: see `weights.imagenet_weights`; None: random.
        norm: `bn`, `sync_bn` or `frozen_bn`.
        frozen_stages: how many of (stem, C2, C3, C4, C5) do not learn.
    """

    def __init__(self, *, weights: str | None = None, norm: str = "bn", frozen_stages: int = 0):
        super().__init__()
        net = TorchvisionMobileNetV2(norm_layer=NORMS[norm])
        if weights is not None:
            load_weights(net, "mobilenet_v2", weights)
        self.features = net.features[:18]  # without the classifier's 1x1 convolution
        self.channels = {"C2": 24, "C3": 32, "C4": 96, "C5": 320}
        self.strides = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
        for index in range([0, 2, *list(_ENDS.values())][frozen_stages]):
            self.features[index] = freeze(self.features[index])

    def end_at(self, level: str) -> None:
        """Remove the stages after a map."""
        self.features = self.features[: _ENDS[level]]
        self.channels = {name: self.channels[name] for name in _ENDS if _ENDS[name] <= _ENDS[level]}
        self.strides = {name: self.strides[name] for name in self.channels}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [N, 3, H, W] to the maps C2..C5."""
        features = {}
        x, start = images, 0
        for level in self.channels:
            x = features[level] = self.features[start : _ENDS[level]](x)
            start = _ENDS[level]
        return features
