"""The feature pyramid: lateral connections, top-down addition, and further levels above the backbone's last.

Source: Lin et al., CVPR 2017 (arXiv:1612.03144); levels above as in Lin et al., ICCV 2017 (arXiv:1708.02002).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..choices import ExtraLevelSource
from .layers import conv_norm_relu


class FPN(nn.Module):
    """Pyramid over the backbone's maps.

    Args:
        in_channels: channels of the used backbone maps, finest first.
        channels: channels of every level.
        extra_levels: how many stride-2 levels to add on top.
        extra_level_source: compute the first of them from the pyramid's last level (`p5`) or the backbone's (`c5`).
        norm: `none` or `gn`, on lateral and output convolutions.
        relu: a ReLU after those convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        extra_levels: int = 2,
        extra_level_source: ExtraLevelSource = "p5",
        norm: str = "none",
        relu: bool = False,
    ):
        super().__init__()
        self.lateral = nn.ModuleList(conv_norm_relu(c, channels, 1, norm=norm, relu=relu) for c in in_channels)
        self.output = nn.ModuleList(conv_norm_relu(channels, channels, 3, norm=norm, relu=relu) for _ in in_channels)
        self.extra_from_c5 = extra_level_source == "c5"
        first = in_channels[-1] if self.extra_from_c5 else channels
        self.extra = nn.ModuleList(
            conv_norm_relu(first if i == 0 else channels, channels, 3, stride=2) for i in range(extra_levels)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps [N, C_i, H_i, W_i], finest first, to levels [N, channels, H_l, W_l], finest first."""
        top = self.lateral[-1](features[-1])
        levels = [self.output[-1](top)]
        for i in range(len(features) - 2, -1, -1):
            lateral = self.lateral[i](features[i])
            # To the lateral's size: an odd map is not exactly twice the one above.
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.output[i](top))
        extra = features[-1] if self.extra_from_c5 else levels[-1]
        # Not in bfloat16: with stride 2 to a map of one column, as only these levels have it, torch 2.15 on CPUs leaves
        # uninitialised memory in outputs and gradients. The maps are small, so it costs nothing.
        with torch.autocast(extra.device.type, enabled=False):
            for i, conv in enumerate(self.extra):
                extra = extra.to(next(conv.parameters()).dtype)
                extra = conv(F.relu(extra) if i > 0 else extra)
                levels.append(extra)
        return levels
