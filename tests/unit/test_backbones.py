"""Backbones: the contract, normalisation, layers of ResNet for heads, freezing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from small_backbones import build, one_block_per_stage
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fcos.config.backbones import ResNetConfig
from fcos.errors import ConfigError
from fcos.models.backbones import BACKBONES, build_backbone, resnet
from fcos.models.layers import NORMS, freeze, group_norm_by_channels
from fcos.recipes import load_config

LEVELS = ["C2", "C3", "C4", "C5"]
FBNET_LEVELS = LEVELS[:3]


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    one_block_per_stage(monkeypatch)


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


@pytest.mark.parametrize("name", BACKBONES)
def test_truncate_after_removes_all_later_layers(name: str) -> None:
    backbone = BACKBONES[name](norm="frozen_bn", frozen_stages=0)
    assert isinstance(backbone, nn.Module)
    expected = backbone(images := torch.randn(1, 3, 64, 64))
    for end in reversed(levels(name)):
        backbone.truncate_after(end)
        features = backbone(images)
        assert list(features) == list(backbone.channels) == list(backbone.strides) == LEVELS[: LEVELS.index(end) + 1]
        assert all(torch.equal(feature, expected[level]) for level, feature in features.items())
        backbone.zero_grad()
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_from_statistics_of_channels_matches_torch(memory_format: torch.memory_format) -> None:
    norm = nn.GroupNorm(8, 64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(2, 64, 9, 5) * 3 + torch.arange(64)[:, None, None] % 8).to(memory_format=memory_format)
    x.requires_grad_()
    gradient, outputs, gradients = torch.randn_like(x), [], []
    for found in (norm(x), group_norm_by_channels(x, 8, norm.weight, norm.bias, eps=norm.eps)):
        outputs.append(found)
        gradients.append(torch.autograd.grad(found, (x, norm.weight, norm.bias), gradient))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


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


# ------------------------------------------------------------------------------------------------------------ ResNets


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
    with torch.device("meta"):
        backbone, expected = build_backbone(ResNetConfig(name=name, weights=None)), builder().state_dict()
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


# ----------------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name in BACKBONES for count in range(len(levels(name)) + 2)]
)
def test_frozen_stages_freezes_exactly_the_first_stages(name: str, count: int) -> None:
    with torch.device("meta"):
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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_frozen_batch_norm_equals_torchvision_bit_for_bit_in_float32(memory_format: torch.memory_format) -> None:
    expected, norm = FrozenBatchNorm2d(70), NORMS["frozen_bn"](70)
    for buffer in expected.buffers():
        buffer.uniform_(0.5, 2.0)
    norm.load_state_dict(expected.state_dict())
    x = torch.randn(2, 70, 9, 11).contiguous(memory_format=memory_format).requires_grad_()
    before, gradient = x.detach().clone(), torch.randn(2, 70, 9, 11)
    outputs = [layer(x) for layer in (norm, expected)]
    gradients = [torch.autograd.grad(output, x, gradient)[0] for output in outputs]
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)
    assert torch.equal(x, before)


def test_frozen_batch_norm_keeps_half_precision() -> None:
    norm = NORMS["frozen_bn"](8)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2.0)
    x = torch.randn(2, 8, 5, 7)
    for dtype, tolerance in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):  # 8 and 11 bits of mantissa
        found = norm(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), norm(x), rtol=tolerance, atol=tolerance)


def test_freeze_replaces_a_bare_batch_norm() -> None:
    norm = nn.BatchNorm2d(4)
    frozen = freeze(norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert list(frozen.parameters()) == []


def test_frozen_stages_freezes_group_norm_parameters() -> None:
    parts = stages(build("resnet50", norm="gn", frozen_stages=2))
    assert [any(p.requires_grad for p in parameters(modules)) for modules in parts] == [False, False, True, True, True]
