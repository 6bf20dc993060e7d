"""Config keys of the original's R-CNN detectors and our options."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...formatting import quote
from .bodies import BODIES
from .rows import Row, mask_side, same, written

_UNLIMITED = 10**9
_NO_STRADDLE_LIMIT = 10**6
TWO_LINEARS, WITH_CONVS = "FPN2MLPFeatureExtractor", "FPNXconv1fcFeatureExtractor"
_OF_RESNET = "ResNet50Conv5ROIFeatureExtractor"
_BOX_LAYERS = {
    TWO_LINEARS: ("own", 2),
    WITH_CONVS: ("own", 1),
    _OF_RESNET: ("backbone", 2),
    "FBNet.roi_head": ("backbone", 2),
}
"""Our options `box.layers` and `box.num_linears` by MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR."""
OWN_MASK_LAYERS, _OWN_KEYPOINT_LAYERS = "MaskRCNNFPNFeatureExtractor", "KeypointRCNNFeatureExtractor"
_NAMES = {
    "MODEL.RPN.RPN_HEAD": ("SingleConvRPNHead", "FBNet.rpn_head"),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": tuple(_BOX_LAYERS),
    "MODEL.ROI_BOX_HEAD.PREDICTOR": ("FastRCNNPredictor", "FPNPredictor"),
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": (*(OWN_MASK_LAYERS, _OF_RESNET, "FBNet.roi_head_mask"),),
    "MODEL.ROI_MASK_HEAD.PREDICTOR": ("MaskRCNNC4Predictor", "MaskRCNNConv1x1Predictor"),
    "MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR": (_OWN_KEYPOINT_LAYERS, "FBNet.roi_head_keypoints"),
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
    keys = (f"MODEL.RPN.POST_NMS_TOP_N_{when}", f"MODEL.RPN.FPN_POST_NMS_TOP_N_{when}", "MODEL.RPN.USE_FPN")
    options = (f"model.proposals.{prefix}post_nms_top_k", f"model.proposals.{prefix}max_proposals", "model.fpn.enabled")
    return Row(
        keys,
        options,
        lambda level, every, is_pyramid: (level, every if is_pyramid else level),
        lambda level, every, is_pyramid: (level, every) if is_pyramid else (min(level, every),),
        "two_stage",
    )


def _pooler(head: str, section: str) -> list[Row]:
    keys = {"POOLER_RESOLUTION": "resolution", "POOLER_SAMPLING_RATIO": "sampling_ratio"}
    levels = (f"model.{section}.resolution", "model.strides", "model.fpn.enabled")  # the first: of enabled heads only
    return [
        *(same(f"MODEL.{head}.{key}", f"model.{section}.{option}", "rcnn") for key, option in keys.items()),
        written(f"MODEL.{head}.POOLER_SCALES", levels, lambda _, *levels: _pooler_scales(*levels), "rcnn"),
    ]


def _pooler_scales(strides: Sequence[int], is_pyramid: bool) -> tuple[float, ...]:
    """Return the scales of the levels that heads pool from: all levels that are not max-pooled."""
    return tuple(1 / stride for stride in (strides[:4] if is_pyramid else strides))


def _anchor_sizes_back(sizes: list[list[float]], is_pyramid: bool) -> tuple[Any, ...]:
    return tuple(level[0] for level in sizes) if is_pyramid else tuple(sizes[0]), is_pyramid


def _box_layers_back(layers: str, num_linears: int, num_convs: int, backbone: str) -> tuple[str]:
    if layers == "backbone":
        return ("FBNet.roi_head" if backbone == "fbnet" else _OF_RESNET,)
    return (WITH_CONVS if num_convs or num_linears == 1 else TWO_LINEARS,)


def _box_norms_back(num_convs: int, conv_norm: str, linear_norm: str, layers: str) -> tuple[Any, ...]:
    """Return the number of convolutions, which the original ignores without them, and whether there is a norm."""
    has_convs = num_convs > 0 and layers == "own"
    return (conv_norm == "gn", num_convs) if has_convs else (linear_norm == "gn" and layers == "own",)


def _mask_layers(extractor: str, is_shared: bool) -> str:
    if extractor == OWN_MASK_LAYERS:
        return "own"
    return "box" if is_shared else "backbone"


def _mask_layers_back(layers: str, backbone: str) -> tuple[Any, ...]:
    of_backbone = "FBNet.roi_head_mask" if backbone == "fbnet" else _OF_RESNET
    return OWN_MASK_LAYERS if layers == "own" else of_backbone, layers == "box"


def _mask_resolution(resolution: int, upsample: bool, layers: str, dilation: int) -> int:
    """Return the side of the masks; C5 as a head halves the side if it is not dilated."""
    side = resolution if layers == "own" or dilation > 1 else math.ceil(resolution / 2)
    return mask_side(side, upsample)


def _norm(is_gn: bool) -> str:
    return "gn" if is_gn else "none"


_MASK_SIDE = ("model.mask.resolution", "model.mask.upsample", "model.mask.layers")
RCNN_ROWS = [
    # Levels and anchors.
    Row(
        ("MODEL.RPN.ANCHOR_SIZES", "MODEL.RPN.USE_FPN"),
        ("model.anchor_sizes", "model.fpn.enabled"),
        lambda sizes, is_pyramid: ([[size] for size in sizes] if is_pyramid else [list(sizes)],),
        _anchor_sizes_back,
        "two_stage",
    ),
    _ours(  # to_keys chooses the body
        "MODEL.BACKBONE.CONV_BODY",
        ("model.fpn.enabled", "model.fpn.extra_level_source"),
        lambda body: (BODIES[body].end == "fpn", "max_pool"),
        "two_stage",
    ),
    Row(
        ("MODEL.RPN.ANCHOR_STRIDE",),
        ("model.strides",),
        lambda strides: (list(strides),),
        lambda strides: (tuple(strides),),
        "two_stage",
    ),
    same("MODEL.RPN.ASPECT_RATIOS", "model.anchor_ratios", "two_stage"),
    Row((), ("model.anchor_rounding",), lambda: ("base",), only="two_stage"),
    Row((), ("model.loss_average",), lambda: ("batch",), only="two_stage"),
    # The region proposal network.
    Row(
        ("MODEL.RPN.RPN_HEAD",),
        ("model.proposals.layers",),
        lambda head: ("own" if head == "SingleConvRPNHead" else "backbone",),
        lambda layers: ("SingleConvRPNHead" if layers == "own" else "FBNet.rpn_head",),
        "two_stage",
    ),
    _rpn("FG_IOU_THRESHOLD", "foreground_iou"),
    _rpn("BG_IOU_THRESHOLD", "background_iou"),
    Row(
        ("MODEL.RPN.STRADDLE_THRESH",),
        ("model.proposals.straddle_threshold",),
        lambda pixels: (pixels if pixels >= 0 else _NO_STRADDLE_LIMIT,),  # a negative number means no limit
        lambda pixels: (-1 if pixels in (None, _NO_STRADDLE_LIMIT) else pixels,),
        "two_stage",
    ),
    _rpn("BATCH_SIZE_PER_IMAGE", "samples_per_image"),
    _rpn("POSITIVE_FRACTION", "positive_fraction"),
    _rpn("PRE_NMS_TOP_N_TRAIN", "train_pre_nms_top_k"),
    _rpn("PRE_NMS_TOP_N_TEST", "pre_nms_top_k"),
    _limits("TRAIN", "train_"),
    _limits("TEST", ""),
    # The original limits the proposals of a batch only if there are several levels.
    _ours("MODEL.RPN.USE_FPN", "model.proposals.limit_per_batch", bool, "two_stage"),
    _rpn("NMS_THRESH", "nms_threshold"),
    _rpn("MIN_SIZE", "min_size"),
    # The box head.
    Row(
        ("MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR",),
        ("model.box.layers", "model.box.num_linears", "model.box.num_convs", "model.backbone.name"),
        lambda extractor: _BOX_LAYERS[extractor],
        _box_layers_back,
        "rcnn",
    ),
    Row(
        ("MODEL.ROI_BOX_HEAD.USE_GN", "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS", "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR"),
        ("model.box.num_convs", "model.box.conv_norm", "model.box.linear_norm", "model.box.layers"),
        lambda is_gn, count, extractor: (
            (count, _norm(is_gn), "none") if extractor == WITH_CONVS else (0, "none", _norm(is_gn))
        ),
        _box_norms_back,
        "rcnn",
    ),
    written(
        "MODEL.ROI_BOX_HEAD.PREDICTOR",
        ("model.box.layers",),
        lambda layers: "FPNPredictor" if layers == "own" else "FastRCNNPredictor",
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
    Row(
        ("MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR", "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", "MODEL.MASK_ON"),
        ("model.mask.layers", "model.backbone.name"),
        lambda extractor, is_shared, is_on: (_mask_layers(extractor, is_shared) if is_on else "own",),
        _mask_layers_back,
        "rcnn",
    ),
    Row(
        ("MODEL.ROI_MASK_HEAD.PREDICTOR",),
        ("model.mask.upsample",),
        lambda name: (name == "MaskRCNNC4Predictor",),
        lambda upsample: ("MaskRCNNC4Predictor" if upsample else "MaskRCNNConv1x1Predictor",),
        "rcnn",
    ),
    written(
        "MODEL.ROI_MASK_HEAD.RESOLUTION", (*_MASK_SIDE, "model.backbone.head_dilation"), _mask_resolution, "resnet"
    ),
    Row(
        ("MODEL.ROI_MASK_HEAD.CONV_LAYERS",),
        ("model.mask.conv_channels",),
        lambda channels: (list(channels),),
        lambda channels: (tuple(channels),),
        "rcnn",
    ),
    Row(
        ("MODEL.ROI_MASK_HEAD.USE_GN",),
        ("model.mask.norm",),
        lambda is_gn: (_norm(is_gn),),
        lambda norm: (norm == "gn",),
        "rcnn",
    ),
    same("MODEL.ROI_MASK_HEAD.DILATION", "model.mask.dilation", "rcnn"),
    *_pooler("ROI_MASK_HEAD", "mask"),
    # The keypoint head.
    same("MODEL.KEYPOINT_ON", "model.keypoints.enabled", "rcnn"),
    same("MODEL.KEYPOINT_ON", "data.keypoints", "rcnn"),
    Row(
        ("MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR", "MODEL.KEYPOINT_ON"),
        ("model.keypoints.layers", "model.backbone.name"),
        lambda extractor, is_on: ("backbone" if is_on and extractor.startswith("FBNet") else "own",),
        lambda layers, backbone: (
            "FBNet.roi_head_keypoints" if (layers, backbone) == ("backbone", "fbnet") else _OWN_KEYPOINT_LAYERS,
        ),
        "rcnn",
    ),
    written(
        "MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", ("model.keypoints.layers",), lambda _: False, "rcnn"
    ),
    same("MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES", "model.keypoints.num_keypoints", "rcnn"),
    Row(
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS",),
        ("model.keypoints.conv_channels",),
        lambda channels: (list(channels),),
        lambda channels: (tuple(channels),),
        "rcnn",
    ),
    *_pooler("ROI_KEYPOINT_HEAD", "keypoints"),
    written(  # the layers keep the side, and the predictor multiplies it by four
        "MODEL.ROI_KEYPOINT_HEAD.RESOLUTION", ("model.keypoints.resolution",), lambda side: 4 * side, "rcnn"
    ),
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
    is_pyramid = BODIES[get("MODEL.BACKBONE.CONV_BODY")].end == "fpn"
    expected = list(_pooler_scales(get("MODEL.RPN.ANCHOR_STRIDE"), is_pyramid))
    heads = ["BOX", *(["MASK"] if get("MODEL.MASK_ON") else []), *(["KEYPOINT"] if get("MODEL.KEYPOINT_ON") else [])]
    keys = [f"MODEL.ROI_{head}_HEAD.POOLER_SCALES" for head in heads]
    return [f"{key}={quote(get(key))}: expected {expected}" for key in keys if list(get(key)) != expected]
