"""Backbones of timm: contract, freezing, weights, messages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from fcos.config.backbones import TimmConfig
from fcos.errors import ConfigError, WeightsError
from fcos.models import build_model
from fcos.models.backbones import build_backbone
from fcos.models.backbones.timm_features import Timm
from fcos.recipes import load_config

LEVELS = ["C2", "C3", "C4", "C5"]
NETS = ["test_resnet", "test_efficientnet", "convnext_atto"]  # flat; with blocks; rounds sizes down


def build(name: str, *, weights: str | None = None, norm: str = "bn", frozen_stages: int = 0) -> Timm:
    options = {"name": f"timm/{name}", "weights": weights, "norm": norm, "frozen_stages": frozen_stages}
    backbone = build_backbone(TimmConfig.model_validate(options))
    assert isinstance(backbone, Timm)
    return backbone


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("name", NETS)
def test_feature_maps_have_the_stated_channels_and_strides(name: str, batch: int) -> None:
    backbone = build(name).eval()
    assert list(backbone.strides.items()) == list(zip(LEVELS, [4, 8, 16, 32], strict=True))
    features = backbone(torch.randn(batch, 3, 97, 65))
    for level, stride in backbone.strides.items():
        assert features[level].shape == (batch, backbone.channels[level], -(-97 // stride), -(-65 // stride))


@pytest.mark.parametrize("name", NETS)
def test_feature_maps_match_timm(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    torch.manual_seed(0)
    ours = build(name).eval()
    images = torch.randn(1, 3, 64, 96)
    for mine, other in zip(ours(images).values(), theirs(images)[-4:], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("end", LEVELS)
@pytest.mark.parametrize("name", NETS)
def test_truncate_after_keeps_earlier_maps_without_unused_parameters(name: str, end: str) -> None:
    backbone = build(name).eval()
    images = torch.randn(1, 3, 64, 64)
    before = backbone(images)
    backbone.truncate_after(end)
    after = backbone(images)
    assert list(after) == list(backbone.channels) == list(backbone.strides) == LEVELS[: LEVELS.index(end) + 1]
    assert all(torch.equal(after[level], before[level]) for level in after)
    after[end].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_frozen_batch_norm_matches_batch_norm_in_eval_mode() -> None:
    torch.manual_seed(0)
    plain = build("test_efficientnet").eval()  # timm's batch norm includes the activation
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
def test_frozen_stages_get_no_gradients_but_the_next_stage_does(name: str) -> None:
    backbone = build(name, frozen_stages=2).train()
    torch.cat([map.flatten() for map in backbone(torch.randn(2, 3, 64, 64)).values()]).sum().backward()
    stages = backbone._stages()
    assert list(stages) == ["stem", *LEVELS]
    for path in stages["stem"] + stages["C2"]:
        part = backbone.get_submodule(path)
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in part.modules())
    learning = [parameter for path in stages["C3"] for parameter in backbone.get_submodule(path).parameters()]
    assert learning
    assert all(parameter.grad is not None for parameter in learning)


def test_frozen_bn_is_rejected_for_networks_without_batch_norm() -> None:
    with pytest.raises(
        ConfigError,
        match=r"norm=frozen_bn: timm/convnext_atto has no batch norm; use bn, which does not change its norm",
    ):
        build("convnext_atto", norm="frozen_bn")


@pytest.mark.parametrize("name", NETS)
def test_state_dict_of_the_whole_network_loads_into_the_backbone(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(name).eval()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    backbone = build(name, weights=str(tmp_path / "net.pth")).eval()
    given = {key.replace(".", "_"): tensor for key, tensor in whole.state_dict().items()}
    for key, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, given[key.replace(".", "_")]), key


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"does not fit timm/test_efficientnet: \d+ tensors are missing"):
        build("test_efficientnet", weights=str(tmp_path / "net.pth"))


class NotFound(HfHubHTTPError):
    def __init__(self, message: str):
        Exception.__init__(self, message)  # the parent's __init__ needs an HTTP response object


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the hub respond that the file does not exist."""

    def not_found(*_: Any, **__: Any) -> None:
        raise NotFound("404")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", not_found)


@pytest.fixture
def downloads(hub: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every download of weights fail, and return the list of names that were tried."""
    create, tried = timm.create_model, []

    def fail_download(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        if not pretrained:
            return create(name, **options)
        tried.append(name)
        raise OSError("broken off.\nand more")

    monkeypatch.setattr(timm, "create_model", fail_download)
    return tried


def test_failed_download_of_pretrained_weights_is_reported(downloads: list[str]) -> None:
    with pytest.raises(WeightsError, match=r"imagenet: timm could not load .* timm/test_resnet: broken off; .*=null"):
        build("test_resnet", weights="imagenet")
    assert downloads == ["test_resnet"]


@pytest.mark.parametrize("cached", [False, True])
def test_unreachable_hub_allows_only_cached_weights(
    cached: bool, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "model.safetensors" if cached else None)
    refusal = "broken off" if cached else "timm/test_resnet: no route; download the state"
    with pytest.raises(WeightsError, match=refusal):
        build("test_resnet", weights="imagenet")
    assert downloads == (["test_resnet"] if cached else [])


@pytest.fixture
def random_weights(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make timm create networks with random weights where pretrained ones are requested."""
    create = timm.create_model

    def create_random(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_random)


@pytest.mark.usefixtures("random_weights")
@pytest.mark.parametrize(
    ("mean", "told"),
    [
        ([127.5, 127.5, 127.5], []),
        ([127, 127, 128], []),  # differs by less than a grey level
        (
            [123.675, 116.28, 103.53],
            [
                "model.backbone.weights=imagenet (timm/test_resnet) were trained with"
                " model.pixel_mean=[127.5,127.5,127.5]; set the same options"
            ],
        ),
    ],
)
def test_pixel_statistics_that_differ_from_the_weights_are_reported(
    mean: list[float], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [f"model.pixel_mean={mean}", "model.pixel_std=[127.5, 127.5, 127.5]", "model.fpn.channels=32"]
    config = load_config(None, ["model.backbone.name=timm/test_resnet", *overrides]).model
    build_model(config, num_classes=1)
    assert caplog.messages == told
    caplog.clear()
    build_model(config, num_classes=1, pretrained=False)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "timm has no network 'resnet19', did you mean 'resnet18'"),
        ("resnet18.nosuch", "timm cannot extract its feature maps: Invalid pretrained tag"),
        ("test_vit", r"its maps have strides \[16, 16, 16\]; FCOS needs exactly one map of each stride 8, 16 and 32"),
    ],
)
def test_networks_unusable_as_backbones_are_rejected(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name)


def test_network_with_fixed_input_size_is_rejected() -> None:
    with pytest.raises(ConfigError, match="fails on an image of 64x96 pixels: AssertionError: Input height"):
        build("swin_tiny_patch4_window7_224")


def test_missing_timm_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm/resnet18 needs timm: pip install timm huggingface_hub"):
        build("resnet18")


def test_config_selects_a_timm_backbone() -> None:
    overrides = ["model.backbone.name=timm/test_resnet", "model.backbone.weights=null", "model.fpn.channels=32"]
    model = build_model(load_config("fcos_r50_fpn_1x", overrides).model, num_classes=2)
    assert isinstance(model.backbone, Timm)
    assert list(load_config("fcos_r50_fpn_1x", overrides).to_dict()["model"]["backbone"].values()) == [
        "timm/test_resnet",
        None,
        "bn",
        0,
    ]


def test_unknown_option_error_lists_the_timm_options() -> None:
    with pytest.raises(ConfigError, match=r"backbone.stride_in_1x1: no such option; known options: name, weights"):
        load_config(None, ["model.backbone.name=timm/resnet18", "model.backbone.stride_in_1x1=true"])
