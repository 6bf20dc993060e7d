"""Configs of the original's RetinaNet: choice of the detector, and conversion of the keys."""

from __future__ import annotations

import logging

import pytest
from original_configs import RETINANET, read

from fcos.config import RetinaNetConfig
from fcos.config.detectors import RetinaNetFPNConfig, RetinaNetHeadConfig

NOTE = "x: a config for RetinaNet (MODEL.RETINANET_ON)"


@pytest.mark.parametrize(
    ("pairs", "detector", "messages"),
    [
        ({}, "fcos", ["x: a config for FCOS (MODEL.BACKBONE.CONV_BODY R-50-FPN-RETINANET)"]),
        ({"FCOS_ON": True}, "fcos", ["x: a config for FCOS (MODEL.FCOS_ON)"]),
        ({"FCOS_ON": True, "RETINANET_ON": False}, "fcos", ["x: a config for FCOS (MODEL.FCOS_ON)"]),
        (
            {"RETINANET_ON": True},  # as in the original's own file, without FCOS_ON
            "retinanet",
            [f"{NOTE}; the original would train FCOS, unless MODEL.FCOS_ON is set to False"],
        ),
        ({"RETINANET_ON": True, "FCOS_ON": False}, "retinanet", [NOTE]),
        (
            {"RETINANET_ON": True, "FCOS_ON": True},
            "fcos",
            ["x: a config for FCOS (MODEL.FCOS_ON), although MODEL.RETINANET_ON is also set"],
        ),
    ],
)
def test_flags_choose_the_detector_and_one_line_reports_it(
    pairs: dict[str, bool], detector: str, messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = [word for key, value in pairs.items() for word in (f"MODEL.{key}", str(value))]
    with caplog.at_level(logging.INFO, logger="fcos"):
        assert read(*words).model.name == detector
    assert caplog.messages == messages


@pytest.mark.parametrize("switch", ["RPN_ONLY", "MASK_ON"])
def test_the_backbone_of_fcos_chooses_it_whatever_the_switches_of_other_detectors_are(switch: str) -> None:
    assert read(f"MODEL.{switch}", "True").model.name == "fcos"


def test_retinanet_keys_are_converted() -> None:
    pairs = {
        "NUM_CLASSES": "4", "ANCHOR_SIZES": "(16, 32, 64, 128, 256)", "ANCHOR_STRIDES": "(4, 8, 16, 32, 64)",
        "ASPECT_RATIOS": "(0.5, 2.0)", "OCTAVE": "3.0", "SCALES_PER_OCTAVE": "2", "NUM_CONVS": "1", "PRIOR_PROB": "0.1",
        "BBOX_REG_WEIGHT": "2.0", "BBOX_REG_BETA": "0.5", "FG_IOU_THRESHOLD": "0.6", "BG_IOU_THRESHOLD": "0.3",
        "LOSS_ALPHA": "0.4", "LOSS_GAMMA": "1.5", "PRE_NMS_TOP_N": "9", "INFERENCE_TH": "0.2", "NMS_TH": "0.7",
    }  # fmt: skip
    model = read(
        *(word for key, value in pairs.items() for word in (f"MODEL.RETINANET.{key}", value)), body=RETINANET
    ).model
    assert isinstance(model, RetinaNetConfig)
    assert model == RetinaNetConfig(
        num_classes=3,
        backbone=model.backbone,
        box_convention="inclusive",
        channel_order="bgr",
        pixel_mean=(102.9801, 115.9465, 122.7717),
        pixel_std=(1.0, 1.0, 1.0),
        fpn=RetinaNetFPNConfig(channels=1024),
        head=RetinaNetHeadConfig(num_convs=1, prior_probability=0.1),
        strides=[4, 8, 16, 32, 64],
        anchor_sizes=[[16], [32], [64], [128], [256]],
        anchor_ratios=[0.5, 2.0],
        octave=3.0,
        scales_per_octave=2,
        anchor_rounding="base",
        foreground_iou=0.6,
        background_iou=0.3,
        focal_alpha=0.4,
        focal_gamma=1.5,
        smooth_l1_beta=0.5,
        box_loss_divisor=2.0,
        pre_nms_top_k=9,
        score_threshold=0.2,
        nms_threshold=0.7,
    )
