"""Names of the tensors of the original's region proposal network and R-CNN heads."""

from __future__ import annotations

_MAX_CONVS = 64  # per head

_RPN = [
    ("rpn.anchor_generator.cell_anchors.", "proposals.cell_anchors_"),
    ("rpn.head.conv.", "proposals.head.tower.0."),
    ("rpn.head.0.head.", "proposals.head.tower.blocks."),
    *((f"rpn.head.{name}cls_logits.", "proposals.head.logits.") for name in ("", "1.")),
    *((f"rpn.head.{name}bbox_pred.", "proposals.head.offsets.") for name in ("", "1.")),
]
_BOX = [
    ("roi_heads.box.feature_extractor.xconvs.", "box.body.convs."),
    # With group norm, a linear layer and its norm form a pair.
    ("roi_heads.box.feature_extractor.fc6.0.", "box.body.linears.1."),
    ("roi_heads.box.feature_extractor.fc6.1.", "box.body.linears.2."),
    ("roi_heads.box.feature_extractor.fc7.0.", "box.body.linears.4."),
    ("roi_heads.box.feature_extractor.fc7.1.", "box.body.linears.5."),
    ("roi_heads.box.feature_extractor.fc6.", "box.body.linears.1."),
    ("roi_heads.box.feature_extractor.fc7.", "box.body.linears.3."),
    ("roi_heads.box.feature_extractor.head.", "box.body.0."),
    ("roi_heads.box.predictor.cls_score.", "box.logits."),
    ("roi_heads.box.predictor.bbox_pred.", "box.offsets."),
]


def _convs(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Return the prefixes of a head's convolutions, with and without group norm; the original counts from 1."""
    pairs = []
    for i in range(_MAX_CONVS):
        pairs += [(f"{theirs}{i + 1}.{layer}.", f"{ours}{3 * i + layer}.") for layer in range(2)]
        pairs.append((f"{theirs}{i + 1}.", f"{ours}{2 * i}."))
    return pairs


_MASK = [
    *_convs("roi_heads.mask.feature_extractor.mask_fcn", "heads.mask.body."),
    ("roi_heads.mask.feature_extractor.head.", "heads.mask.body."),
    ("roi_heads.mask.predictor.conv5_mask.", "heads.mask.upsample.0."),
    ("roi_heads.mask.predictor.mask_fcn_logits.", "heads.mask.logits."),
]
_KEYPOINTS = [
    *_convs("roi_heads.keypoint.feature_extractor.conv_fcn", "heads.keypoints.body."),
    ("roi_heads.keypoint.feature_extractor.head.", "heads.keypoints.body."),
    ("roi_heads.keypoint.predictor.kps_score_lowres.", "heads.keypoints.logits."),
]
RCNN_PREFIXES = [*_RPN, *_BOX, *_MASK, *_KEYPOINTS]
"""Prefixes of the names of the same tensors, (the original's, ours). Several of the original belong to one of ours."""
