"""Detectors of full size are exported with the differences that float32 explains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcos import Detector
from fcos.data.loader import pad
from fcos.export import proof
from fcos.export.metadata import FixedSizes
from fcos.export.proof import proof_images
from fcos.models import build_model
from fcos.recipes import load_config

pytestmark = pytest.mark.slow
TORCHVISION = [
    "model.location=corner",
    "model.head.regression=relu_stride",
    "model.head.centerness_on=box",
    "model.threshold_on=score",
    "model.clip_after_nms=true",
    "model.detect_in_padding=true",
]
MMDETECTION = ["model.score=product", "model.top_k_on=class", "model.detect_in_padding=true"]


def random_detector(recipe: str, *options: str) -> Detector:
    """Build a detector with random weights, the batch-norm statistics of some images, and logits of both signs."""
    torch.manual_seed(0)
    config = load_config(recipe, ["device=cpu", *options])
    model = build_model(config.model, num_classes=5, pretrained=False)
    for name, parameter in model.named_parameters():
        if name.endswith(("head.logits.weight", "box.logits.weight")):
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("head.logits.bias"):
            torch.nn.init.zeros_(parameter)
        elif name.endswith("head.ltrb.bias") and "model.head.regression=relu_stride" in options:
            torch.nn.init.ones_(parameter)  # ReLU would leave most boxes without area
        elif "conv2.offset" in name:  # deformable convolutions start without offsets
            torch.nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the average of all batches
    images, sizes = pad(proof_images(FixedSizes()), size_divisor=config.data.size_divisor)
    with torch.no_grad():
        model.train()(images, sizes)
    return Detector(model, config, class_names=tuple("abcde"))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("fcos_r50_fpn_1x", []),
        ("fcos_r50_fpn_1x", TORCHVISION),
        ("fcos_r50_fpn_1x", MMDETECTION),
        ("fcos_mnv2_small", []),
        ("fcos_mnv2_nano", []),
        ("fcos_lite0_small", []),
        ("fcos_imprv_dcnv2_r50_fpn_1x", []),
        ("fcos_rt_dla34_fpn_4x", []),
        ("retinanet_r50", []),
        ("faster_rcnn_r50", []),
        ("mask_rcnn_r50", []),
    ],
    ids=[
        "R-50",
        "torchvision",
        "mmdetection",
        "MobileNetV2",
        "nano",
        "Lite0",
        "DCNv2",
        "DLA-34",
        "RetinaNet",
        "Faster",
        "Mask",
    ],
)
def test_recipe_is_exported(recipe: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer and smaller images than an export compares, and little padding where boxes in it count for the limit.
    sides = ((95, 160), (90, 127) if options == TORCHVISION else (161, 127))
    monkeypatch.setattr(proof, "_SIDES", sides)
    exported = random_detector(recipe, *options).export(tmp_path / "model.onnx")
    assert exported.proof.passed
    assert exported.proof.detections >= 100
