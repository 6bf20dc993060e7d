"""MobileNetV2 as a feature extractor, built from torchvision's model.

Source: Sandler et al., CVPR 2018 (arXiv:1801.04381).
"""

from __future__ import annotations

from torch import Tensor
from torchvision.models.mobilenetv2 import MobileNetV2 as TorchvisionMobileNetV2

from ..layers import NORMS
from .pretrained import load_pretrained
from .stages import STRIDES, Stages

_BLOCKS = {"stem": range(2), "C2": range(2, 4), "C3": range(4, 7), "C4": range(7, 14), "C5": range(14, 18)}


class MobileNetV2(Stages):
    """MobileNetV2 with maps C2 to C5 (24, 32, 96, 320 channels).

    Parameters are named as in torchvision, so that its weights load.

    Args:
        name: backbone name, which selects the weights for `imagenet`.
        weights: source of the weights, see `pretrained.imagenet_weights`; None: random initialisation.
        norm: normalisation: `bn`, `sync_bn` or `frozen_bn`.
        frozen_stages: number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5).
    """

    def __init__(
        self, *, name: str = "mobilenet_v2", weights: str | None = None, norm: str = "bn", frozen_stages: int = 0
    ):
        super().__init__()
        net = TorchvisionMobileNetV2(norm_layer=NORMS[norm])
        if weights is not None:
            load_pretrained(net, name, weights)
        self.features = net.features[:18]  # without the classifier's 1x1 convolution
        self.channels = {"C2": 24, "C3": 32, "C4": 96, "C5": 320}
        self.strides = dict(STRIDES)
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps C2 to C5 of normalised images [N, 3, H, W]."""
        return self._maps(images)

    def _stages(self) -> dict[str, list[str]]:
        return {name: [f"features.{index}" for index in blocks] for name, blocks in _BLOCKS.items()}
