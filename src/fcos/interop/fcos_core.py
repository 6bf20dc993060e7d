"""The original FCOS (`fcos_core`): its weight names.

Names are facts about that project; none of its code or text is used. Its configs: `fcos_core_config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_NAMES = [
    (r"^backbone\.body\.stem\.", "backbone."),
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.fpn_inner(\d)", lambda m: f"fpn.lateral.{int(m[1]) - 2}"),
    (r"^backbone\.fpn\.fpn_layer(\d)", lambda m: f"fpn.output.{int(m[1]) - 2}"),
    (r"^backbone\.fpn\.top_blocks\.p(\d)", lambda m: f"fpn.extra.{int(m[1]) - 6}"),
    (r"^rpn\.head\.bbox_tower\.", "head.box_tower."),
    (r"^rpn\.head\.bbox_pred\.", "head.ltrb."),
    (r"^rpn\.head\.cls_logits\.", "head.logits."),
    (r"^rpn\.head\.scales\.(\d+)\.scale$", r"head.scales.\1"),
    (r"^rpn\.head\.", "head."),
]
# Layers of a MobileNetV2 block, original -> torchvision: the first block has no expansion.
_FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_OTHER_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}


def rename(name: str) -> str:
    """The name in our model of a tensor of the original's model."""
    for pattern, replacement in _NAMES:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            break
    else:
        renamed = name
    block = re.match(r"^backbone\.features\.(\d+)\.conv\.(\d)\.", renamed)
    if block:
        layers = _FIRST_BLOCK if block[1] == "1" else _OTHER_BLOCKS
        layer = layers.get(block[2], block[2])
        renamed = f"backbone.features.{block[1]}.conv.{layer}.{renamed[block.end() :]}"
    return renamed


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's state dict in the original's names to ours.

    Args:
        state: tensors by name; a `module.` in front of every name is dropped (data-parallel training).
    """
    return {rename(name): tensor for name, tensor in _without_module(state).items()}


def convert_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict to torchvision's names: MobileNetV2 is renamed when it has those of its original file.

    Args:
        state: as in `convert_state_dict`.
    """
    state = _without_module(state)
    if "features.1.conv.4.weight" not in state:  # torchvision's first block ends with 2
        return state
    return {rename(f"backbone.{name}").removeprefix("backbone."): tensor for name, tensor in state.items()}


def _without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shared = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(shared): tensor for name, tensor in state.items()}
