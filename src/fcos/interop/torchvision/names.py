"""Tensor names of torchvision's detectors, as tables of prefixes (torchvision's, ours)."""

from __future__ import annotations

from collections.abc import Sequence

from ..architecture import CLASS_HEAD

Prefixes = Sequence[tuple[str, str]]


def _pyramid(num_maps: int, *, norm: bool = False) -> list[tuple[str, str]]:
    """Return the prefixes of a ResNet and its pyramid; with `norm`, a norm follows each convolution of the pyramid."""
    index = "" if norm else ".0"
    return [
        ("backbone.body.", "backbone."),
        *((f"backbone.fpn.inner_blocks.{i}{index}.", f"fpn.lateral.{i}.") for i in range(num_maps)),
        *((f"backbone.fpn.layer_blocks.{i}{index}.", f"fpn.output.{i}.") for i in range(num_maps)),
        ("backbone.fpn.extra_blocks.p6.", "fpn.extra.0."),
        ("backbone.fpn.extra_blocks.p7.", "fpn.extra.1."),
    ]


def _old_pyramid(num_maps: int) -> list[tuple[str, str]]:
    return [
        *((f"backbone.fpn.inner_blocks.{i}.", f"fpn.lateral.{i}.") for i in range(num_maps)),
        *((f"backbone.fpn.layer_blocks.{i}.", f"fpn.output.{i}.") for i in range(num_maps)),
    ]


def _convs(theirs: str, ours: str, *, num_convs: int = 4, norm: bool = False) -> list[tuple[str, str]]:
    """Return the prefixes of convolutions, which torchvision groups with their norm and ReLU."""
    step = 3 if norm else 2
    prefixes = [(f"{theirs}{i}.0.", f"{ours}{step * i}.") for i in range(num_convs)]
    return prefixes + [(f"{theirs}{i}.1.", f"{ours}{step * i + 1}.") for i in range(num_convs) if norm]


def _old_convs(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{theirs}{2 * i}.", f"{ours}{2 * i}.") for i in range(4)]


FCOS: Prefixes = [
    *_pyramid(3),
    ("head.classification_head.conv.", "head.cls_tower."),
    ("head.classification_head.cls_logits.", CLASS_HEAD),
    ("head.regression_head.conv.", "head.box_tower."),
    ("head.regression_head.bbox_reg.", "head.ltrb."),
    ("head.regression_head.bbox_ctrness.", "head.centerness."),
]
OLD_FCOS: Prefixes = _old_pyramid(3)
"""Prefixes that torchvision used before 0.13; its COCO weights still have them."""


def retinanet(*, norm: bool) -> Prefixes:
    """Return the prefixes of RetinaNet; `norm`: whether the head has group norm."""
    return [
        *_pyramid(3),
        *_convs("head.classification_head.conv.", "head.cls_tower.", norm=norm),
        *_convs("head.regression_head.conv.", "head.box_tower.", norm=norm),
        ("head.classification_head.cls_logits.", CLASS_HEAD),
        ("head.regression_head.bbox_reg.", "head.offsets."),
    ]


OLD_RETINANET: Prefixes = [
    *_old_pyramid(3),
    *_old_convs("head.classification_head.conv.", "head.cls_tower."),
    *_old_convs("head.regression_head.conv.", "head.box_tower."),
]


def rcnn(*, norm: bool) -> Prefixes:
    """Return the prefixes of Faster, Mask and Keypoint R-CNN.

    Args:
        norm: whether the pyramid and the heads have batch norm (version 2). The box head then has four convolutions and
            one linear layer, otherwise two linear layers.
    """
    box = (
        [*_convs("roi_heads.box_head.", "box.body.convs.", norm=True), ("roi_heads.box_head.5.", "box.body.linears.1.")]
        if norm
        else [(f"roi_heads.box_head.fc{i + 6}.", f"box.body.linears.{2 * i + 1}.") for i in range(2)]
    )
    return [
        *_pyramid(4, norm=norm),
        *_convs("rpn.head.conv.", "proposals.head.tower.", num_convs=2),
        ("rpn.head.cls_logits.", "proposals.head.logits."),
        ("rpn.head.bbox_pred.", "proposals.head.offsets."),
        *box,
        ("roi_heads.box_predictor.cls_score.", "box.logits."),
        ("roi_heads.box_predictor.bbox_pred.", "box.offsets."),
        *_convs("roi_heads.mask_head.", "heads.mask.body.", norm=norm),
        ("roi_heads.mask_predictor.conv5_mask.", "heads.mask.upsample.0."),
        ("roi_heads.mask_predictor.mask_fcn_logits.", "heads.mask.logits."),
        ("roi_heads.keypoint_head.", "heads.keypoints.body."),
        ("roi_heads.keypoint_predictor.kps_score_lowres.", "heads.keypoints.logits."),
    ]


OLD_RCNN: Prefixes = [
    *_old_pyramid(4),
    ("rpn.head.conv.", "proposals.head.tower.0."),
    *((f"roi_heads.mask_head.mask_fcn{i + 1}.", f"heads.mask.body.{2 * i}.") for i in range(4)),
]
