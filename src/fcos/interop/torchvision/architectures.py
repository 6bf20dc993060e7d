"""Detectors of torchvision that can be converted: their options, tensor names and COCO weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    FCOS_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from ...downloads import WebFile
from ..architecture import replace_prefix
from . import names
from .names import Prefixes

PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}  # 255 times torchvision's
_COMMON: dict[str, Any] = {"location": "corner", **PIXELS}
_FCOS: dict[str, Any] = {
    "head": {"centerness_on": "box", "regression": "relu_stride", "level_scales": False},
    "center_sampling_radius": 1.5,
    "box_loss": "giou",
    "score_threshold": 0.2,
    "threshold_on": "score",
    "detect_in_padding": True,
    "keep_empty_boxes": True,
}
_RETINANET: dict[str, Any] = {
    "name": "retinanet",
    "fpn": {"extra_level_source": "p5"},
    "anchor_sizes": [[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)],
    "scales_per_octave": 1,
    "anchor_rounding": "corners",
    "offset_weights": (1.0, 1.0, 1.0, 1.0),
    "smooth_l1_beta": 0.0,
    "box_loss_divisor": 1.0,
    "nms_threshold": 0.5,
    "max_detections": 300,
    "detect_in_padding": True,
    "keep_empty_boxes": True,
}
_RETINANET_V2: dict[str, Any] = {
    **_RETINANET,
    "fpn": {"extra_level_source": "c5"},
    "head": {"norm": "gn", "conv_bias": False},
    "box_loss": "giou",
}
_PROPOSALS = {"min_size": 1e-3, "in_padding": True}
_RCNN: dict[str, Any] = {
    "name": "rcnn",
    "anchor_rounding": "corners",
    "proposals": _PROPOSALS,
    "box": {"smooth_l1_beta": 1 / 9},
    "min_size": 0.01,
    "pre_nms_top_k": 20_000,  # not a limit: fewer than 20 classes of each of 1,000 proposals can have scores above 0.05
}
_RCNN_V2: dict[str, Any] = {
    **_RCNN,
    "fpn": {"norm": "bn"},
    "proposals": {**_PROPOSALS, "num_convs": 2},
    "box": {**_RCNN["box"], "num_convs": 4, "conv_norm": "bn", "num_linears": 1},
}
_MASK = {"enabled": True, "margin": 1.0}


@dataclass(frozen=True)
class Architecture:
    """Detector that a function of `torchvision.models.detection` builds.

    Attributes:
        coco: its COCO weights.
        section: options of `model` that reproduce it, without those of the backbone.
        prefixes: prefixes of the names of the same tensors, (torchvision's, ours).
        old_prefixes: further prefixes that torchvision used before 0.13; its older COCO weights still have them.
        had_no_epsilon: whether torchvision's COCO weights were trained with frozen batch norm without epsilon, which
            its function also uses when it loads them.
    """

    coco: WeightsEnum
    section: Mapping[str, Any]
    prefixes: Prefixes
    old_prefixes: Prefixes = ()
    had_no_epsilon: bool = False

    def to_our_name(self, name: str) -> str:
        """Return our name of a tensor for torchvision's. Unknown names are kept."""
        return replace_prefix(name, [*self.prefixes, *self.old_prefixes])

    def to_torchvision_name(self, name: str) -> str:
        """Return torchvision's name of a tensor for ours. Unknown names are kept."""
        return replace_prefix(name, self.prefixes, back=True)


ARCHITECTURES = {
    "fcos_resnet50_fpn": Architecture(
        FCOS_ResNet50_FPN_Weights.COCO_V1, {**_COMMON, **_FCOS}, names.FCOS, names.OLD_FCOS
    ),
    "retinanet_resnet50_fpn": Architecture(
        RetinaNet_ResNet50_FPN_Weights.COCO_V1,
        {**_COMMON, **_RETINANET},
        names.retinanet(norm=False),
        names.OLD_RETINANET,
        had_no_epsilon=True,
    ),
    "retinanet_resnet50_fpn_v2": Architecture(
        RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1, {**_COMMON, **_RETINANET_V2}, names.retinanet(norm=True)
    ),
    "fasterrcnn_resnet50_fpn": Architecture(
        FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        {**_COMMON, **_RCNN},
        names.rcnn(norm=False),
        names.OLD_RCNN,
        had_no_epsilon=True,
    ),
    "fasterrcnn_resnet50_fpn_v2": Architecture(
        FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, {**_COMMON, **_RCNN_V2}, names.rcnn(norm=True)
    ),
    "maskrcnn_resnet50_fpn": Architecture(
        MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        {**_COMMON, **_RCNN, "mask": _MASK},
        names.rcnn(norm=False),
        names.OLD_RCNN,
        had_no_epsilon=True,
    ),
    "maskrcnn_resnet50_fpn_v2": Architecture(
        MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
        {**_COMMON, **_RCNN_V2, "mask": {**_MASK, "norm": "bn"}},
        names.rcnn(norm=True),
    ),
    "keypointrcnn_resnet50_fpn": Architecture(
        KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
        {**_COMMON, **_RCNN, "keypoints": {"enabled": True}},
        names.rcnn(norm=False),
        names.OLD_RCNN,
        had_no_epsilon=True,
    ),
}
"""Detectors by the name of torchvision's function."""
WEIGHTS = {
    f"torchvision/{name}": WebFile((architecture.coco.url,), licence="BSD-3-Clause (torchvision)")
    for name, architecture in ARCHITECTURES.items()
}
"""Weights that can be loaded by name."""


_BOX_BIASES = {"head.regression_head.bbox_reg.bias", "head.regression_head.bbox_ctrness.bias"}


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of torchvision's FCOS, RetinaNet or R-CNN."""
    is_one_stage = "head.classification_head.cls_logits.bias" in state and not _BOX_BIASES.isdisjoint(state)
    return is_one_stage or "roi_heads.box_predictor.cls_score.bias" in state


def find_architecture(state: Mapping[str, Tensor]) -> str:
    """Return the name of torchvision's function that builds the detector of a state dict with its names."""
    if "roi_heads.box_predictor.cls_score.bias" in state:
        heads = {"mask": "mask_predictor.mask_fcn_logits.bias", "keypoint": "keypoint_predictor.kps_score_lowres.bias"}
        kind = next((kind for kind, name in heads.items() if f"roi_heads.{name}" in state), "faster")
        return f"{kind}rcnn_resnet50_fpn{'_v2' if 'roi_heads.box_head.0.0.weight' in state else ''}"
    if "head.regression_head.bbox_ctrness.bias" in state or "head.regression_head.bbox_reg.bias" not in state:
        return "fcos_resnet50_fpn"
    has_norm = "head.classification_head.conv.0.1.weight" in state
    return f"retinanet_resnet50_fpn{'_v2' if has_norm else ''}"


def choose_architecture(section: Mapping[str, Any]) -> str | None:
    """Return the name of torchvision's function that is closest to a complete `model` section; None: there is none."""
    if section["name"] == "rcnn":
        heads = [kind for kind, key in (("mask", "mask"), ("keypoint", "keypoints")) if section[key]["enabled"]]
        kind = heads[0] if heads else "faster"
        is_new = kind != "keypoint" and section["box"]["num_convs"] > 0
        return f"{kind}rcnn_resnet50_fpn{'_v2' if is_new else ''}"
    is_new = section["name"] == "retinanet" and section["head"]["norm"] == "gn"
    name = f"{section['name']}_resnet50_fpn{'_v2' if is_new else ''}"
    return name if name in ARCHITECTURES else None
