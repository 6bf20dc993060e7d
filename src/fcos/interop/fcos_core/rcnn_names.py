"""Names of the tensors of the original's region proposal network and R-CNN heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_CONVS = 64  # per head
Prefixes = list[tuple[str, str]]
"""Prefixes of the names of the same tensors, (the original's, ours)."""


def _rpn_prefixes(layers: str) -> Prefixes:
    tower, predictions = ("0.head.", "1.") if layers == "backbone" else ("conv.", "")
    return [
        (f"rpn.head.{tower}", "proposals.head.tower." + ("blocks." if layers == "backbone" else "0.")),
        (f"rpn.head.{predictions}cls_logits.", "proposals.head.logits."),
        (f"rpn.head.{predictions}bbox_pred.", "proposals.head.offsets."),
    ]


def _linear_prefixes(norm: str) -> Prefixes:
    """Return the prefixes of the box head's linear layers; with group norm, a layer and its norm form a pair."""
    numbers = {"fc6.": 1, "fc7.": 3} if norm == "none" else {"fc6.0.": 1, "fc6.1.": 2, "fc7.0.": 4, "fc7.1.": 5}
    start = "roi_heads.box.feature_extractor."
    return [(f"{start}{name}", f"box.body.linears.{number}.") for name, number in numbers.items()]


def _conv_prefixes(theirs: str, ours: str, norm: str) -> Prefixes:
    """Return the prefixes of a head's convolutions, and of their norms if there are any; the original counts from 1."""
    if norm == "none":
        return [(f"{theirs}{i + 1}.", f"{ours}{2 * i}.") for i in range(_MAX_CONVS)]
    return [(f"{theirs}{i + 1}.{layer}.", f"{ours}{3 * i + layer}.") for i in range(_MAX_CONVS) for layer in range(2)]


def _mask_prefixes(norm: str) -> Prefixes:
    return _conv_prefixes("roi_heads.mask.feature_extractor.mask_fcn", "heads.mask.body.", norm)


_ANCHORS = [("rpn.anchor_generator.cell_anchors.", "proposals.cell_anchors_")]
_KEYPOINTS = _conv_prefixes("roi_heads.keypoint.feature_extractor.conv_fcn", "heads.keypoints.body.", "none")
_REST = [
    ("roi_heads.box.feature_extractor.xconvs.", "box.body.convs."),
    ("roi_heads.box.feature_extractor.head.", "box.body.0."),
    ("roi_heads.box.predictor.cls_score.", "box.logits."),
    ("roi_heads.box.predictor.bbox_pred.", "box.offsets."),
    ("roi_heads.mask.feature_extractor.head.", "heads.mask.body."),
    ("roi_heads.mask.predictor.conv5_mask.", "heads.mask.upsample.0."),
    ("roi_heads.mask.predictor.mask_fcn_logits.", "heads.mask.logits."),
    ("roi_heads.keypoint.feature_extractor.head.", "heads.keypoints.body."),
    ("roi_heads.keypoint.predictor.kps_score_lowres.", "heads.keypoints.logits."),
]
RCNN_PREFIXES: Prefixes = [
    *_ANCHORS,
    *(pair for layers in ("own", "backbone") for pair in _rpn_prefixes(layers)),
    *(pair for norm in ("gn", "none") for pair in (*_linear_prefixes(norm), *_mask_prefixes(norm))),
    *_KEYPOINTS,
    *_REST,
]
"""Prefixes of all detectors. Several of the original's belong to one of ours."""


def prefixes_of(section: Mapping[str, Any]) -> Prefixes:
    """Return the prefixes of the detector with a `model` section of ours, one of the original's for each of ours."""
    prefixes = [*_ANCHORS, *_rpn_prefixes(section["proposals"]["layers"])]
    if section["name"] == "rpn":
        return prefixes
    box, mask, keypoints = (section[part] for part in ("box", "mask", "keypoints"))
    prefixes += _linear_prefixes(box["linear_norm"])
    prefixes += _mask_prefixes(mask["norm"]) if mask["layers"] == "own" else []
    return prefixes + (_KEYPOINTS if keypoints["layers"] == "own" else []) + _REST
