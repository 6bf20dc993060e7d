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
