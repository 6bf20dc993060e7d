"""Backbones of timm: contract, freezing, weights, messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from fcos.config_text import load_config
from fcos.errors import ConfigError, WeightsError
from fcos.models import build_model
from fcos.models.backbones import build_backbone
from fcos.models.backbones.timm import Timm

LEVELS = ["C2", "C3", "C4", "C5"]
NETS = ["test_resnet", "test_efficientnet", "convnext_atto"]  # flat, with blocks, rounding sizes down


def build(name: str, *, weights: str | None = None, norm: str = "bn", frozen_stages: int = 0) -> Timm:
    options: dict[str, Any] = {"weights": weights, "norm": norm, "frozen_stages": frozen_stages}
    backbone = build_backbone(f"timm/{name}", options)
    assert isinstance(backbone, Timm)
    return backbone


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("name", NETS)
def test_maps_have_the_stated_channels_and_strides_rounded_up(name: str, batch: int) -> None:
    backbone = build(name).eval()
    assert list(backbone.strides.items()) == list(zip(LEVELS, [4, 8, 16, 32], strict=True))
    features = backbone(torch.randn(batch, 3, 97, 65))
    for level, stride in backbone.strides.items():
        assert features[level].shape == (batch, backbone.channels[level], -(-97 // stride), -(-65 // stride))


@pytest.mark.parametrize("name", NETS)
def test_the_maps_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    torch.manual_seed(0)
    ours = build(name).eval()
    images = torch.randn(1, 3, 64, 96)
    for mine, other in zip(ours(images).values(), theirs(images)[-4:], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", NETS)
def test_after_end_at_the_other_maps_stay_and_every_parameter_gets_a_gradient(name: str) -> None:
    backbone = build(name).eval()
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)
    backbone.end_at("C4")
    after = backbone(images)
    assert list(after) == list(backbone.channels) == LEVELS[:3]
    assert all(torch.equal(after[level], before[level]) for level in after)
    after["C4"].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_frozen_batch_norm_computes_what_batch_norm_computes_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = build("test_efficientnet").eval()  # the activations are inside timm's batch norm
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.get_buffer("running_mean"))
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2)
    frozen = build("test_efficientnet", norm="frozen_bn").train()
    frozen.load_state_dict({k: v for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")})
    images = torch.randn(2, 3, 64, 64)
    for mine, other in zip(frozen(images).values(), plain(images).values(), strict=True):
        torch.testing.assert_close(mine, other)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())


@pytest.mark.parametrize("name", NETS)
def test_frozen_stages_do_not_learn_and_the_next_one_does(name: str) -> None:
    backbone = build(name, frozen_stages=2).train()
    torch.cat([map.flatten() for map in backbone(torch.randn(2, 3, 64, 64)).values()]).sum().backward()
    parts = backbone._parts()
    end = backbone._ends(parts)["C2"]
    for parent, key in parts[:end]:
        part = parent.get_submodule(key)
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in part.modules())
    parent, key = parts[end]
    assert all(parameter.grad is not None for parameter in parent.get_submodule(key).parameters())


@pytest.mark.parametrize("name", NETS)
def test_a_state_dict_of_the_whole_network_fills_the_backbone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    backbone = build(name, weights=str(tmp_path / "net.pth")).eval()
    given = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    for key, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, given[key.replace(".", "_")]), key


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"does not fit timm/test_efficientnet: \d+ tensors are missing"):
        build("test_efficientnet", weights=str(tmp_path / "net.pth"))


def test_pretrained_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("no connection")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"imagenet: timm could not get .* timm/test_resnet: no connection; .*=null"):
        build("test_resnet", weights="imagenet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "timm has no 'resnet19', did you mean 'resnet18'"),
        ("resnet18.nosuch", "timm has no maps of it: Invalid pretrained tag"),
        ("test_vit", r"its maps have strides \[16, 16, 16\]; a backbone of FCOS needs one of 8, 16 and 32"),
    ],
)
def test_networks_that_are_no_backbones_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name)


def test_a_network_of_one_input_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="fails on an image of 64x96 pixels: AssertionError: Input height"):
        build("swin_tiny_patch4_window7_224")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'timm/resnet18 needs timm: pip install "fcos-vision\[timm\]"'):
        build("resnet18")


def test_a_config_names_it() -> None:
    overrides = ["model.backbone.name=timm/test_resnet", "model.backbone.weights=null", "model.fpn.channels=32"]
    model = build_model(load_config("fcos_r50_fpn_1x", overrides).model, num_classes=2)
    assert isinstance(model.backbone, Timm)
    assert list(load_config("fcos_r50_fpn_1x", overrides).to_dict()["model"]["backbone"].values()) == [
        "timm/test_resnet",
        None,
        "bn",
        0,
    ]


def test_a_wrong_option_is_answered_with_those_of_timm() -> None:
    with pytest.raises(ConfigError, match=r"backbone.stride_in_1x1: no such option; known here: name, weights"):
        load_config(None, ["model.backbone.name=timm/resnet18", "model.backbone.stride_in_1x1=true"])


def test_the_lite0_recipe_sees_pixels_as_its_weights_do() -> None:
    config = load_config("fcos_lite0_small").model
    settings = timm.get_pretrained_cfg(config.backbone.name.removeprefix("timm/"))
    assert settings is not None
    assert config.pixel_mean == tuple(255 * x for x in settings.mean)
    assert config.pixel_std == tuple(255 * x for x in settings.std)


def test_the_lite0_recipe_builds_a_detector_that_detects() -> None:
    config = load_config("fcos_lite0_small", ["model.backbone.weights=null"]).model
    model = build_model(config, num_classes=2).eval()
    assert model.backbone.channels == {"C2": 24, "C3": 40, "C4": 112, "C5": 320}
    found = model.detect(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96], [60, 90]]))
    assert len(found) == 2
