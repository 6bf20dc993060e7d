"""FBNet: architectures, blocks against torchvision and by hand, heads, and their options."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from fcos.config.backbones import FBNetConfig
from fcos.config.fbnet import ARCHITECTURES, find_architecture
from fcos.errors import ConfigError
from fcos.models.backbones.fbnet import FBNet
from fcos.models.layers import SyncBatchNorm
from fcos.recipes import load_config


def definition(kind: str = "ir_k3", *, stride: int = 2, **changes: Any) -> str:
    """Return an architecture in JSON: 8 channels, then a trunk of two blocks, and a head of three blocks."""
    section = {
        "first": [8, 2],
        "stages": [[[1, 8, 1, 1]], [[3, 16, 1, stride]], [[2, 16, 2, 1], [2, 24, 1, -2]]],
        "last": [40, 0.0],
        "backbone": [0, 1],
        "bbox": [2],
    }
    kinds = [["ir_k3"], [kind], ["ir_k3"] * 3]
    kinds = changes.pop("block_op_type", kinds)
    return json.dumps({"block_op_type": kinds, "block_cfg": {**section, **changes}})


# ------------------------------------------------------------------------------------------------------ architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_builtin_architectures_equal_their_definition_in_json(name: str) -> None:
    blocks = ARCHITECTURES[name].blocks
    stages = range(blocks[-1].stage + 1)
    heads = {"box": "bbox", "rpn": "rpn", "mask": "mask"}
    text = json.dumps(
        {
            "block_op_type": [[f"ir_k{b.kernel}" for b in blocks if b.stage == stage] for stage in stages],
            "block_cfg": {
                "first": ARCHITECTURES[name].stem[:2],
                "stages": [[[b.expansion, b.channels, 1, b.stride] for b in blocks if b.stage == s] for s in stages],
                "last": [0, 0.0],
                "backbone": [0, 1, 2, 3],
                **{heads[kind]: stages for kind, stages in ARCHITECTURES[name].heads.items()},
            },
        }
    )
    assert find_architecture(text) == ARCHITECTURES[name]


def test_head_without_stage_uses_the_default_head_or_all_stages() -> None:
    architecture = find_architecture(definition(head=[1]))
    assert [b.stage for b in architecture.head_blocks("box")] == [2, 2, 2]
    assert [b.stage for b in architecture.head_blocks("mask")] == [1]
    assert [b.stage for b in architecture.head_blocks("rpn")] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaul", "must be one of default, xirb16d_dsmask, mobilenet_v2, cham_v1a, cham_v2, or a definition in JSON"),
        ("{", "must define an architecture: the JSON text: Invalid JSON"),
        ("{}", "must define an architecture: block_op_type: Field required"),
        (definition("skip"), "no block 'skip'; known are shuffle, and names such as ir_k3"),
        (definition("ir_k4"), "no block 'ir_k4'"),
        (definition(stride=3), "block_cfg.stages: strides must be among 1, 2, 4, -1, -2, -4, found 3"),
        (definition(stride=1), r"strides must not decrease and must reach 4 pixels, found \[2, 2, 2\]"),
        (
            definition(backbone=[0, 1, 2]),
            r"strides must not decrease and must reach 4 pixels, found \[2, 2, 4, 4, 4, -8\]",
        ),
        (definition(backbone=[0, 1, 3]), "no stage 3; there are 3, numbered from 0"),
        (definition(block_op_type=[["ir_k3"]]), "block_op_type.1: expected 1 blocks, as in block_cfg, found 0"),
        (definition(first=[8, 3]), r"block_cfg.first: expected \[channels, stride, kernel size\], found \[8, 3, 3\]"),
        (definition(first=[8]), "block_cfg.first: List should have at least 2 items"),
        (definition(last=[10**6, 0]), "block_cfg.last.0: Input should be less than or equal to 8192"),
    ],
)
def test_invalid_architectures_are_rejected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FBNetConfig(architecture=text)


def test_message_about_an_architecture_names_the_option() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.architecture: must be one of default, .*found 'chamv1'"):
        load_config(None, ["model.backbone.name=fbnet", "model.backbone.architecture=chamv1"])


# ------------------------------------------------------------------------------------------------------------- blocks


def test_mobilenet_architecture_matches_torchvision() -> None:
    """FBNet has ReLU instead of ReLU6, and expands in its first block, too, here with the identity."""
    torch.manual_seed(0)
    theirs = mobilenet_v2().features.eval()
    ours = FBNet(architecture="mobilenet_v2", depthwise_norm=True, depthwise_relu=True).eval()
    for path, module in list(theirs.named_modules()):
        if isinstance(module, nn.ReLU6):
            theirs.set_submodule(path, nn.ReLU())
    with torch.no_grad():
        first = ours.get_submodule("stages.xif0_0.pw")
        first.get_parameter("conv.weight").copy_(torch.eye(32)[..., None, None])
        first.get_buffer("bn.running_var").fill_(1 - 1e-5)
    layers = [
        m for name, m in ours.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and "xif0_0.pw." not in name
    ]
    sources = [m for m in theirs[:14].modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for layer, source in zip(layers, sources, strict=True):
        layer.load_state_dict(source.state_dict())
    images = torch.randn(2, 3, 65, 97)
    for level, end in {"C2": 4, "C3": 7, "C4": 14}.items():
        # Another order of float32 operations in 14 layers.
        torch.testing.assert_close(ours(images)[level], theirs[:end](images), rtol=1e-4, atol=1e-5)


def conv(layers: nn.Module, x: Tensor, *, stride: int = 1, groups: int = 1) -> Tensor:
    weight = layers.get_parameter("conv.weight")
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    if "bn.weight" in dict(layers.named_parameters()):
        x = (x - layers.get_buffer("bn.running_mean")[:, None, None]) / (
            layers.get_buffer("bn.running_var")[:, None, None] + 1e-5
        ).sqrt()
        x = x * layers.get_parameter("bn.weight")[:, None, None] + layers.get_parameter("bn.bias")[:, None, None]
    return x


@pytest.mark.parametrize(
    ("kind", "expansion", "kernel", "groups", "extra"),
    [
        ("ir_k3", 3, 3, 1, ""),
        ("ir_k1", 3, 1, 1, ""),
        ("ir_k7", 3, 7, 1, ""),
        ("ir_k5_e6", 6, 5, 1, ""),
        ("ir_k3_e1_se", 1, 3, 1, "weights"),
        ("ir_k5_s4", 4, 5, 4, ""),
        ("ir_k3_s2_se", 1, 3, 2, "weights"),
        ("shuffle", 3, 3, 4, ""),
        ("ir_k3_sep", 3, 3, 1, "double"),
        ("ir_k33_e6", 6, 3, 1, "double"),
        ("ir_k7_sep_e3", 3, 7, 1, "double"),
    ],
)
def test_blocks_compute_what_their_names_say(kind: str, expansion: int, kernel: int, groups: int, extra: str) -> None:
    torch.manual_seed(0)
    net = FBNet(architecture=definition(kind, stride=2)).eval()
    block = net.get_submodule("stages.xif1_0")
    for name, values in [*block.named_parameters(), *block.named_buffers()]:
        if name.endswith(("bn.weight", "bn.bias", "running_mean", "running_var")):
            nn.init.uniform_(values, 0.5, 1.5)
    x = torch.randn(2, 8, 7, 9)
    channels = 8 * expansion
    y = conv(block.get_submodule("pw"), x, groups=groups).relu()
    assert y.shape == (2, channels, 7, 9)
    if groups > 1:
        y = y.view(2, groups, channels // groups, 7, 9).transpose(1, 2).reshape(2, channels, 7, 9)
    if extra == "double":
        y = conv(block.get_submodule("dw.dw1"), y, stride=2, groups=channels).relu()
        y = conv(block.get_submodule("dw.dw2"), y, groups=channels)
    elif kernel > 1:
        y = conv(block.get_submodule("dw"), y, stride=2, groups=channels)
    assert kernel == max(p.shape[-1] for p in block.parameters() if p.ndim == 4)
    y = conv(block.get_submodule("pwl"), y, groups=groups)
    if extra == "weights":
        squeeze, excite = block.get_submodule("se4.op.1"), block.get_submodule("se4.op.3")
        assert squeeze.get_parameter("weight").shape == (8, 16, 1, 1)
        y = y * excite(squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


def test_equal_shapes_and_stride_1_add_the_input() -> None:
    head = FBNet(architecture=definition()).build_head("box").eval()
    block, x = head.get_submodule("blocks.xif2_0"), torch.randn(1, 16, 5, 5)
    nn.init.zeros_(block.get_parameter("pwl.bn.weight"))
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_negative_stride_upsamples_before_the_depthwise_convolution() -> None:
    head = FBNet(architecture=definition()).build_head("box").eval()
    block, x = head.get_submodule("blocks.xif2_2"), torch.randn(2, 16, 3, 4)
    y = conv(block.get_submodule("pw"), x).relu().repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = conv(block.get_submodule("pwl"), conv(block.get_submodule("dw"), y, groups=32))
    torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "divisor", "expected"),
    [
        (1.0, 8, [32, 16, 24, 32, 64, 96]),
        (0.5, 8, [16, 8, 16, 16, 32, 48]),
        (0.1, 8, [64, 64, 64, 64, 8, 8]),  # 3, 1, 2 and 3 become 64, because less than half of 8 becomes 8 * 8
        (1.3, 1, [41, 20, 31, 41, 83, 124]),
        (2.0, 16, [64, 32, 48, 64, 128, 192]),
    ],
)
def test_channels_are_rounded_as_in_the_original(width: float, divisor: int, expected: list[int]) -> None:
    net = FBNet(width=width, width_divisor=divisor)
    blocks = [net.get_submodule(f"stages.{name}") for name in ("xif0_0", "xif1_0", "xif2_0", "xif3_0", "xif3_4")]
    layers = [net.get_submodule("first"), *(block.get_submodule("pwl") for block in blocks)]
    assert [layer.get_parameter("conv.weight").shape[0] for layer in layers] == expected


@pytest.mark.parametrize(("norm", "kind"), [("sync_bn", SyncBatchNorm), ("gn", nn.GroupNorm)])
def test_norm_applies_to_all_layers_and_heads(norm: str, kind: type[nn.Module]) -> None:
    net = FBNet(norm=norm)
    for part in (net, net.build_head("rpn"), net.build_head("box")):
        assert {type(m) for m in part.modules() if "bn" in type(m).__name__.lower() or isinstance(m, kind)} != set()
        assert not any(type(m) is nn.BatchNorm2d for m in part.modules())


# -------------------------------------------------------------------------------------------------------------- heads


def names(head: nn.Module) -> list[str]:
    return [name for name, _ in head.get_submodule("blocks").named_children()]


def test_head_options_select_blocks_stride_and_last_convolution() -> None:
    net = FBNet(
        architecture=definition(),
        rpn_blocks=2,
        rpn_norm="frozen_bn",
        box_head={"blocks": [0, 2], "stride": 2, "last_scale": 0.5},
        mask_head={"last_scale": -2.0},
    )
    box = net.build_head("box").eval()
    assert names(box) == ["xif2_0", "xif2_2"]
    assert box.out_channels == 24  # 40 * 0.5 channels, rounded half up to a multiple of 8
    assert box(torch.randn(3, 16, 6, 6)).shape == (3, 24, 6, 6)  # halved, then upsampled
    assert box.last(torch.randn(3, 24, 6, 6)).min() >= 0
    mask = net.build_head("mask")
    assert names(mask) == ["xif0_0", "xif1_0", "xif2_0", "xif2_1", "xif2_2"]
    assert mask.out_channels == 48
    rpn = net.build_head("rpn")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in rpn.modules())
    keypoint = net.build_head("keypoint").eval()
    assert keypoint.out_channels == 24
    assert keypoint(torch.randn(2, 16, 8, 8)).shape == (2, 24, 8, 8)


def test_last_rpn_blocks_are_used() -> None:
    assert names(FBNet(rpn_blocks=2).build_head("rpn")) == ["xif5_1", "xif5_2"]


def test_heads_do_not_share_layers() -> None:
    net = FBNet()
    assert not {*net.build_head("box").parameters()} & {*net.build_head("box").parameters()}


@pytest.mark.parametrize("kind", ["rpn", "box", "mask", "keypoint"])
def test_heads_accept_no_regions(kind: Any) -> None:
    head = FBNet().build_head(kind)
    assert head(torch.zeros(0, 96, 6, 6)).shape[:2] == (0, head.out_channels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"architecture": definition("ir_k3_s4"), "width": 0.25, "width_divisor": 1},
            "architecture: 4 groups must divide the channels of a convolution, found 2 and 8; set"
            " model.backbone.width_divisor=4",
        ),
        (
            {"norm": "gn", "width": 1.3, "width_divisor": 1},
            "norm=gn: expected even numbers of channels, found 41; set model.backbone.width_divisor=2",
        ),
    ],
)
def test_impossible_groups_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FBNet(**options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rpn_blocks=4", "rpn_blocks: must be at most 3, the number of blocks of this head, found 4"),
        ("mask_head.blocks=[0,5]", "mask_head: blocks: the blocks of this head have the numbers 0 to 4, found 5"),
        ("box_head.stride=3", "box_head.stride: should be at most 2, found 3"),
    ],
)
def test_impossible_head_options_are_rejected(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["model.backbone.name=fbnet", f"model.backbone.{option}"])
