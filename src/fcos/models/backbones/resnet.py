"""ResNet-50 and ResNet-101 as feature extractors, built from torchvision's.

Source: He et al., CVPR 2016 (arXiv:1512.03385).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchvision.models import resnet as tv

from ..layers import NORMS, freeze
from ..weights import load_weights

_BLOCKS = {"resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}
_LAYERS = {"C2": "layer1", "C3": "layer2", "C4": "layer3", "C5": "layer4"}


class ResNet(nn.Module):
    """Stages C2 to C5, named as in torchvision so that its weights load.

    Args:
        name: `resnet50` or `resnet101`.
        weights: `imagenet` (torchvision's V1), a path to a state dict, or None (random).
        norm: a key of `layers.NORMS`.
        norm_eps: epsilon of the norm; the original's frozen batch norm has none.
        stride_in_1x1: downsample in the first 1x1 convolution of a block (MSRA weights), not in the 3x3 one.
        frozen_stages: how many of (stem, C2, C3, C4, C5) do not learn.
    """

    def __init__(
        self,
        *,
        name: str = "resnet50",
        weights: str | None = None,
        norm: str = "frozen_bn",
        norm_eps: float = 1e-5,
        stride_in_1x1: bool = False,
        frozen_stages: int = 2,
    ):
        super().__init__()
        net = tv.ResNet(tv.Bottleneck, _BLOCKS[name], norm_layer=partial(NORMS[norm], eps=norm_eps))
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if stride_in_1x1 and isinstance(module, tv.Bottleneck):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        if weights is not None:
            load_weights(net, name, weights)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = {"C2": 256, "C3": 512, "C4": 1024, "C5": 2048}
        self.strides = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}
        for stage in (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))[:frozen_stages]:
            for part in stage:
                setattr(self, part, freeze(getattr(self, part)))

    def end_at(self, level: str) -> None:
        """Remove the stages after a map."""
        for name in [name for name in self.strides if self.strides[name] > self.strides[level]]:
            delattr(self, _LAYERS[name])
            del self.channels[name], self.strides[name]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [N, 3, H, W] to the maps C2..C5."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for level in self.channels:
            x = features[level] = getattr(self, _LAYERS[level])(x)
        return features
