"""Backbones: the contract, freezing, weights files, normalisation."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fcos.config.backbones import ResNetConfig
from fcos.errors import ConfigError, WeightsError
from fcos.models.backbones import BACKBONES, build_backbone, resnet
from fcos.models.backbones.pretrained import imagenet_weights
from fcos.models.layers import NORMS, freeze
from fcos.recipes import load_config

TORCHVISIONS = ["resnet50", "mobilenet_v2"]
LEVELS = ["C2", "C3", "C4", "C5"]
FBNET_LEVELS = LEVELS[:3]
SOURCES: list[Literal["p5", "c5"]] = ["p5", "c5"]


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce ResNets to one block per stage: the first blocks have everything that is tested here."""
    for name, shape in resnet.SHAPES.items():
        monkeypatch.setitem(resnet.SHAPES, name, shape._replace(blocks=(1, 1, 1, 1)))


def build(name: str, **options: Any) -> nn.Module:
    backbone = BACKBONES[name](**options)
    assert isinstance(backbone, nn.Module)
    return backbone


def stages(backbone: nn.Module) -> list[list[nn.Module]]:
    """Return the modules of (stem, C2, C3, C4, C5)."""
    parts = dict(backbone.named_children())
    if "features" in parts:
        features = list(parts["features"].children())
        return [features[0:2], features[2:4], features[4:7], features[7:14], features[14:18]]
    if "base_layer" in parts:
        stem = [parts["base_layer"], parts["level0"], parts["level1"]]
        return [stem, *([parts[f"level{i}"]] for i in (2, 3, 4, 5))]
    if "first" in parts:
        groups = {"0": [parts["first"]], "1": [], "2": [], "3": []}  # by stage of the blocks xif0_0, xif1_0, xif1_1...
        for path, block in parts["stages"].named_children():
            groups[path[3]].append(block)
        return list(groups.values())
    return [[parts["conv1"], parts["bn1"]], *([parts[f"layer{i}"]] for i in (1, 2, 3, 4))]


def levels(name: str) -> list[str]:
    return FBNET_LEVELS if name == "fbnet" else LEVELS


def parameters(modules: list[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def statistics(modules: list[nn.Module]) -> list[Tensor]:
    return [
        b.clone() for m in modules for name, b in m.named_buffers() if name.endswith(("running_mean", "running_var"))
    ]


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("size", [(97, 65), (1, 1)])
@pytest.mark.parametrize("name", BACKBONES)
def test_feature_map_shapes_match_declared_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    backbone = BACKBONES[name]()
    assert list(backbone.strides) == list(backbone.channels) == levels(name)
    assert list(backbone.strides.values()) == [4, 8, 16, 32][: len(levels(name))]
    assert isinstance(backbone, nn.Module)
    backbone.eval()
    features = backbone(torch.randn(1, 3, *size))
    assert list(features) == levels(name)
    for level, feature in features.items():
        stride = backbone.strides[level]
        assert feature.shape == (1, backbone.channels[level], -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(("name", "end"), [(name, end) for name in BACKBONES for end in levels(name)])
def test_truncate_after_removes_all_later_layers(name: str, end: str) -> None:
    backbone = BACKBONES[name](norm="frozen_bn", frozen_stages=0)
    assert isinstance(backbone, nn.Module)
    expected = backbone(images := torch.randn(1, 3, 64, 64))
    backbone.truncate_after(end)
    features = backbone(images)
    assert list(features) == list(backbone.channels) == list(backbone.strides) == LEVELS[: LEVELS.index(end) + 1]
    assert all(torch.equal(feature, expected[level]) for level, feature in features.items())
    features[end].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "norm"), [*(("resnet50", norm) for norm in NORMS), *((n, "bn") for n in BACKBONES)])
def test_empty_batch_gives_empty_feature_maps(name: str, norm: str, training: bool) -> None:
    backbone = build(name, norm=norm).train(training)
    features = backbone(torch.zeros(0, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in features.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)][: len(features)]
    assert all(len(x) == 0 for x in features.values())
    assert all(b.isfinite().all() for b in statistics([backbone]))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_option_sets_the_type_of_all_norm_layers(norm: str) -> None:
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, nn.GroupNorm)
    found = {type(m) for m in build("resnet50", norm=norm, frozen_stages=0).modules() if isinstance(m, kinds)}
    assert found == {type(NORMS[norm](64))}


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (96, 32), (64, 32), (32, 32), (48, 24), (8, 4)])
def test_group_norm_has_32_groups_if_they_divide_the_channels(channels: int, groups: int) -> None:
    assert NORMS["gn"](channels).num_groups == groups


def test_group_norm_of_one_value_per_group_returns_the_bias() -> None:
    norm = NORMS["gn"](32)
    nn.init.constant_(norm.bias, 0.5)  # pyright: ignore[reportArgumentType]
    # (x - mean) / sqrt(eps) is computed as the difference of two terms of a few hundred, with their float32 rounding.
    torch.testing.assert_close(norm(torch.randn(1, 32, 1, 1)), torch.full((1, 32, 1, 1), 0.5), rtol=0, atol=1e-3)


def test_group_norm_matches_torch() -> None:
    norm, torchs, x = NORMS["gn"](64), nn.GroupNorm(32, 64), torch.randn(2, 64, 3, 5)
    torch.testing.assert_close(norm(x), torchs(x), rtol=0, atol=0)


def test_norm_eps_applies_to_every_norm_layer() -> None:
    backbone = build("resnet50", norm="frozen_bn", norm_eps=0.0)
    assert {m.eps for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)} == {0.0}


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_in_1x1_selects_the_strided_convolution(in_1x1: bool) -> None:
    backbone = build("resnet50", stride_in_1x1=in_1x1)
    firsts = [next(stage[0].children()) for stage in stages(backbone)[1:]]
    strides = [(dict(b.named_children())["conv1"].stride, dict(b.named_children())["conv2"].stride) for b in firsts]
    moved = ((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2))
    assert strides == [((1, 1), (1, 1)), moved, moved, moved]


@pytest.mark.parametrize("name", resnet.SHAPES)
def test_offset_groups_are_validated_against_the_real_channels(name: Any) -> None:
    for level, (block, *_) in zip(LEVELS, stages(build(name))[1:], strict=True):
        channels = next(block.children()).get_submodule("conv2").get_parameter("weight").shape[0]
        section: Any = {"name": name, "deformable_stages": [level]}
        assert ResNetConfig(**section, offset_groups=channels)
        with pytest.raises(ValueError, match=f"must divide the {channels} channels of the 3x3 convolutions of {level}"):
            ResNetConfig(**section, offset_groups=2 * channels)


# ------------------------------------------------------------------------------------------------------ residual head


@pytest.mark.parametrize("in_1x1", [True, False])
@pytest.mark.parametrize("deformable", [[], ["C5"]])
def test_residual_head_computes_c5_from_c4(in_1x1: bool, deformable: list[str]) -> None:
    backbone = build("resnet50", stride_in_1x1=in_1x1, deformable_stages=deformable).eval()
    assert isinstance(backbone, resnet.ResNet)
    head = backbone.build_head("box").eval()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert head.out_channels == 2048
    torch.testing.assert_close(head(maps["C4"]), maps["C5"], rtol=0, atol=0)
    assert head(maps["C4"][:0]).shape == (0, 2048, 2, 3)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_dilated_residual_head_keeps_the_resolution(in_1x1: bool) -> None:
    backbone = build("resnet50", stride_in_1x1=in_1x1, norm="bn", head_dilation=2)
    assert isinstance(backbone, resnet.ResNet)
    head, regions = backbone.build_head("box").eval(), torch.randn(2, 1024, 14, 14)
    weights = [head.get_parameter(f"layer4.0.{name}.weight") for name in ("conv1", "conv2", "conv3", "downsample.0")]
    scale = (1 + 1e-5) ** -0.5  # of batch norm with its initial statistics
    y = (nn.functional.conv2d(regions, weights[0]) * scale).relu()
    y = (nn.functional.conv2d(y, weights[1], padding=2, dilation=2) * scale).relu()
    y = nn.functional.conv2d(y, weights[2]) * scale + nn.functional.conv2d(regions, weights[3]) * scale
    torch.testing.assert_close(head(regions), y.relu())
    assert backbone(torch.randn(1, 3, 64, 64))["C5"].shape == (1, 2048, 2, 2)


def test_residual_heads_have_separate_copies_of_the_weights_of_c5(tmp_path: Path) -> None:
    state = randomise(classifier("resnet50"))
    torch.save(state, tmp_path / "net.pth")
    backbone = build("resnet50", weights=str(tmp_path / "net.pth"))
    assert isinstance(backbone, resnet.ResNet)
    box, mask = backbone.build_head("box"), backbone.build_head("mask")
    backbone.truncate_after("C4")
    for head in (box, mask):
        assert all(torch.equal(tensor, state[name]) for name, tensor in head.state_dict().items())
    assert not {*box.parameters()} & {*mask.parameters()}
    assert not [name for name, _ in backbone.named_parameters() if name.startswith("layer4")]


def test_dilation_of_a_deformable_head_is_rejected() -> None:
    options = ["model.backbone.deformable_stages=[C5]", "model.backbone.head_dilation=2"]
    with pytest.raises(ConfigError, match="head_dilation: must be 1, because C5 is one of deformable_stages, found 2"):
        load_config(None, options)


def test_deepest_resnet_has_the_tensors_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # all blocks
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in build("resnet152", norm="bn", frozen_stages=0).state_dict().items()}
        expected = torchvision.models.resnet152().state_dict()
    assert shapes == {name: tensor.shape for name, tensor in expected.items() if not name.startswith("fc.")}


# ----------------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name in BACKBONES for count in range(len(levels(name)) + 2)]
)
def test_frozen_stages_freezes_exactly_the_first_stages(name: str, count: int) -> None:
    parts = stages(build(name, norm="bn", frozen_stages=count))
    for index, modules in enumerate(parts):
        assert parameters(modules)
        assert {p.requires_grad for p in parameters(modules)} == {index >= count}


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize(("name", "norm"), [*((name, "bn") for name in BACKBONES), ("mobilenet_v2", "sync_bn")])
def test_only_frozen_stages_keep_batch_norm_statistics_in_training(name: str, count: int, norm: str) -> None:
    backbone = build(name, norm=norm, frozen_stages=count).train()
    before = [statistics(modules) for modules in stages(backbone)]
    backbone(torch.randn(2, 3, 64, 64))
    for index, (old, modules) in enumerate(zip(before, stages(backbone), strict=True)):
        moved = [not torch.equal(a, b) for a, b in zip(old, statistics(modules), strict=True)]
        assert set(moved) == {index >= count}, index


def test_freeze_preserves_the_output() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, eps=0.1), nn.Sequential(nn.BatchNorm2d(8)))
    net(torch.randn(9, 3, 4, 4))
    images = torch.randn(2, 3, 4, 4)
    expected = net.eval()(images)
    torch.testing.assert_close(freeze(net).train()(images), expected)


def test_freeze_replaces_a_bare_batch_norm() -> None:
    norm = nn.BatchNorm2d(4)
    frozen = freeze(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert list(frozen.parameters()) == []


def test_frozen_stages_freezes_group_norm_parameters() -> None:
    parts = stages(build("resnet50", norm="gn", frozen_stages=2))
    assert [any(p.requires_grad for p in parameters(modules)) for modules in parts] == [False, False, True, True, True]


# ------------------------------------------------------------------------------------------------------------ weights


def classifier(name: str, classes: int = 7) -> nn.Module:
    if name == "mobilenet_v2":
        return torchvision.models.mobilenet_v2(num_classes=classes)
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=classes)


def randomise(net: nn.Module) -> dict[str, Tensor]:
    state = net.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return state


@pytest.mark.parametrize(("norm", "wrapped"), [("bn", None), ("frozen_bn", "model"), ("sync_bn", "state_dict")])
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvision_classifier_weights_load(name: str, norm: str, wrapped: str | None, tmp_path: Path) -> None:
    state = randomise(classifier(name))
    torch.save(state if wrapped is None else {wrapped: state, "epoch": 3}, tmp_path / "net.pth")
    own = build(name, norm=norm, weights=str(tmp_path / "net.pth")).state_dict()
    assert len(own) > 50
    for key, tensor in own.items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_features_match_torchvision(name: str, tmp_path: Path) -> None:
    net = classifier(name).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone, images = build(name, weights=str(tmp_path / "net.pth"), frozen_stages=3).eval(), torch.randn(1, 3, 64, 64)
    deepest = backbone(images)["C5"]
    if name == "mobilenet_v2":
        expected = dict(net.named_children())["features"][:18](images)  # pyright: ignore[reportIndexIssue]
    else:
        expected = nn.Sequential(*list(net.children())[:-2])(images)
    torch.testing.assert_close(deepest, expected)


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_weights_without_a_classifier_load(name: str, tmp_path: Path) -> None:
    state = {k: v for k, v in classifier(name).state_dict().items() if not k.startswith(("fc.", "classifier."))}
    torch.save(state, tmp_path / "net.pth")
    assert build(name, weights=str(tmp_path / "net.pth"))


def load_error(tmp_path: Path, content: Any, *, name: str = "mobilenet_v2", **options: Any) -> str:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError) as caught:
        build(name, weights=str(path), **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_weights_of_another_network_are_rejected(tmp_path: Path) -> None:
    text = load_error(tmp_path, classifier("resnet50").state_dict())
    assert "does not fit mobilenet_v2" in text
    assert "missing" in text
    assert "unknown" in text


def test_weights_with_another_norm_are_rejected(tmp_path: Path) -> None:
    text = load_error(tmp_path, classifier("resnet50").state_dict(), name="resnet50", norm="gn")
    assert "use the kind of norm that the weights have" in text


def test_width_mismatch_error_lists_the_tensor_shapes(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    text = load_error(tmp_path, state)
    assert "does not fit mobilenet_v2: " in text
    first = "features.0.0.weight [16, 3, 3, 3] instead of [32, 3, 3, 3], features.0.1.weight [16] instead of [32], "
    assert f" of a different shape, such as {first}" in text
    assert text.endswith("; give weights of mobilenet_v2, or model.backbone.weights=null")


def test_non_tensor_values_count_as_missing(tmp_path: Path) -> None:
    state = {**classifier("mobilenet_v2").state_dict(), "features.0.0.weight": 5, 7: torch.zeros(1)}
    text = load_error(tmp_path, state)
    assert "1 tensors missing ['features.0.0.weight'], 1 unknown ['7']" in text


@pytest.mark.parametrize("content", [{"model": "resnet"}, {"epoch": 3}, {}, [torch.zeros(3)], torch.zeros(3), 5])
def test_file_without_a_state_dict_is_rejected(content: Any, tmp_path: Path) -> None:
    assert "expected a state dict of tensors" in load_error(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"hello", b".", b"version https://git-lfs", b"PK\x03\x04rubbish", bytes(99)])
def test_file_of_another_format_is_rejected(content: bytes, tmp_path: Path) -> None:
    assert "not a readable state dict" in load_error(tmp_path, content)


def test_file_with_code_is_rejected(tmp_path: Path) -> None:
    assert "not a readable state dict" in load_error(tmp_path, {"model": pytest.raises})


def test_missing_file_and_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no file .*expected `imagenet`, catalog://NAME, an address, a path, or"):
        build("mobilenet_v2", weights=str(tmp_path / "none.pth"))
    with pytest.raises(WeightsError, match="not a readable state dict"):
        build("mobilenet_v2", weights=str(tmp_path))


def test_detectron_pickle_loads(tmp_path: Path) -> None:
    blobs = {"conv1_w": np.full((64, 3, 7, 7), 2, np.float32), "res_conv1_bn_s": np.full(64, 3, np.float32)}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(blobs))
    state = imagenet_weights("resnet50", str(tmp_path / "net.pkl"))
    assert {name: tensor.unique().tolist() for name, tensor in state.items()} == {
        "conv1.weight": [2],
        "bn1.weight": [3],
        "bn1.running_mean": [0],
        "bn1.running_var": [1],
    }


def test_rejected_pickle_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"conv1_w": Path}))
    with pytest.raises(WeightsError, match=r"model\.backbone\.weights: .*net\.pkl: .*it refers to pathlib"):
        build("resnet50", weights=str(tmp_path / "net.pkl"))


def test_module_prefix_of_tensor_names_is_stripped(tmp_path: Path) -> None:
    torch.save({"module.conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", str(tmp_path / "net.pth"))) == ["conv1.weight"]


def test_tilde_in_weights_path_expands_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "net.pth")
    assert list(imagenet_weights("resnet50", "~/net.pth")) == ["conv1.weight"]


@pytest.mark.parametrize(
    ("name", "weight_shape", "builder"),
    [
        ("resnext50_32x4d", (128, 4, 3, 3), torchvision.models.resnext50_32x4d),
        ("resnext50_1x128d", (128, 128, 3, 3), torchvision.models.wide_resnet50_2),
    ],
)
def test_other_resnexts_have_the_tensors_of_torchvision(
    name: str, weight_shape: tuple[int, ...], builder: Callable[[], nn.Module]
) -> None:
    backbone = build_backbone(ResNetConfig(name=name, weights=None))
    expected = builder().state_dict()
    assert backbone.layer1[0].conv2.weight.shape == weight_shape  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(backbone, nn.Module)
    shapes = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    assert shapes == {key: expected[key].shape for key in shapes}
    assert not [key for key in expected.keys() - shapes.keys() if not key.startswith("fc.") and "tracked" not in key]


@pytest.mark.parametrize(
    "name", ["resnext50_0x4d", "resnext50_32x4", "resnext18_32x4d", "resnet50\n", "resnext50_32x99999d"]
)
def test_misspelled_resnexts_are_errors(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.name: no backbone"):
        load_config(None, [f"model.backbone.name={json.dumps(name)}"])


def test_offset_groups_must_divide_the_channels_of_a_resnext() -> None:
    options = {"name": "resnext50_3x5d", "deformable_stages": ["C3"]}
    assert ResNetConfig.model_validate({**options, "offset_groups": 10}).offset_groups == 10
    with pytest.raises(ValueError, match="must divide the 30 channels of the 3x3 convolutions of C3, found 4"):
        ResNetConfig.model_validate({**options, "offset_groups": 4})
