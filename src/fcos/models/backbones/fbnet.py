"""FBNet as a feature extractor, and the heads of R-CNN detectors that its architectures define.

Modules and tensors have the names of maskrcnn-benchmark (MIT), whose behaviour this file follows.

Source: Wu et al., CVPR 2019 (arXiv:1812.03443); architectures `cham_*`: Dai et al., CVPR 2019 (arXiv:1812.08934).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...choices import HeadKind
from ...config.fbnet import Block, find_architecture
from ...errors import ConfigError
from ..layers import NORMS
from .pretrained import load_pretrained
from .stages import Stages


@dataclass(frozen=True)
class Layers:
    """Options that all layers of a network share; see `FBNet`."""

    norm: str
    width: float
    width_divisor: int
    depthwise_norm: bool
    depthwise_relu: bool

    def channels(self, count: float) -> int:
        """Round a number of channels to a multiple of the divisor, as the original does.

        A positive number below half of the divisor becomes the square of the divisor.
        """
        divisor, count = self.width_divisor, int(count)
        return count if count % divisor == 0 else (math.floor(count / divisor + 0.5) or divisor) * divisor

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        relu: bool = True,
    ) -> nn.Sequential:
        """Build a "same" convolution without bias, optionally followed by a norm and a ReLU.

        Raises:
            ConfigError: groups of the convolution or of group norm do not divide the channels.
        """
        if in_channels % groups or out_channels % groups:
            raise ConfigError(
                f"model.backbone.architecture: {groups} groups must divide the channels of a convolution, found"
                f" {in_channels} and {out_channels}; set model.backbone.width_divisor={groups}, or a multiple of it"
            )
        if norm and self.norm == "gn" and out_channels % 2:
            raise ConfigError(
                f"model.backbone.norm=gn: expected even numbers of channels, found {out_channels}; set"
                " model.backbone.width_divisor=2, or a multiple of it"
            )
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers = nn.Sequential()
        layers.add_module("conv", conv)
        if norm:
            eps = 0.0 if self.norm == "frozen_bn" else 1e-5
            layers.add_module("bn", NORMS[self.norm](out_channels, eps=eps))
        if relu:
            layers.add_module("relu", nn.ReLU(inplace=True))
        return layers

    def blocks(self, blocks: Sequence[Block], in_channels: int) -> tuple[nn.Sequential, int]:
        """Build consecutive blocks, named `xifSTAGE_NUMBER`, and return their number of output channels, too."""
        layers = nn.Sequential()
        for block in blocks:
            out_channels = self.channels(int(block.channels * self.width))
            layers.add_module(
                f"xif{block.stage}_{block.number}", InvertedResidual(in_channels, out_channels, block, self)
            )
            in_channels = out_channels
        return layers, in_channels


class InvertedResidual(nn.Module):
    """Inverted residual block.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        block: description of the block.
        layers: options of the layers.
    """

    def __init__(self, in_channels: int, out_channels: int, block: Block, layers: Layers):
        super().__init__()
        self.out_channels = out_channels
        self.upsampling = max(-block.stride, 1)
        self.groups = block.groups
        self.has_shortcut = block.stride == 1 and in_channels == out_channels
        channels = layers.channels(in_channels * block.expansion)
        depthwise = partial(layers.conv, channels, channels, block.kernel, groups=channels)
        strided = partial(depthwise, stride=max(block.stride, 1))
        last = {"norm": layers.depthwise_norm, "relu": layers.depthwise_relu}
        self.pw = layers.conv(in_channels, channels, 1, groups=block.groups)
        self.dw = nn.Sequential()
        if block.kernel > 1 and block.is_double:
            self.dw.add_module("dw1", strided())
            self.dw.add_module("dw2", depthwise(**last))
        elif block.kernel > 1:
            self.dw = strided(**last)
        self.pwl = layers.conv(channels, out_channels, 1, groups=block.groups, relu=False)
        self.se4 = ChannelWeights(out_channels) if block.has_channel_weights else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride] (rounded up); N may be 0."""
        y = self.pw(x)
        if self.groups > 1:
            y = F.channel_shuffle(y, self.groups)
        if self.upsampling > 1:
            y = F.interpolate(y, scale_factor=self.upsampling, mode="nearest")
        y = self.pwl(self.dw(y))
        return self.se4(y + x if self.has_shortcut else y)


class ChannelWeights(nn.Module):
    """Squeeze-and-excitation: a weight in 0..1 for every channel, predicted from the means of all channels.

    Args:
        channels: number of channels.

    Source: Hu et al., CVPR 2018 (arXiv:1709.01507).
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 8)
        self.op = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply a map [N, channels, H, W] by its weights."""
        return x * self.op(x)


class FBNetHead(nn.Module):
    """Blocks of a head, followed by an optional 1x1 convolution with norm and ReLU; `FBNet.build_head` builds it.

    Attributes:
        out_channels: number of channels of the output.
    """

    def __init__(self, blocks: nn.Module, last: nn.Module, *, out_channels: int):
        super().__init__()
        self.blocks, self.last, self.out_channels = blocks, last, out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, out_channels, H', W'], N may be 0; the strides of the blocks determine H' and W'."""
        return self.last(self.blocks(x))


class FBNet(Stages):
    """FBNet with maps C2 to C4, or a map for every stride from 4 on that the architecture has.

    Args:
        name: backbone name, which appears in messages.
        weights: source of the weights, see `pretrained.imagenet_weights`; None: random initialisation.
        architecture: name or JSON definition of the architecture, see `config.fbnet.find_architecture`.
        norm: normalisation, a key of `layers.NORMS`.
        width: factor of all numbers of channels.
        width_divisor: divisor of all numbers of channels, which are rounded.
        depthwise_norm: whether a norm follows depthwise convolutions.
        depthwise_relu: whether a ReLU follows depthwise convolutions.
        frozen_stages: number of frozen stages, counted from the stem: (stem, C2, C3, C4).
        rpn_blocks: number of the last blocks that the head `rpn` consists of; 0: all.
        rpn_norm: normalisation in the head `rpn`; None: `norm`.
        box_head: options of the head `box`, see `FBNetHeadConfig`.
        mask_head: options of the head `mask`.
        keypoint_head: options of the head `keypoint`.

    Raises:
        ConfigError: groups do not divide numbers of channels.
        WeightsError: the weights cannot be obtained or do not fit.
    """

    def __init__(
        self,
        *,
        name: str = "fbnet",
        weights: str | None = None,
        architecture: str = "default",
        norm: str = "bn",
        width: float = 1.0,
        width_divisor: int = 8,
        depthwise_norm: bool = False,
        depthwise_relu: bool = False,
        frozen_stages: int = 0,
        rpn_blocks: int = 0,
        rpn_norm: str | None = None,
        box_head: Mapping[str, Any] | None = None,
        mask_head: Mapping[str, Any] | None = None,
        keypoint_head: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.architecture = find_architecture(architecture)
        self.layers = Layers(norm, width, width_divisor, depthwise_norm, depthwise_relu)
        self.rpn_blocks, self.rpn_norm = rpn_blocks, rpn_norm
        self.head_options = {"box": box_head or {}, "mask": mask_head or {}, "keypoint": keypoint_head or {}}
        channels, stride, kernel = self.architecture.stem
        channels = self.layers.channels(int(channels * width))
        self.first = self.layers.conv(3, channels, kernel, stride=stride)
        self.stages, self.trunk_channels = self.layers.blocks(self.architecture.trunk_blocks, channels)
        self.channels, self.strides, self.stage_paths = {}, {}, {"stem": ["first"]}
        for (path, block), stride in zip(
            self.stages.named_children(), self.architecture.trunk_strides[1:], strict=True
        ):
            assert isinstance(block, InvertedResidual)
            level = "stem" if stride < 4 else f"C{stride.bit_length() - 1}"
            self.stage_paths.setdefault(level, []).append(f"stages.{path}")
            if stride >= 4:
                self.channels[level], self.strides[level] = block.out_channels, stride
        if weights is not None:
            load_pretrained(self, name, weights)
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps of normalised images [N, 3, H, W]."""
        return self._maps(images)

    def _stages(self) -> dict[str, list[str]]:
        return self.stage_paths

    def build_head(self, kind: HeadKind) -> FBNetHead:
        """Build a head on the last map, with random weights; see `HeadBackbone`."""
        blocks, layers = self.architecture.head_blocks(kind), self.layers
        if kind == "rpn":
            first = len(blocks) - self.rpn_blocks if self.rpn_blocks else 0
            blocks = [block for block in blocks if block.number >= first]
            layers = replace(layers, norm=self.rpn_norm or layers.norm)
            modules, channels = layers.blocks(blocks, self.trunk_channels)
            return FBNetHead(modules, nn.Identity(), out_channels=channels)
        options = self.head_options[kind]
        if numbers := options.get("blocks"):
            blocks = [block for block in blocks if block.number in numbers]
        if stride := options.get("stride"):
            blocks[0] = blocks[0]._replace(stride=stride)
        modules, channels = layers.blocks(blocks, self.trunk_channels)
        last_channels = self._last_channels(channels, scale=options.get("last_scale", 0.0))
        last = layers.conv(channels, last_channels, 1) if last_channels else nn.Identity()
        return FBNetHead(modules, last, out_channels=last_channels or channels)

    def _last_channels(self, channels: int, *, scale: float) -> int:
        """Return the channels of the last convolution of a head, see `FBNetHeadConfig.last_scale`."""
        if scale < 0:
            return self.layers.channels(channels * -scale)
        count = self.architecture.last_channels
        return self.layers.channels(int(count * max(self.layers.width, 1)) * scale)
