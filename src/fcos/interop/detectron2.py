"""Conversion of weights of detectron2's FCOS, RetinaNet, Faster, Mask and Keypoint R-CNN, with its exact conventions.

On the same network input the detections are the same. Resized images may differ by one pixel, because detectron2 rounds
the size where this project, like the original FCOS, truncates. The score of a keypoint is its logit here, and its
probability there. Proposals are ranked by probability here, and by logit there, which differs where probabilities are
equal in float32. Names and settings are facts about that project; none of its code is used.

Not visible in the weights are the values of the published configs that are assumed here: anchors, thresholds, pixel
normalisation, the convolution of a block that has the stride. Two things of training differ: RetinaNet's losses are
divided by the number of positives of the batch, not by its moving average, and the losses of sampled anchors and
proposals by the number of samples, which detectron2 fixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import WeightsError
from .anchor_detectors import (
    NUM_C4_SIZES,
    NUM_SIZES,
    by_ratio_first,
    infer_rcnn_section,
    infer_retinanet_section,
    is_c4,
    shared_layers,
    with_background,
)
from .architecture import Converted, Rule, infer_model_section, map_names, shift_number, stacked

_RESNET_RULES: list[Rule] = [
    (r"^backbone\.bottom_up\.(stem\.)?", "backbone."),
    (r"^backbone\.stem\.", "backbone."),
    (r"^backbone\.res(\d)", shift_number("backbone.layer", -1)),
    (r"^roi_heads\.res5\.", "box.body.0.layer4."),
    (r"^((?:backbone|box\.body\.0)\..*)shortcut\.norm\.", r"\1downsample.1."),
    (r"^((?:backbone|box\.body\.0)\..*)shortcut\.", r"\1downsample.0."),
    (r"^((?:backbone|box\.body\.0)\..*)conv(\d)\.norm\.", r"\1bn\2."),
    (r"^(backbone\..*)conv2_offset\.", r"\1conv2.offset."),
]


def _pyramid_rules(finest: int, *, norm: bool = False) -> list[Rule]:
    """Return the renaming rules for a pyramid whose finest level has the stride 2^`finest`."""
    numbered = r"^backbone\.fpn_(lateral|output)(\d)\."
    conv = ".0." if norm else "."
    return [
        (numbered + r"norm\.", lambda m: f"fpn.{m[1]}.{int(m[2]) - finest}.1."),
        (numbered, lambda m: f"fpn.{m[1]}.{int(m[2]) - finest}{conv}"),
        (r"^backbone\.top_block\.p(\d)", shift_number("fpn.extra.", -6)),
    ]


BACKBONE_RULES = [*_RESNET_RULES, *_pyramid_rules(3)]
"""Renaming rules for a ResNet and its pyramid on C3 in detectron2 and in projects built on it."""
_HEAD_RULES: list[Rule] = [
    (r"^head\.cls_subnet\.", "head.cls_tower."),
    (r"^head\.bbox_subnet\.", "head.box_tower."),
    (r"^head\.cls_score\.", "head.logits."),
    (r"^head\.ctrness\.", "head.centerness."),
]
_FCOS_RULES: list[Rule] = [*_HEAD_RULES, (r"^head\.bbox_pred\.", "head.ltrb.")]
_RETINANET_RULES: list[Rule] = [
    *_HEAD_RULES,
    (r"^head\.bbox_pred\.", "head.offsets."),
    (r"^anchor_generator\.cell_anchors\.", "cell_anchors_"),
]
_RCNN_RULES: list[Rule] = [
    (r"^proposal_generator\.anchor_generator\.cell_anchors\.", "proposals.cell_anchors_"),
    (r"^proposal_generator\.rpn_head\.conv\.(weight|bias)$", r"proposals.head.tower.0.\1"),
    (r"^proposal_generator\.rpn_head\.conv\.conv(\d+)\.", lambda m: f"proposals.head.tower.{2 * int(m[1])}."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "proposals.head.logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "proposals.head.offsets."),
    (r"^roi_heads\.box_head\.fc(\d+)\.", lambda m: f"box.body.linears.{2 * int(m[1]) - 1}."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "box.logits."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "box.offsets."),
    (r"^roi_heads\.mask_head\.deconv\.", "heads.mask.upsample.0."),
    (r"^roi_heads\.mask_head\.predictor\.", "heads.mask.logits."),
    (r"^roi_heads\.keypoint_head\.score_lowres\.", "heads.keypoints.logits."),
]
_STACKS = {
    "roi_heads.box_head.conv": "box.body.convs.",
    "roi_heads.mask_head.mask_fcn": "heads.mask.body.",
    "roi_heads.keypoint_head.conv_fcn": "heads.keypoints.body.",
}
"""Convolutions of the heads of an R-CNN, which are numbered from 1 there."""
_COMMON = {"channel_order": "bgr", "pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}
CONVENTIONS = {
    **_COMMON,
    "center_sampling_radius": 1.5,
    "box_loss": "giou",
    "detect_in_padding": True,
    "clip_after_nms": True,
}
"""Options of FCOS that weights do not show, for detectron2 and projects built on it."""
HEAD_CONVENTIONS = {"centerness_on": "box", "regression": "relu_stride"}
_RCNN_CONVENTIONS = {"level_epsilon": 1e-8, "empty_boxes": "remove_last"}
_IMAGE_SIZES: dict[str, Any] = {"short_side": [800], "max_side": 1333}
_RESNEXT_STD = (57.375, 57.12, 58.395)
_RCNN = "roi_heads.box_predictor.cls_score.bias"
_VARIANTS = {
    "roi_heads.box_predictor.0.": "Cascade R-CNN",
    "sem_seg_head.": "Panoptic FPN or a semantic segmentation head",
    "roi_heads.mask_head.coarse_head.": "PointRend",
    "roi_heads.mask_coarse_head.": "PointRend",
}
"""Detectors of detectron2 that are not supported, by a prefix of tensor names."""


def recognizes(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has the tensor names of a detector of detectron2."""
    return "head.cls_score.bias" in state or "proposal_generator.rpn_head.objectness_logits.bias" in state


def convert(state: Mapping[str, Tensor], *, where: str) -> Converted:
    """Return the weights under our names, their original names, and the config that reproduces detectron2's results.

    Args:
        state: state dict with detectron2's tensor names.
        where: source of the weights, for messages.

    Raises:
        WeightsError: the detector, its backbone or its neck is not supported, or a head is damaged.
    """
    _require_supported(state, where=where)
    if _RCNN in state:
        return _convert_rcnn(state, where=where)
    if "head.ctrness.bias" in state:
        return _convert_fcos(state, where=where)
    return _convert_retinanet(state, where=where)


def _require_supported(state: Mapping[str, Tensor], *, where: str) -> None:
    """Raise an error that names the detector if it is one of detectron2 that this project does not have."""
    found = next((title for prefix, title in _VARIANTS.items() if any(n.startswith(prefix) for n in state)), "")
    if not found and "head.cls_score.bias" not in state and _RCNN not in state:
        found = "a region proposal network without box head"
    if not found and _RCNN in state and "backbone.fpn_lateral2.weight" not in state:
        found = "" if any(name.startswith("roi_heads.res5.") for name in state) else "an R-CNN on a dilated C5 (DC5)"
    if found:
        raise WeightsError(
            f"{where}: expected detectron2's FCOS, RetinaNet, Faster, Mask or Keypoint R-CNN with a feature pyramid or"
            f" on C4, found {found}, which is not supported"
        )


def _convert_fcos(state: Mapping[str, Tensor], *, where: str) -> Converted:
    names = map_names(state, [*BACKBONE_RULES, *_FCOS_RULES])
    weights = {name: state[old] for name, old in names.items()}
    section = infer_model_section(weights, where=where)
    section["backbone"]["stride_in_1x1"] = True
    section["head"] |= HEAD_CONVENTIONS
    section |= {**CONVENTIONS, "score_threshold": 0.2, "threshold_on": "score"}
    return Converted(weights, names, {"model": section, "data": _IMAGE_SIZES})


def _convert_retinanet(state: Mapping[str, Tensor], *, where: str) -> Converted:
    names = map_names(state, [*BACKBONE_RULES, *_RETINANET_RULES])
    weights = {name: state[old] for name, old in names.items()}
    layers = ("head.logits.", "head.offsets.", "cell_anchors_")
    weights = by_ratio_first(weights, layers, offsets="head.offsets.bias", num_sizes=NUM_SIZES)
    section = {**infer_retinanet_section(weights, where=where), **_COMMON, "clip_after_nms": True}
    section |= _backbone_conventions(section["backbone"])
    return Converted(weights, names, {"model": section, "data": _IMAGE_SIZES})


def _convert_rcnn(state: Mapping[str, Tensor], *, where: str) -> Converted:
    has_norm = any(name.startswith("backbone.fpn_") and ".norm." in name for name in state)
    rules = [*_RESNET_RULES, *_pyramid_rules(2, norm=has_norm), *_RCNN_RULES, *_stack_rules(state)]
    names = map_names(state, rules)
    names |= shared_layers(names)
    weights = with_background({name: state[old] for name, old in names.items()}, where=where)
    if is_c4(weights):
        layers = ("proposals.head.logits.", "proposals.head.offsets.", "proposals.cell_anchors_")
        weights = by_ratio_first(weights, layers, offsets="proposals.head.offsets.bias", num_sizes=NUM_C4_SIZES)
    section = {**infer_rcnn_section(weights, where=where), **_COMMON, **_RCNN_CONVENTIONS}
    section |= _backbone_conventions(section["backbone"])
    data = {**_IMAGE_SIZES, "size_divisor": 1} if is_c4(weights) else {**_IMAGE_SIZES}
    if "mask" in section:
        data["masks"] = True
    if "keypoints" in section:
        data["keypoints"] = True
        section["box"]["smooth_l1_beta"] = 0.5
        section["proposals"]["train_max_proposals"] = 1500
    return Converted(weights, names, {"model": section, "data": data})


def _stack_rules(state: Mapping[str, Tensor]) -> list[Rule]:
    """Return the renaming rules for the convolutions of the heads of an R-CNN, possibly with a norm after each."""
    rules: list[Rule] = []
    for theirs, ours in _STACKS.items():
        numbered = rf"^{re.escape(theirs)}(\d+)\."
        has_norm = any(re.match(numbered + r"norm\.", name) for name in state)
        step = 3 if has_norm else 2
        rules.append((numbered + r"norm\.", stacked(ours, step=step, first=1, layer=1)))
        rules.append((numbered, stacked(ours, step=step, first=1)))
    return rules


def _backbone_conventions(backbone: dict[str, Any]) -> dict[str, Any]:
    """Set the option of a ResNet that has the value of its ImageNet weights, and return those of the pixels."""
    is_resnext = backbone["name"].startswith("resnext")
    backbone["stride_in_1x1"] = not is_resnext and backbone["norm"] != "gn"
    return {"pixel_std": _RESNEXT_STD} if is_resnext else {}
