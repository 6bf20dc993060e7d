"""The original FCOS (`fcos_core`): its weight names, from them and back.

Names are facts about that project; none of its code or text is used. Its configs: `fcos_core_config.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from torch import Tensor

from ..checkpoint import CLASS_HEAD, PIXELS, Checkpoint
from ..config import FCOSConfig
from ..config_backbones import OF_DEFORMABLE
from ..config_text import flat
from .fcos_core_config import config_from_yaml, settings_for
from .structure import require_same, with_prefixes, without_module

log = logging.getLogger(__name__)

_PREFIXES = [
    *((f"backbone.body.stem.{layer}.", f"backbone.{layer}.") for layer in ("conv1", "bn1")),
    ("backbone.body.", "backbone."),
    *((f"backbone.fpn.fpn_inner{i + 2}.", f"fpn.lateral.{i}.") for i in range(3)),
    *((f"backbone.fpn.fpn_layer{i + 2}.", f"fpn.output.{i}.") for i in range(3)),
    *((f"backbone.fpn.top_blocks.p{i + 6}.", f"fpn.extra.{i}.") for i in range(2)),
    ("rpn.head.bbox_tower.", "head.box_tower."),
    ("rpn.head.bbox_pred.", "head.ltrb."),
    ("rpn.head.cls_logits.", CLASS_HEAD),
    *((f"rpn.head.scales.{i}.scale", f"head.scales.{i}") for i in range(5)),
    ("rpn.head.", "head."),
]
"""Beginnings of the names of the same tensors, (the original's, ours)."""
# Layers of a MobileNetV2 block, original -> torchvision: the first block has no expansion.
_FIRST_BLOCK = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_OTHER_BLOCKS = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}

_BACKBONES = ("resnet50", "resnet101", "resnext101_32x8d", "resnext101_64x4d", "mobilenet_v2")
_STRIDES = [8, 16, 32, 64, 128]
FREE = {
    "num_classes": "the rows of the class head",
    **dict.fromkeys(OF_DEFORMABLE, "told where a stage is deformable"),
    **dict.fromkeys(("backbone.weights", "backbone.frozen_stages", "size_ranges", "quality"), "training only"),
    **dict.fromkeys(("detect_in_padding", "keep_empty_boxes"), "on with inclusive boxes"),
    **dict.fromkeys(("pixel_mean", "pixel_std"), "in its config, but for rounding"),
}
"""Options of `model` that may differ from those of the original with the settings that are told, and why."""


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of the original FCOS."""
    return {"rpn.head.cls_logits.bias", "rpn.head.centerness.bias"} <= state.keys()


def rename(name: str) -> str:
    """The name in our model of a tensor of the original's model."""
    renamed = with_prefixes(name, _PREFIXES)
    block = re.match(r"^backbone\.features\.(\d+)\.conv\.(\d)\.", renamed)
    if block:
        layers = _FIRST_BLOCK if block[1] == "1" else _OTHER_BLOCKS
        layer = layers.get(block[2], block[2])
        renamed = f"backbone.features.{block[1]}.conv.{layer}.{renamed[block.end() :]}"
    return renamed


def rename_back(name: str) -> str:
    """The inverse of `rename` for the original's backbones."""
    block = re.match(r"^backbone\.features\.(\d+)\.conv\.(\d(?:\.\d)?)\.", name)
    if block:
        layers = {ours: theirs for theirs, ours in (_FIRST_BLOCK if block[1] == "1" else _OTHER_BLOCKS).items()}
        name = f"backbone.features.{block[1]}.conv.{layers[block[2]]}.{name[block.end() :]}"
    return with_prefixes(name, _PREFIXES, back=True)


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's state dict in the original's names to ours."""
    return {rename(name): tensor for name, tensor in state.items()}


def to_fcos_core(checkpoint: Checkpoint, *, where: str = "weights") -> dict[str, Tensor]:
    """A state dict for the original's model.

    Its YAML says the rest; what it must say is logged as `KEY VALUE` pairs.

    Args:
        checkpoint: of a detector with the original's conventions. Its classes come in the order of their category ids,
            as there.
        where: for messages.

    Raises:
        WeightsError: a detector that the original cannot compute.
    """
    own = flat(FCOSConfig.model_validate(checkpoint.config["model"]).model_dump())
    name = own["backbone.name"] if own["backbone.name"] in _BACKBONES else " or ".join(_BACKBONES)
    built_in = {"backbone.name": name, "strides": _STRIDES}
    require_same({key: own[key] for key in built_in}, built_in, free=(), where=where, project="the original FCOS")
    settings = settings_for(own, len(checkpoint.category_ids))
    there = flat(FCOSConfig.model_validate(config_from_yaml(settings)["model"]).model_dump())
    if name == "mobilenet_v2" and own["backbone.norm"] == "frozen_bn":
        own["backbone.norm"] = "bn"  # it computes the same
    require_same(own, there, free=FREE, where=where, project="the original FCOS")
    pairs = " ".join(f'{key} "{value}"' for key, value in settings.items())
    log.info("%s: beside its defaults the config there needs %s", where, pairs)
    weights = {name: tensor for name, tensor in checkpoint.model.items() if name not in PIXELS}
    order = sorted(range(len(checkpoint.category_ids)), key=checkpoint.category_ids.__getitem__)
    if order != list(range(len(order))):
        weights |= {name: tensor[order] for name, tensor in weights.items() if name.startswith(CLASS_HEAD)}
    return {rename_back(name): tensor for name, tensor in weights.items()}


def convert_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's state dict to torchvision's names: MobileNetV2 is renamed when it has those of its original file.

    Args:
        state: tensors by name; a `module.` in front of every name is dropped (data-parallel training).
    """
    state = without_module(state)
    if "features.1.conv.4.weight" not in state:  # torchvision's first block ends with 2
        return state
    return {rename(f"backbone.{name}").removeprefix("backbone."): tensor for name, tensor in state.items()}
