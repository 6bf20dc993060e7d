"""Conversion of weights of torchvision's `fcos_resnet50_fpn`, with its exact conventions, in both directions.

On the same network input the detections are the same. The input itself differs slightly: torchvision downscales images
by bilinear interpolation without antialiasing. This project, like the original FCOS, uses Pillow's bilinear filter,
which averages over all pixels.

torchvision's labels start at 1: row 0 of its class head is "background", which has no positive examples. Its COCO
weights have one row for each of the category ids 0..90, eleven of which are not classes of COCO. Such rows are removed
here, as are the filler rows that `to_torchvision` adds. The category id of each remaining row is torchvision's label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

from ..checkpoint import Checkpoint
from ..config import FCOSConfig
from ..config.options import free_options, in_effect, options_of
from ..config.text import flatten
from ..downloads import WebFile
from ..errors import WeightsError
from ..formatting import plural
from .architecture import CLASS_HEAD, changeable_options, count_classes, replace_prefix, require_fcos, require_same

WEIGHTS = {
    "torchvision/fcos_resnet50_fpn": WebFile(
        (FCOS_ResNet50_FPN_Weights.COCO_V1.url,), licence="BSD-3-Clause (torchvision)"
    )
}
"""Weights that can be loaded by name."""
COCO_CLASSES = {
    i: name
    for i, name in enumerate(FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
"""Category ids and names of the 80 classes of COCO."""

_NUM_COCO_ROWS = 91
_COCO_LABELS = range(1, _NUM_COCO_ROWS)
_UNUSED_ROW_BIAS = -10.0
"""Bias of class-head rows without a class in weights for torchvision: their scores are below 0.01 everywhere."""

_PREFIXES = [
    ("backbone.body.", "backbone."),
    *((f"backbone.fpn.inner_blocks.{i}.0.", f"fpn.lateral.{i}.") for i in range(3)),
    *((f"backbone.fpn.layer_blocks.{i}.0.", f"fpn.output.{i}.") for i in range(3)),
    ("backbone.fpn.extra_blocks.p6.", "fpn.extra.0."),
    ("backbone.fpn.extra_blocks.p7.", "fpn.extra.1."),
    ("head.classification_head.conv.", "head.cls_tower."),
    ("head.classification_head.cls_logits.", CLASS_HEAD),
    ("head.regression_head.conv.", "head.box_tower."),
    ("head.regression_head.bbox_reg.", "head.ltrb."),
    ("head.regression_head.bbox_ctrness.", "head.centerness."),
]
"""Prefixes of the names of the same tensors, (torchvision's, ours)."""
_OLD_PREFIXES = [
    *((f"backbone.fpn.inner_blocks.{i}.", f"fpn.lateral.{i}.") for i in range(3)),
    *((f"backbone.fpn.layer_blocks.{i}.", f"fpn.output.{i}.") for i in range(3)),
]
"""Prefixes that torchvision used before 0.13; its COCO weights still have them."""

_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}  # 255 times torchvision's


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of torchvision's FCOS."""
    return {"head.classification_head.cls_logits.bias", "head.regression_head.bbox_ctrness.bias"} <= state.keys()


def to_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's tensors to our names. Unknown names and all rows of the class head are kept."""
    return {_to_our_name(name): tensor for name, tensor in state.items()}


def _to_our_name(name: str) -> str:
    return replace_prefix(name, [*_PREFIXES, *_OLD_PREFIXES])


def to_torchvision_name(name: str) -> str:
    """Return the name in torchvision's model for our name of a tensor."""
    return replace_prefix(name, _PREFIXES, back=True)


def to_torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of our state dict to torchvision's names; inverse of `to_our_names`."""
    return {to_torchvision_name(name): tensor for name, tensor in state.items()}


def model_config(*, frozen_norm: bool = True) -> dict[str, Any]:
    """Return a `model` section that reproduces torchvision's `fcos_resnet50_fpn`.

    Args:
        frozen_norm: freeze batch norm, stem and C2, as torchvision does when it starts from ImageNet weights.
    """
    return {
        "backbone": {
            "name": "resnet50",
            "weights": None,
            "norm": "frozen_bn" if frozen_norm else "bn",
            "frozen_stages": 2 if frozen_norm else 0,
        },
        "head": {"centerness_on": "box", "regression": "relu_stride", "level_scales": False},
        "location": "corner",
        "center_sampling_radius": 1.5,
        "box_loss": "giou",
        "score_threshold": 0.2,
        "threshold_on": "score",
        "detect_in_padding": True,
        "keep_empty_boxes": True,
        **_PIXELS,
    }


def from_torchvision(
    state: Mapping[str, Tensor], *, class_names: Sequence[str] | None = None, where: str = "weights"
) -> Checkpoint:
    """Build a checkpoint from a state dict of torchvision's `fcos_resnet50_fpn`.

    Args:
        state: state dict with any number of classes.
        class_names: [K], in label order. None: names of COCO if the class head has 91 rows, as in torchvision's own
            weights, and uses the rows of all COCO classes; otherwise unknown.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the class head is damaged or has no class, or `class_names` has another length than K.
    """
    weights = to_our_names(state)
    num_rows = count_classes(weights, where=where)
    is_used = (weights[f"{CLASS_HEAD}bias"] != _UNUSED_ROW_BIAS) | weights[f"{CLASS_HEAD}weight"].flatten(1).any(dim=1)
    category_ids = tuple(i for i in range(1, num_rows) if is_used[i])
    if not category_ids:
        raise WeightsError(
            f"{where}: expected at least one class besides background, found a class head with background only"
            f" ({plural(num_rows, 'row')})"
        )
    if class_names is not None and len(class_names) != len(category_ids):
        raise WeightsError(
            f"{where}: the weights have {plural(len(category_ids), 'class')} (the class head has"
            f" {plural(num_rows, 'row')}; row 0 is background), but data.classes has {plural(len(class_names), 'name')}"
        )
    classes = dict(zip(category_ids, class_names or (), strict=False))
    if class_names is None and num_rows == _NUM_COCO_ROWS and COCO_CLASSES.keys() <= set(category_ids):
        classes = COCO_CLASSES
    category_ids = tuple(classes) or category_ids
    for name in (f"{CLASS_HEAD}weight", f"{CLASS_HEAD}bias"):
        weights[name] = weights[name][list(category_ids)]
    weights |= {name: torch.tensor(values).view(3, 1, 1) for name, values in _PIXELS.items()}
    is_frozen = not any(name.endswith(".num_batches_tracked") for name in state)
    return Checkpoint(
        model=weights,
        config={"model": model_config(frozen_norm=is_frozen), "data": {"short_side": [800], "max_side": 1333}},
        class_names=tuple(classes.values()),
        category_ids=category_ids,
        project="torchvision",
        original_names={_to_our_name(name): name for name in state},
    )


def to_torchvision(checkpoint: Checkpoint, *, where: str = "weights") -> dict[str, Tensor]:
    """Build a state dict for `fcos_resnet50_fpn(num_classes=ROWS)`, where ROWS is the length of the class head's bias.

    Args:
        checkpoint: detector with torchvision's conventions, for example one fine-tuned from its weights. Its category
            ids become torchvision's labels if all are in 1..90; otherwise the labels are 1..K in our order.
        where: source of the weights, for messages.

    Raises:
        WeightsError: torchvision's model cannot compute this detector.
    """
    require_fcos(checkpoint, where=where, project="torchvision's fcos_resnet50_fpn")
    sections = checkpoint.config["model"], model_config()
    ours, theirs = (flatten(FCOSConfig.model_validate(section).model_dump()) for section in sections)
    for values in (ours, theirs):
        values["backbone.norm"] = "gn" if values["backbone.norm"] == "gn" else "bn"  # frozen or trainable
    options = options_of(FCOSConfig)
    ours, free = in_effect(ours, options), free_options(options, "torchvision")
    require_same(
        ours,
        theirs,
        free=free,
        changeable=changeable_options(options, checkpoint.project),
        where=where,
        project="torchvision's fcos_resnet50_fpn",
    )
    category_ids = checkpoint.category_ids
    labels = category_ids if all(i in _COCO_LABELS for i in category_ids) else range(1, len(category_ids) + 1)
    weights = {name: tensor for name, tensor in checkpoint.model.items() if name not in _PIXELS}
    for name, fill_value in ((f"{CLASS_HEAD}weight", 0.0), (f"{CLASS_HEAD}bias", _UNUSED_ROW_BIAS)):
        tensor = weights[name]
        weights[name] = tensor.new_full((max(labels) + 1, *tensor.shape[1:]), fill_value)
        weights[name][list(labels)] = tensor
    return to_torchvision_names(weights)
