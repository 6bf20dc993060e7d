"""Feature pyramid: lateral connections, top-down addition, and extra levels above the last map of the backbone.

Source: Lin et al., CVPR 2017 (arXiv:1612.03144); extra levels as in Lin et al., ICCV 2017 (arXiv:1708.02002), or
subsampled as in Detectron.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choices import ExtraLevelSource
from .layers import conv_norm_relu


class FPN(nn.Module):
    """Feature pyramid on the maps of a backbone.

    Args:
        in_channels: channels of the used backbone maps, finest first.
        channels: channels of every level.
        extra_levels: number of extra levels, each half as large as the previous one.
        extra_level_source: `p5` and `c5`: extra levels are computed with stride-2 convolutions, the first one from the
            last level of the pyramid (`p5`) or from the last map of the backbone (`c5`). `max_pool`: every extra level
            contains every second value of the previous level (max pooling with a 1x1 window), as in R-CNN.
        extra_level_relu: True if a ReLU precedes the convolutions of the second and later extra levels.
        norm: normalisation after lateral and output convolutions: `none`, `gn` or `bn`.
        norm_groups: groups of `gn`, see `layers.group_norm`.
        norm_eps: epsilon of `gn` or `bn`.
        relu: True if a ReLU follows these convolutions.
        separable: True if the output convolutions are `SeparableConv`s.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        extra_levels: int = 2,
        extra_level_source: ExtraLevelSource = "p5",
        extra_level_relu: bool = True,
        norm: str = "none",
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
        relu: bool = False,
        separable: bool = False,
    ):
        super().__init__()
        norm_options = {"eps": norm_eps, **({"groups": norm_groups} if norm == "gn" else {})}
        options = {"norm": norm, "norm_options": norm_options, "relu": relu}
        self.lateral = nn.ModuleList(conv_norm_relu(c, channels, 1, **options) for c in in_channels)
        self.output = nn.ModuleList(
            conv_norm_relu(channels, channels, 3, separable=separable, **options) for _ in in_channels
        )
        self.extra_from_c5 = extra_level_source == "c5"
        self.extra_level_relu = extra_level_relu
        first_channels = in_channels[-1] if self.extra_from_c5 else channels
        self.num_pooled_levels = extra_levels if extra_level_source == "max_pool" else 0
        self.extra = nn.ModuleList(
            conv_norm_relu(first_channels if i == 0 else channels, channels, 3, stride=2)
            for i in range(extra_levels - self.num_pooled_levels)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Compute the levels [N, channels, H_l, W_l] from the backbone maps [N, C_i, H_i, W_i], both finest first."""
        top = self.lateral[-1](features[-1])
        levels = [self.output[-1](top)]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.lateral[i](features[i])
            # Not scale_factor=2: a map with an odd side is not exactly twice as large as the one above.
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.output[i](top))
        extra = features[-1] if self.extra_from_c5 else levels[-1]
        # No autocast: on CPUs, torch 2.15 leaves uninitialised memory in outputs and gradients of bfloat16 convolutions
        # with stride 2 whose output has one column. Only these levels have such outputs. The maps are small, so this
        # costs nothing.
        # Files of torch.export cannot contain the context.
        is_affected = extra.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", enabled=False) if is_affected else nullcontext():
            for i, conv in enumerate(self.extra):
                if is_affected:
                    extra = extra.to(next(conv.parameters()).dtype)
                extra = conv(F.relu(extra) if i > 0 and self.extra_level_relu else extra)
                levels.append(extra)
        for _ in range(self.num_pooled_levels):
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return levels
