"""Config keys of the original's R-CNN detectors and our options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...formatting import quote
from .bodies import BODIES
from .rows import Row, same

_UNLIMITED = 10**9
_BOX_LAYERS = {
    "FPN2MLPFeatureExtractor": ("own", 2),
    "FPNXconv1fcFeatureExtractor": ("own", 1),
    "ResNet50Conv5ROIFeatureExtractor": ("backbone", 2),
    "FBNet.roi_head": ("backbone", 2),
}
"""Our options `box.layers` and `box.num_linears` by MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR."""
_WITH_CONVS = "FPNXconv1fcFeatureExtractor"
_NAMES = {
    "MODEL.RPN.RPN_HEAD": ("SingleConvRPNHead", "FBNet.rpn_head"),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": tuple(_BOX_LAYERS),
    "MODEL.ROI_BOX_HEAD.PREDICTOR": ("FastRCNNPredictor", "FPNPredictor"),
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": (
        *("MaskRCNNFPNFeatureExtractor", "ResNet50Conv5ROIFeatureExtractor", "FBNet.roi_head_mask"),
    ),
    "MODEL.ROI_MASK_HEAD.PREDICTOR": ("MaskRCNNC4Predictor", "MaskRCNNConv1x1Predictor"),
    "MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR": ("KeypointRCNNFeatureExtractor", "FBNet.roi_head_keypoints"),
    "MODEL.ROI_KEYPOINT_HEAD.PREDICTOR": ("KeypointRCNNPredictor",),
}
"""Values of the keys that name a part of the detector."""
_SWITCHES = {"MODEL.ROI_MASK_HEAD.": "MODEL.MASK_ON", "MODEL.ROI_KEYPOINT_HEAD.": "MODEL.KEYPOINT_ON"}
"""Keys that enable the heads, by the beginning of the keys of the head."""


def _ours(keys: tuple[str, ...] | str, options: tuple[str, ...] | str, ours: Callable[..., Any], only: str) -> Row:
    """Map keys to options, in this direction only; a function for a single option returns its value."""
    if isinstance(options, str):
        return Row((keys,) if isinstance(keys, str) else keys, (options,), lambda *values: (ours(*values),), only=only)
    return Row((keys,) if isinstance(keys, str) else keys, options, ours, only=only)


def _rpn(key: str, option: str) -> Row:
    return same(f"MODEL.RPN.{key}", f"model.proposals.{option}", "two_stage")


def _limits(when: str, prefix: str) -> Row:
    """Map the limits on proposals; the original limits all levels together only if there are several."""
    keys = ("MODEL.RPN.USE_FPN", f"MODEL.RPN.POST_NMS_TOP_N_{when}", f"MODEL.RPN.FPN_POST_NMS_TOP_N_{when}")
    options = (f"model.proposals.{prefix}post_nms_top_k", f"model.proposals.{prefix}max_proposals")
    return _ours(keys, options, lambda is_pyramid, level, every: (level, every if is_pyramid else level), "two_stage")


def _pooler(head: str, section: str) -> list[Row]:
    keys = {"POOLER_RESOLUTION": "resolution", "POOLER_SAMPLING_RATIO": "sampling_ratio"}
    return [same(f"MODEL.{head}.{key}", f"model.{section}.{option}", "rcnn") for key, option in keys.items()]


def _anchor_sizes(is_pyramid: bool, sizes: list[float]) -> list[list[float]]:
    return [[size] for size in sizes] if is_pyramid else [list(sizes)]


def _mask_layers(extractor: str, is_shared: bool) -> str:
    if extractor == "MaskRCNNFPNFeatureExtractor":
        return "own"
    return "box" if is_shared else "backbone"


def _norm(is_gn: bool) -> str:
    return "gn" if is_gn else "none"


RCNN_ROWS = [
    # Levels and anchors.
    _ours(
        "MODEL.BACKBONE.CONV_BODY",
        ("model.fpn.enabled", "model.fpn.extra_level_source"),
        lambda body: (BODIES[body].end == "fpn", "max_pool"),
        "two_stage",
    ),
    _ours("MODEL.RPN.ANCHOR_STRIDE", "model.strides", list, "two_stage"),
    _ours(("MODEL.RPN.USE_FPN", "MODEL.RPN.ANCHOR_SIZES"), "model.anchor_sizes", _anchor_sizes, "two_stage"),
    same("MODEL.RPN.ASPECT_RATIOS", "model.anchor_ratios", "two_stage"),
    Row((), ("model.anchor_rounding",), lambda: ("base",), only="two_stage"),
    Row((), ("model.loss_average",), lambda: ("batch",), only="two_stage"),
    # The region proposal network.
    _ours(
        "MODEL.RPN.RPN_HEAD",
        "model.proposals.layers",
        lambda head: "own" if head == "SingleConvRPNHead" else "backbone",
        "two_stage",
    ),
    _rpn("FG_IOU_THRESHOLD", "foreground_iou"),
    _rpn("BG_IOU_THRESHOLD", "background_iou"),
    _ours(
        "MODEL.RPN.STRADDLE_THRESH",
        "model.proposals.straddle_threshold",
        lambda pixels: pixels if pixels >= 0 else 10**6,  # a negative number means no limit
        "two_stage",
    ),
    _rpn("BATCH_SIZE_PER_IMAGE", "samples_per_image"),
    _rpn("POSITIVE_FRACTION", "positive_fraction"),
    _rpn("PRE_NMS_TOP_N_TRAIN", "train_pre_nms_top_k"),
    _rpn("PRE_NMS_TOP_N_TEST", "pre_nms_top_k"),
    _limits("TRAIN", "train_"),
    _limits("TEST", ""),
    # The original limits the proposals of a batch only if there are several levels.
    same("MODEL.RPN.USE_FPN", "model.proposals.limit_per_batch", "two_stage"),
    _rpn("NMS_THRESH", "nms_threshold"),
    _rpn("MIN_SIZE", "min_size"),
    # The box head.
    _ours(
        "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR",
        ("model.box.layers", "model.box.num_linears"),
        lambda extractor: _BOX_LAYERS[extractor],
        "rcnn",
    ),
    _ours(
        ("MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR", "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS", "MODEL.ROI_BOX_HEAD.USE_GN"),
        ("model.box.num_convs", "model.box.conv_norm", "model.box.linear_norm"),
        lambda extractor, count, is_gn: (
            (count, _norm(is_gn), "none") if extractor == _WITH_CONVS else (0, "none", _norm(is_gn))
        ),
        "rcnn",
    ),
    same("MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM", "model.box.conv_channels", "rcnn"),
    same("MODEL.ROI_BOX_HEAD.DILATION", "model.box.dilation", "rcnn"),
    same("MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM", "model.box.linear_channels", "rcnn"),
    *_pooler("ROI_BOX_HEAD", "box"),
    same("MODEL.CLS_AGNOSTIC_BBOX_REG", "model.box.class_agnostic", "rcnn"),
    same("MODEL.ROI_HEADS.BBOX_REG_WEIGHTS", "model.box.offset_weights", "rcnn"),
    same("MODEL.ROI_HEADS.FG_IOU_THRESHOLD", "model.box.foreground_iou", "rcnn"),
    same("MODEL.ROI_HEADS.BG_IOU_THRESHOLD", "model.box.background_iou", "rcnn"),
    same("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "model.box.samples_per_image", "rcnn"),
    same("MODEL.ROI_HEADS.POSITIVE_FRACTION", "model.box.positive_fraction", "rcnn"),
    same("MODEL.ROI_HEADS.SCORE_THRESH", "model.score_threshold", "rcnn"),
    same("MODEL.ROI_HEADS.NMS", "model.nms_threshold", "rcnn"),
    same("MODEL.ROI_HEADS.DETECTIONS_PER_IMG", "model.max_detections", "rcnn"),
    Row((), ("model.pre_nms_top_k",), lambda: (_UNLIMITED,), only="rcnn"),
    # The mask head.
    same("MODEL.MASK_ON", "model.mask.enabled", "rcnn"),
    same("MODEL.MASK_ON", "data.masks", "rcnn"),
    _ours(
        ("MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR", "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", "MODEL.MASK_ON"),
        "model.mask.layers",
        lambda extractor, is_shared, is_on: _mask_layers(extractor, is_shared) if is_on else "own",
        "rcnn",
    ),
    _ours("MODEL.ROI_MASK_HEAD.PREDICTOR", "model.mask.upsample", lambda name: name == "MaskRCNNC4Predictor", "rcnn"),
    _ours("MODEL.ROI_MASK_HEAD.CONV_LAYERS", "model.mask.conv_channels", list, "rcnn"),
    _ours("MODEL.ROI_MASK_HEAD.USE_GN", "model.mask.norm", _norm, "rcnn"),
    same("MODEL.ROI_MASK_HEAD.DILATION", "model.mask.dilation", "rcnn"),
    *_pooler("ROI_MASK_HEAD", "mask"),
    # The keypoint head.
    same("MODEL.KEYPOINT_ON", "model.keypoints.enabled", "rcnn"),
    same("MODEL.KEYPOINT_ON", "data.keypoints", "rcnn"),
    _ours(
        ("MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR", "MODEL.KEYPOINT_ON"),
        "model.keypoints.layers",
        lambda extractor, is_on: "backbone" if is_on and extractor.startswith("FBNet") else "own",
        "rcnn",
    ),
    same("MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", "model.keypoints.num_keypoints", "rcnn"),
    _ours("MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS", "model.keypoints.conv_channels", list, "rcnn"),
    *_pooler("ROI_KEYPOINT_HEAD", "keypoints"),
]
"""Equivalent settings of region proposal networks and R-CNN."""


def find_problems(get: Callable[[str], Any], detector: str) -> list[str]:
    """Return error messages for the combination of the keys of a detector; empty if it is valid."""
    problems = []
    for key, names in _NAMES.items():
        switch = next((switch for start, switch in _SWITCHES.items() if key.startswith(start)), None)
        is_used = key.startswith("MODEL.RPN.") or (detector == "rcnn" and (switch is None or get(switch)))
        if is_used and get(key) not in names:
            problems.append(f"{key}={quote(get(key))}: expected {' or '.join(names)}")
    is_pyramid, strides = get("MODEL.RPN.USE_FPN"), get("MODEL.RPN.ANCHOR_STRIDE")
    if is_pyramid and len(strides) != len(get("MODEL.RPN.ANCHOR_SIZES")):
        sizes = quote(get("MODEL.RPN.ANCHOR_SIZES"))
        problems.append(f"MODEL.RPN.ANCHOR_SIZES={sizes}: expected one for each of MODEL.RPN.ANCHOR_STRIDE")
    if not is_pyramid and len(strides) != 1:
        problems.append(f"MODEL.RPN.ANCHOR_STRIDE={quote(strides)}: expected one stride without MODEL.RPN.USE_FPN")
    return problems + (_find_pooler_problems(get) if detector == "rcnn" and not problems else [])


def _find_pooler_problems(get: Callable[[str], Any]) -> list[str]:
    """Return error messages for the levels that heads pool from: all levels that are not max-pooled."""
    strides = list(get("MODEL.RPN.ANCHOR_STRIDE"))
    pooled = strides[:4] if BODIES[get("MODEL.BACKBONE.CONV_BODY")].end == "fpn" else strides
    heads = ["BOX", *(["MASK"] if get("MODEL.MASK_ON") else []), *(["KEYPOINT"] if get("MODEL.KEYPOINT_ON") else [])]
    expected = [1 / stride for stride in pooled]
    keys = [f"MODEL.ROI_{head}_HEAD.POOLER_SCALES" for head in heads]
    return [f"{key}={quote(get(key))}: expected {expected}" for key in keys if list(get(key)) != expected]
