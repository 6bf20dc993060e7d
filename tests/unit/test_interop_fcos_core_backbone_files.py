"""MODEL.WEIGHT of the original's configs: weights of a backbone or of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from original_configs import read

from fcos.interop.fcos_core.mapping import option_keys


@pytest.mark.parametrize(
    "weight",
    [
        "resnet50-0676ba61.pth",
        "weights/resnext101_32x8d-8ba56ff5.pth",
        "mobilenet_v2-b0353104.pth",
        "https://download.pytorch.org/models/resnet101-63fe2227.pth",
        "https://a.org/get?id=1#resnet50-19c8e357.pth",
        "catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x",
    ],
)
def test_a_backbone_that_is_not_on_this_disk_is_recognised_by_its_name(weight: str) -> None:
    config = read("MODEL.WEIGHT", weight)
    assert (config.model.backbone.weights, config.train.weights) == (weight, None)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapping", [None, "state_dict", "model"])
@pytest.mark.parametrize("tensor", ["layer1.0.conv1.weight", "features.0.0.weight"])
def test_a_backbone_file_is_recognised_by_its_content(
    tensor: str, wrapping: str | None, prefix: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "mine.pth")
    state = {f"{prefix}{tensor}": torch.zeros(1)}
    torch.save({wrapping: state} if wrapping else state, path)
    config = read("MODEL.WEIGHT", path)
    assert (config.model.backbone.weights, config.train.weights) == (path, None)


@pytest.mark.parametrize("content", [{"rpn.head.cls_logits.bias": torch.zeros(1)}, {"model": 3}, [1], b"damaged"])
def test_any_other_file_is_a_detector(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "resnet50-0676ba61.pth"  # the content decides
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    config = read("MODEL.WEIGHT", str(path))
    assert (config.model.backbone.weights, config.train.weights) == (None, str(path))


def test_backbone_and_detector_weights_are_distinguished() -> None:
    config = read("MODEL.WEIGHT", "catalog://ImageNetPretrained/MSRA/R-50")
    assert (config.model.backbone.weights, config.train.weights) == ("catalog://ImageNetPretrained/MSRA/R-50", None)
    config = read("MODEL.WEIGHT", "model.pth")
    assert (config.model.backbone.weights, config.train.weights) == (None, "model.pth")
    config = read()
    assert (config.model.backbone.weights, config.train.weights) == (None, None)


@pytest.mark.parametrize(
    ("weight", "of_backbone"),
    [
        ("https://cloudstor.aarnet.edu.au/plus/s/k3ys35075jmU1RP/download#X-101-64x4d.pkl", True),
        ("https://cloudstor.aarnet.edu.au/plus/s/xtixKaxLWmbcyf7/download#mobilenet_v2-ecbe2b5.pth", True),
        ("old/R-50.pkl", True),
        ("https://huggingface.co/tianzhi/FCOS/resolve/main/FCOS_R_50_FPN_1x.pth#fcos_R_50_FPN_1x.pth", False),
        ("old/fcos.pth", False),
    ],
)
def test_imagenet_weights_are_recognised_by_file_name(weight: str, of_backbone: bool) -> None:
    config = read("MODEL.WEIGHT", weight)
    assert (config.model.backbone.weights == weight, config.train.weights == weight) == (of_backbone, not of_backbone)


def test_the_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    reads: list[object] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: reads.append(args) or load(*args, **options))
    read("MODEL.WEIGHT", str(path))
    assert len(reads) == 1


def test_messages_name_the_key_of_both_options_that_it_decides() -> None:
    keys = option_keys("fcos", "resnet50")
    assert [keys[option] for option in ("model.backbone.weights", "train.weights")] == ["MODEL.WEIGHT"] * 2
