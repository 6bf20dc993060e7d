"""DLA-34 (deep layer aggregation) as a feature extractor.

Source: Yu et al., CVPR 2018 (arXiv:1707.06484).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..layers import NORMS
from .pretrained import load_pretrained
from .stages import STRIDES, Stages

_STAGES = {
    "stem": ["base_layer", "level0", "level1"],
    "C2": ["level2"],
    "C3": ["level3"],
    "C4": ["level4"],
    "C5": ["level5"],
}
_CHANNELS = (16, 32, 64, 128, 256, 512)
_UNUSED_PROJECTIONS = ("level3.project.", "level4.project.")
Norm = Callable[[int], nn.Module]


class DLA34(Stages):
    """DLA-34 with maps C2 to C5 (64, 128, 256, 512 channels).

    Parameters are named as in the authors' weights, so that these load. The authors' weights contain two more
    projections, which do not affect the output and are ignored.

    Args:
        name: backbone name, which selects the weights for `imagenet`.
        weights: source of the weights, see `pretrained.imagenet_weights`; None: random initialisation.
        norm: normalisation: `bn`, `sync_bn` or `frozen_bn`.
        frozen_stages: number of frozen stages, counted from the stem: (stem, C2, C3, C4, C5).
    """

    def __init__(self, *, name: str = "dla34", weights: str | None = None, norm: str = "bn", frozen_stages: int = 0):
        super().__init__()
        layer: Norm = NORMS[norm]
        c0, c1, c2, c3, c4, c5 = _CHANNELS
        self.base_layer = _conv_norm_relu(3, c0, 7, 1, layer)
        self.level0 = _conv_norm_relu(c0, c0, 3, 1, layer)
        self.level1 = _conv_norm_relu(c0, c1, 3, 2, layer)
        self.level2 = Tree(c1, c2, stride=2, norm=layer)
        self.level3 = DeepTree(c2, c3, norm=layer)
        self.level4 = DeepTree(c3, c4, norm=layer)
        self.level5 = Tree(c4, c5, stride=2, norm=layer, keeps_input=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.register_load_state_dict_pre_hook(_drop_unused_projections)
        if weights is not None:
            load_pretrained(self, name, weights)
        self.channels = {"C2": c2, "C3": c3, "C4": c4, "C5": c5}
        self.strides = dict(STRIDES)
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the maps C2 to C5 of normalised images [N, 3, H, W]."""
        return self._maps(images)

    def _stages(self) -> dict[str, list[str]]:
        return _STAGES


class Tree(nn.Module):
    """Two residual blocks in sequence, and a root that combines their outputs with other maps.

    Args:
        in_channels: channels of the input.
        channels: channels of the blocks and of the output.
        stride: stride of the first block.
        norm: function that builds a norm from its number of channels.
        keeps_input: whether the root also gets the (downsampled) input.
        extra_channels: total channels of the other maps that `forward` passes to the root.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        norm: Norm,
        keeps_input: bool = False,
        extra_channels: int = 0,
    ):
        super().__init__()
        self.keeps_input = keeps_input
        self.tree1 = Block(in_channels, channels, stride, norm)
        self.tree2 = Block(channels, channels, 1, norm)
        self.root = Root(2 * channels + extra_channels + (in_channels if keeps_input else 0), channels, norm)
        self.downsample = nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.project = (
            nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), norm(channels))
            if in_channels != channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, extra_maps: Sequence[Tensor] = ()) -> Tensor:
        """Map [N, in_channels, H, W] to [N, channels, H / stride, W / stride] (rounded up).

        Args:
            x: input map.
            extra_maps: other maps for the root, of the size of the output.
        """
        downsampled = self.downsample(x)
        first = self.tree1(x, self.project(downsampled))
        second = self.tree2(first, first)
        return self.root([second, first, *([downsampled] if self.keeps_input else []), *extra_maps])


class DeepTree(nn.Module):
    """Two trees in sequence, the first with stride 2.

    The root of the second tree also gets the downsampled input and the output of the first tree.
    """

    def __init__(self, in_channels: int, channels: int, *, norm: Norm):
        super().__init__()
        self.downsample = nn.MaxPool2d(2, ceil_mode=True)
        self.tree1 = Tree(in_channels, channels, stride=2, norm=norm)
        self.tree2 = Tree(channels, channels, stride=1, norm=norm, extra_channels=in_channels + channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to [N, channels, H / 2, W / 2] (rounded up)."""
        first = self.tree1(x)
        return self.tree2(first, [self.downsample(x), first])


class Block(nn.Module):
    """Residual block of two 3x3 convolutions; the caller computes the residual."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1, self.bn1 = conv(in_channels, channels, stride=stride), norm(channels)
        self.conv2, self.bn2 = conv(channels, channels), norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map [N, in_channels, H, W] to the shape of `residual`, which is added to the convolutions' output."""
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + residual)


class Root(nn.Module):
    """Concatenation of several maps of the same size, followed by a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, norm: Norm):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(in_channels, channels, 1, bias=False), norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Combine maps that have `in_channels` channels in total to one map [N, channels, H, W]."""
        return self.relu(self.bn(self.conv(torch.cat(list(maps), dim=1))))


def _drop_unused_projections(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: object) -> None:
    for name in [name for name in state if name.removeprefix(prefix).startswith(_UNUSED_PROJECTIONS)]:
        del state[name]


def _conv_norm_relu(in_channels: int, channels: int, kernel_size: int, stride: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, norm(channels), nn.ReLU(inplace=True))
