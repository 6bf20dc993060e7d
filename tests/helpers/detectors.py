"""Small untrained detectors that produce many detections, for tests of the code around a detector."""

from typing import Any

import torch

from fcos import Detector
from fcos.config import Config, DetectorConfig, FCOSConfig
from fcos.config.overrides import validate
from fcos.models import DetectionModel, build_model
from fcos.models.fcos import FCOS
from fcos.models.retinanet import RetinaNet

NAMES = ("cat", "dog", "owl")
CATEGORY_IDS = (18, 3, 90)
MOBILENET = {"backbone": {"name": "mobilenet_v2", "weights": None}}


def build_fcos(config: DetectorConfig, *, num_classes: int, pretrained: bool = False) -> FCOS:
    """Build the FCOS model that a `model` config section describes."""
    model = build_model(config, num_classes=num_classes, pretrained=pretrained)
    assert isinstance(model, FCOS)
    return model


def fcos_section(config: Config) -> FCOSConfig:
    """Return the `model` section of an FCOS config."""
    assert isinstance(config.model, FCOSConfig)
    return config.model


def fcos_of(detector: Detector) -> FCOS:
    """Return the FCOS model of a detector."""
    assert isinstance(detector.model, FCOS)
    return detector.model


_ONE_STAGE = {"head": {"num_convs": 1}, "max_detections": 20}
_ANCHORS = {"strides": [8, 16, 32, 64, 128], "anchor_sizes": [16, 32, 64, 128, 256]}
_PROPOSALS = {"train_post_nms_top_k": 50, "train_max_proposals": 100, "post_nms_top_k": 50, "max_proposals": 50}
TINY: dict[str, dict[str, Any]] = {
    "fcos": _ONE_STAGE,
    "retinanet": _ONE_STAGE,
    "rpn": {"proposals": _PROPOSALS, **_ANCHORS},
    "rcnn": {
        **_ANCHORS,
        "proposals": _PROPOSALS,
        "box": {"linear_channels": 32, "samples_per_image": 64},
        "max_detections": 20,
    },
}
"""Options of `model` that make a detector small, by `model.name`."""


def tiny_config(**model) -> Config:
    return validate(
        {
            "model": {
                "backbone": {"name": "mobilenet_v2", "weights": None},
                "fpn": {"channels": 64},
                **TINY[model.get("name", "fcos")],
                **model,
            },
            "data": {
                "short_side": 96,
                "max_side": 160,
                "workers": 0,
                "masks": model.get("mask", {}).get("enabled", False),
                "keypoints": model.get("keypoints", {}).get("enabled", False),
            },
        },
        where="test",
    )


def tiny_model(config: Config) -> FCOS:
    """Build a model with positive and negative logits, so that it detects something everywhere."""
    model = build_fcos(config.model, num_classes=len(NAMES))
    torch.nn.init.normal_(model.head.logits.weight, std=0.2)
    state = model.state_dict()
    state["head.logits.bias"].zero_()
    state["head.ltrb.bias"].fill_(3.0)  # boxes of about 40 pixels
    return model.eval()


def tiny_detector() -> Detector:
    """Build the same detector in every call."""
    torch.manual_seed(0)
    config = tiny_config()
    return Detector(tiny_model(config), config, class_names=NAMES, category_ids=CATEGORY_IDS)


def tiny_retinanet(config: Config) -> RetinaNet:
    """Build a model with positive and negative logits, so that it detects something everywhere."""
    model = build_model(config.model, num_classes=len(NAMES), pretrained=False)
    assert isinstance(model, RetinaNet)
    torch.nn.init.normal_(model.head.logits.weight, std=0.2)
    torch.nn.init.normal_(model.head.offsets.weight, std=0.05)
    torch.nn.init.zeros_(model.get_parameter("head.logits.bias"))
    return model.eval()


def tiny_two_stage(config: Config) -> DetectionModel:
    """Build an RPN or R-CNN with positive and negative logits, so that it detects something everywhere."""
    model = build_model(config.model, num_classes=len(NAMES), pretrained=False)
    for name, parameter in model.named_parameters():
        if name.endswith(("logits.weight", "offsets.weight")):
            torch.nn.init.normal_(parameter, std=0.2 if "logits" in name else 0.05)
    return model.eval()
