"""torchvision's `fcos_resnet50_fpn`: its weights into our detector with its exact conventions, and back.

On the same network input the detections are the same. The input itself differs a little: torchvision shrinks images by
bilinear interpolation without antialiasing, we, as the original FCOS, with Pillow's bilinear filter, which averages
over all pixels.

torchvision's labels begin with 1: row 0 of its class head is "background" and only ever learns to say no. Its COCO
weights have a row for each of the category ids 0..90, eleven of which are no class of COCO. Such rows are left out
here, and so are those that `to_torchvision` fills in; what remains has torchvision's label as its category id.
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
from .architecture import CLASS_HEAD, class_rows, require_fcos, require_same, with_prefixes

WEIGHTS = {
    "torchvision/fcos_resnet50_fpn": WebFile(
        (FCOS_ResNet50_FPN_Weights.COCO_V1.url,), licence="BSD-3-Clause (torchvision)"
    )
}
"""What can be loaded by name."""
COCO_CLASSES = {
    i: name
    for i, name in enumerate(FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
"""Category ids and names of the 80 classes of COCO."""

_ROWS_OF_COCO = 91
_LABELS_OF_COCO = range(1, _ROWS_OF_COCO)
_NEVER = -10.0
"""Logit of the rows that are no class, in weights for torchvision: a score below 0.01 everywhere."""

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
"""Beginnings of the names of the same tensors, (torchvision's, ours)."""
_OLD_PREFIXES = [
    *((f"backbone.fpn.inner_blocks.{i}.", f"fpn.lateral.{i}.") for i in range(3)),
    *((f"backbone.fpn.layer_blocks.{i}.", f"fpn.output.{i}.") for i in range(3)),
]
"""As torchvision wrote them before 0.13, its COCO weights among them."""

_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}  # 255 times torchvision's


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of torchvision's FCOS."""
    return {"head.classification_head.cls_logits.bias", "head.regression_head.bbox_ctrness.bias"} <= state.keys()


def from_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in torchvision's names to ours; unknown names stay. All rows of the class head stay, too."""
    return {_our_name(name): tensor for name, tensor in state.items()}


def _our_name(name: str) -> str:
    return with_prefixes(name, [*_PREFIXES, *_OLD_PREFIXES])


def name_back(name: str) -> str:
    """The name in torchvision's model of a tensor of ours."""
    return with_prefixes(name, _PREFIXES, back=True)


def to_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_names`."""
    return {name_back(name): tensor for name, tensor in state.items()}


def model_config(*, frozen_norm: bool = True) -> dict[str, Any]:
    """The section `model` that computes what torchvision's `fcos_resnet50_fpn` does.

    Args:
        frozen_norm: batch norm does not learn, nor do stem and C2, as where torchvision starts from ImageNet.
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
    """A checkpoint from the state dict of torchvision's `fcos_resnet50_fpn`.

    Args:
        state: with any number of classes.
        class_names: of the labels, in their order; None: those of COCO where the class head has 91 rows, which is
            torchvision's own number, and all of COCO's are used, else unknown.
        where: for messages.

    Raises:
        WeightsError: another number of names than of classes; a damaged class head.
    """
    weights = from_names(state)
    rows = class_rows(weights, where=where)
    used = (weights[f"{CLASS_HEAD}bias"] != _NEVER) | weights[f"{CLASS_HEAD}weight"].flatten(1).any(dim=1)
    ids = tuple(i for i in range(1, rows) if used[i])
    if not ids:
        raise WeightsError(
            f"{where}: expected at least one class, found a class head of background alone ({rows} rows)"
        )
    if class_names is not None and len(class_names) != len(ids):
        raise WeightsError(
            f"{where}: has {len(ids)} classes (of {rows} rows in the class head, the first is background), found"
            f" {len(class_names)} names in data.classes"
        )
    classes = dict(zip(ids, class_names or (), strict=False))
    if class_names is None and rows == _ROWS_OF_COCO and COCO_CLASSES.keys() <= set(ids):
        classes = COCO_CLASSES
    ids = tuple(classes) or ids
    for name in (f"{CLASS_HEAD}weight", f"{CLASS_HEAD}bias"):
        weights[name] = weights[name][list(ids)]
    weights |= {name: torch.tensor(values).view(3, 1, 1) for name, values in _PIXELS.items()}
    frozen = not any(name.endswith(".num_batches_tracked") for name in state)
    return Checkpoint(
        model=weights,
        config={"model": model_config(frozen_norm=frozen), "data": {"short_side": [800], "max_side": 1333}},
        class_names=tuple(classes.values()),
        category_ids=ids,
        project="torchvision",
        original_names={_our_name(name): name for name in state},
    )


def to_torchvision(checkpoint: Checkpoint, *, where: str = "weights") -> dict[str, Tensor]:
    """A state dict for `fcos_resnet50_fpn(num_classes=ROWS)`, ROWS being the length of its class head's bias.

    Args:
        checkpoint: of a detector with torchvision's conventions, one that was fine-tuned from its weights for example.
            Where the category ids are all 1..90 they become the labels there, else the labels are 1..K in our order.
        where: for messages.

    Raises:
        WeightsError: a detector that torchvision's model cannot compute.
    """
    require_fcos(checkpoint, where=where, project="torchvision's fcos_resnet50_fpn")
    sections = checkpoint.config["model"], model_config()
    own, there = (flatten(FCOSConfig.model_validate(section).model_dump()) for section in sections)
    for options in (own, there):
        options["backbone.norm"] = "gn" if options["backbone.norm"] == "gn" else "bn"  # frozen or not
    options = options_of(FCOSConfig)
    own, free = in_effect(own, options), free_options(options, "torchvision")
    require_same(own, there, free=free, where=where, project="torchvision's fcos_resnet50_fpn")
    ids = checkpoint.category_ids
    labels = ids if all(i in _LABELS_OF_COCO for i in ids) else range(1, len(ids) + 1)
    weights = {name: tensor for name, tensor in checkpoint.model.items() if name not in _PIXELS}
    for name, filling in ((f"{CLASS_HEAD}weight", 0.0), (f"{CLASS_HEAD}bias", _NEVER)):
        tensor = weights[name]
        weights[name] = tensor.new_full((max(labels) + 1, *tensor.shape[1:]), filling)
        weights[name][list(labels)] = tensor
    return to_names(weights)
