"""Conversion of configs of the original in tests: the defaults of the original, and a config of ours or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fcos.config import Config
from fcos.config.overrides import validate
from fcos.errors import ConfigError
from fcos.interop.fcos_core.config import config_from_yaml

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
DEFAULTS: dict[str, Any] = json.loads((GOLDENS / "facts" / "default_config.json").read_text())
BODY = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET"]
RETINANET = [*BODY, "MODEL.RETINANET_ON", "True"]
BODIES = {"fcos": BODY, "retinanet": RETINANET}
PYRAMID_PAIRS = [
    *("MODEL.FCOS_ON", "False", "MODEL.BACKBONE.CONV_BODY", "R-50-FPN", "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "8"),
    *(
        "MODEL.RPN.USE_FPN",
        "True",
        "MODEL.RPN.ANCHOR_STRIDE",
        "(4, 8, 16, 32, 64)",
        "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM",
        "8",
    ),
    *("MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR", "FPN2MLPFeatureExtractor", "MODEL.ROI_BOX_HEAD.NUM_CLASSES", "3"),
    *("MODEL.ROI_BOX_HEAD.PREDICTOR", "FPNPredictor", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.ROI_BOX_HEAD.POOLER_SCALES", "(0.25, 0.125, 0.0625, 0.03125)"),
]
"""Faster R-CNN with a pyramid, with few channels."""
_ARCHITECTURE = {
    "block_op_type": [["ir_k3"], ["ir_k3"], ["ir_k3"], ["ir_k3", "ir_k3"]],
    "block_cfg": {
        "first": [8, 2],
        "stages": [[[1, 8, 1, 2]], [[1, 8, 1, 2]], [[1, 8, 1, 2]], [[1, 8, 1, 2], [1, 8, 1, -2]]],
        "backbone": [0, 1, 2],
        "rpn": [1],
        "bbox": [0],
        "mask": [3],
        "kpts": [0],
    },
}
SMALL_FBNET: dict[str, Any] = {
    "MODEL.BACKBONE.CONV_BODY": "FBNet",
    "MODEL.FBNET.ARCH": "custom",
    "MODEL.FBNET.ARCH_DEF": json.dumps(_ARCHITECTURE),
    "MODEL.RPN.RPN_HEAD": "FBNet.rpn_head",
    "MODEL.RPN.ANCHOR_SIZES": [8, 16],
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "FBNet.roi_head",
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 3,
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": "FBNet.roi_head_mask",
    "MODEL.ROI_MASK_HEAD.PREDICTOR": "MaskRCNNConv1x1Predictor",
    "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR": False,
    "MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR": "FBNet.roi_head_keypoints",
}
"""Mask R-CNN on an FBNet with few channels, and with quotation marks in its definition."""
RECORDED = [
    *("fcos/fcos_R_50_FPN_1x", "fcos/fcos_bn_bs16_MNV2_FPN_1x", "retinanet/retinanet_R-50-FPN_1x"),
    *("rpn_R_50_FPN_1x", "rpn_R_50_C4_1x", "e2e_faster_rcnn_R_50_FPN_1x", "e2e_faster_rcnn_R_50_C4_1x"),
    *("gn_baselines/e2e_mask_rcnn_R_50_FPN_Xconv1fc_1x_gn", "e2e_mask_rcnn_R_50_FPN_1x", "e2e_mask_rcnn_R_50_C4_1x"),
    *("e2e_keypoint_rcnn_R_50_FPN_1x", "e2e_faster_rcnn_fbnet", "e2e_mask_rcnn_fbnet"),
]
"""A recorded config for each kind of detector and backbone."""
MOBILE = ["MODEL.BACKBONE.CONV_BODY", "MNV2-FPN-RETINANET", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "0"]


def read(*pairs: str, body: list[str] = BODY) -> Config:
    return validate(config_from_yaml({}, [*body, *pairs], where="x"), where="x")


def error_message(*pairs: str, tree: dict[str, Any] | None = None, body: list[str] = BODY) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(tree or {}, [*body, *pairs], where="old.yaml")
    return str(caught.value)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def recorded_config(name: str) -> dict[str, Any]:
    """Return the complete config of the original in a recorded manifest, such as those of `RECORDED`."""
    return json.loads((GOLDENS / "manifests" / f"{name}.json").read_text())["merged_config"]


def other_value(key: str, value: Any) -> Any:
    """Return a valid value where possible, which differs from the given one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        if not value:
            return ["other"] if key.startswith("DATASETS.") else [400]
        return [other_value(key, item) for item in value]
    return 2 * value if value > 0 else 2
