"""ResNet and ResNeXt as feature extractors, built from torchvision's model.

Source: He et al., CVPR 2016 (arXiv:1512.03385); Xie et al., CVPR 2017 (arXiv:1611.05431).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models import resnet as tv

from ...choices import HeadKind
from ...config.backbones import resnet_shape
from ..layers import NORMS, DeformConv
from .pretrained import load_pretrained
from .stages import STRIDES, Stages


class Shape(NamedTuple):
    """Architecture parameters: blocks per stage, groups of the 3x3 convolutions, and channels per group in C2."""

    blocks: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


SHAPES = {
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnet152": Shape((3, 8, 36, 3)),
    "resnext101_32x8d": Shape((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Shape((3, 4, 23, 3), 64, 4),
}
"""Shapes of the ResNets with ImageNet weights."""
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STAGES = {
    "stem": ["conv1", "bn1", "relu", "maxpool"],
    "C2": ["layer1"],
    "C3": ["layer2"],
    "C4": ["layer3"],
    "C5": ["layer4"],
}


def _find_shape(name: str) -> Shape:
    depth, groups, width = resnet_shape(name)
    return Shape(_BLOCKS[depth], groups, width)


class ResNet(Stages):
    """ResNet or ResNeXt with maps C2 to C5 (256, 512, 1024, 2048 channels).

    Parameters are named as in torchvision, so that its weights load.

    Args:
        name: backbone name, such as `resnet50` or `resnext50_32x4d`.
        weights: source of the weights, see `pretrained.imagenet_weights`; None: random initialisation.
        norm: normalisation, a key of `layers.NORMS`.
        norm_eps: epsilon of the norm; it is 0 in the original's frozen batch norm.
        norm_groups: groups of `gn`, see `layers.group_norm`.
        stride_in_1x1: whether a block downsamples in its first 1x1 convolution (MSRA weights) instead of in its 3x3
            convolution.
        frozen_stages: number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5).
        deformable_stages: stages among C2 to C5 whose 3x3 convolutions are deformable.
        modulated: whether deformable convolutions also weight their samples, see `DeformConv`.
        offset_groups: number of offset groups of deformable convolutions, see `DeformConv`.
        head_dilation: dilation of the heads of `build_head`, see `ResidualHead`.
    """

    def __init__(
        self,
        *,
        name: str = "resnet50",
        weights: str | None = None,
        norm: str = "frozen_bn",
        norm_eps: float = 1e-5,
        norm_groups: int = 32,
        stride_in_1x1: bool = False,
        frozen_stages: int = 2,
        deformable_stages: Sequence[str] = (),
        modulated: bool = True,
        offset_groups: int = 1,
        head_dilation: int = 1,
    ):
        super().__init__()
        blocks, groups, width = SHAPES[name] if name in SHAPES else _find_shape(name)
        norm_layer = partial(NORMS[norm], eps=norm_eps, **({"groups": norm_groups} if norm == "gn" else {}))
        net = tv.ResNet(tv.Bottleneck, list(blocks), groups=groups, width_per_group=width, norm_layer=norm_layer)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
            if stride_in_1x1 and isinstance(module, tv.Bottleneck):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        if weights is not None:
            load_pretrained(net, name, weights)
        for level in deformable_stages:
            for block in getattr(net, _STAGES[level][0]):
                block.conv2 = _deformable(block.conv2, modulated, offset_groups, copy=weights is not None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = {"C2": 256, "C3": 512, "C4": 1024, "C5": 2048}
        self.strides = dict(STRIDES)
        self.head_dilation = head_dilation
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps C2 to C5 of normalised images [N, 3, H, W]."""
        return self._maps(images)

    def build_head(self, kind: HeadKind) -> ResidualHead:
        """Build a head for regions of C4 from a copy of stage C5 with its weights; see `HeadBackbone`."""
        assert kind != "rpn", "C5 is no head of a region proposal network"
        assert "C5" in self.channels, "build_head must be called before truncate_after"
        return ResidualHead(copy.deepcopy(self.layer4), dilation=self.head_dilation)

    def _stages(self) -> dict[str, list[str]]:
        return _STAGES


class ResidualHead(nn.Module):
    """Head of an R-CNN on C4: the last stage of a ResNet, which is run on every pooled region.

    The stage halves the regions' sides, but not if it is dilated.

    Args:
        stage: stage `layer4` of torchvision's ResNet, which becomes part of the head.
        dilation: dilation of the 3x3 convolutions, which must not be deformable if it is above 1.

    Attributes:
        out_channels: number of channels of the output.

    Source: He et al., CVPR 2016 (arXiv:1512.03385), appendix A; dilation as in maskrcnn-benchmark (MIT).
    """

    def __init__(self, stage: nn.Sequential, *, dilation: int = 1):
        super().__init__()
        self.layer4 = stage
        convs = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
        for conv in convs if dilation > 1 else ():
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
        self.out_channels = convs[-1].out_channels

    def forward(self, regions: Tensor) -> Tensor:
        """Map regions [R, 1024, h, w] to [R, 2048, h / 2, w / 2] (rounded up), or [R, 2048, h, w] if dilated."""
        return self.layer4(regions)


def _deformable(conv: nn.Conv2d, modulated: bool, offset_groups: int, *, copy: bool) -> DeformConv:
    """Build the deformable convolution that replaces a 3x3 convolution; `copy` copies the weights (if pretrained)."""
    deformable = DeformConv(
        conv.in_channels,
        conv.out_channels,
        stride=conv.stride[0],
        groups=conv.groups,
        modulated=modulated,
        offset_groups=offset_groups,
    )
    if copy:
        deformable.conv.load_state_dict(conv.state_dict())
    return deformable
