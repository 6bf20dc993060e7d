"""Keys of the original's backbones of two-stage detectors, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from fcos.config.backbones import FBNetConfig, ResNetConfig
from fcos.config.fbnet import ARCHITECTURES
from fcos.interop.fcos_core.bodies import BODIES
from fcos.interop.fcos_core.fbnet_rows import FBNET_ROWS
from fcos.interop.fcos_core.keys import DEFAULTS, is_idle
from fcos.interop.fcos_core.mapping import to_options

NAMES = {
    "R-50-C4": "resnet50",
    "R-101-C5": "resnet101",
    "R-152-FPN": "resnet152",
    "FBNet": "fbnet",
    "MNV2-FPN-RETINANET": "mobilenet_v2",
}
JSON = '{"block_op_type": [["ir_k3"]], "block_cfg": {"first": [8, 2], "stages": [[[1, 8, 1, 2]]], "backbone": [0]}}'


def convert(body: str, **keys: Any) -> dict[str, Any]:
    """Return our options of the backbone for a body and keys without `MODEL.`, with _ for dots of sections."""
    given = {"MODEL.BACKBONE.CONV_BODY": body} | {
        f"MODEL.{key.replace('__', '.')}": value for key, value in keys.items()
    }
    assert given.keys() <= DEFAULTS.keys()
    options = to_options({**DEFAULTS, **given}.__getitem__, detector="rcnn", num_classes_given=True)
    prefix = "model.backbone."
    return {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}


@pytest.mark.parametrize(("body", "name"), NAMES.items())
def test_bodies_have_our_names(body: str, name: str) -> None:
    assert convert(body)["name"] == name


@pytest.mark.parametrize("body", [name for name, body in BODIES.items() if body.kind == "resnet"])
def test_resnext_and_group_norm_apply_to_every_resnet(body: str) -> None:
    keys = {"RESNETS__NUM_GROUPS": 32, "RESNETS__WIDTH_PER_GROUP": 8, "GROUP_NORM__NUM_GROUPS": 16}
    norm = {"RESNETS__TRANS_FUNC": "BottleneckWithGN", "RESNETS__STEM_FUNC": "StemWithGN"}
    options = convert(body, **keys, **norm)
    assert options["name"] == f"resnext{BODIES[body].depth}_32x8d"
    section = ResNetConfig.model_validate(options)
    assert (section.norm, section.norm_groups) == ("gn", 16)


@pytest.mark.parametrize(
    ("body", "stages", "dilation"),
    [
        ("R-50-C4", ["C3", "C4"], 2),
        ("R-101-C5", ["C3", "C4", "C5"], 1),
        ("R-50-FPN", ["C3", "C4", "C5"], 1),
    ],
)
def test_c5_as_a_head_is_dilated_but_not_deformable(body: str, stages: list[str], dilation: int) -> None:
    """The original's head has no deformable convolutions, and its bodies are never dilated."""
    keys = {"RESNETS__STAGE_WITH_DCN": (False, True, True, True), "RESNETS__RES5_DILATION": 2}
    options = convert(body, **keys)
    assert options["deformable_stages"] == stages
    assert options["head_dilation"] == dilation


KEYS: dict[str, Any] = {
    "MODEL.FBNET.ARCH": "cham_v2",
    "MODEL.FBNET.ARCH_DEF": "",
    "MODEL.FBNET.BN_TYPE": "af",
    "MODEL.USE_SYNCBN": False,
    "MODEL.FBNET.SCALE_FACTOR": 0.5,
    "MODEL.FBNET.WIDTH_DIVISOR": 4,
    "MODEL.FBNET.DW_CONV_SKIP_BN": False,
    "MODEL.FBNET.DW_CONV_SKIP_RELU": False,
    "MODEL.FBNET.RPN_HEAD_BLOCKS": 1,
    "MODEL.FBNET.RPN_BN_TYPE": "bn",
    "MODEL.FBNET.DET_HEAD_LAST_SCALE": -1.0,
    "MODEL.FBNET.DET_HEAD_BLOCKS": [0, 1],
    "MODEL.FBNET.DET_HEAD_STRIDE": 1,
    "MODEL.FBNET.MASK_HEAD_LAST_SCALE": 2.0,
    "MODEL.FBNET.MASK_HEAD_BLOCKS": [1],
    "MODEL.FBNET.MASK_HEAD_STRIDE": 2,
    "MODEL.FBNET.KPTS_HEAD_LAST_SCALE": 0.5,
    "MODEL.FBNET.KPTS_HEAD_BLOCKS": [2],
    "MODEL.FBNET.KPTS_HEAD_STRIDE": 1,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL.FBNET.BN_TYPE": "bn", "MODEL.USE_SYNCBN": True, "MODEL.FBNET.RPN_BN_TYPE": ""},
        {"MODEL.FBNET.BN_TYPE": "gn", "MODEL.FBNET.ARCH": "custom", "MODEL.FBNET.ARCH_DEF": JSON},
    ],
)
def test_keys_of_fbnet_are_converted_in_both_directions(changes: dict[str, Any]) -> None:
    theirs = KEYS | changes
    restored: dict[str, Any] = {}
    for row in FBNET_ROWS:
        if row.ours is not None and row.theirs is not None:
            restored |= zip(row.keys, row.theirs(*row.ours(*(theirs[key] for key in row.keys))), strict=True)
    assert restored == theirs
    assert restored.keys() - {"MODEL.USE_SYNCBN"} == {key for key in DEFAULTS if key.startswith("MODEL.FBNET.")}


def test_keys_of_fbnet_give_a_valid_section() -> None:
    keys = {key.removeprefix("MODEL.").replace(".", "__"): value for key, value in KEYS.items()}
    flat = convert("FBNet", **keys)
    heads = {
        name: {key.partition(".")[2]: value for key, value in flat.items() if key.startswith(f"{name}.")}
        for name in ("box_head", "mask_head", "keypoint_head")
    }
    section = FBNetConfig.model_validate({key: value for key, value in flat.items() if "." not in key} | heads)
    assert (section.architecture, section.norm, section.rpn_norm) == ("cham_v2", "frozen_bn", "bn")
    assert (section.depthwise_norm, section.depthwise_relu, section.frozen_stages) == (True, True, 0)
    assert (section.box_head.last_scale, section.mask_head.blocks, section.keypoint_head.stride) == (-1.0, [1], 1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_have_the_original_names(architecture: str) -> None:
    assert convert("FBNet", FBNET__ARCH=architecture)["architecture"] == architecture


@pytest.mark.parametrize("detector", ["fcos", "retinanet"])
def test_keys_of_two_stage_backbones_have_no_effect_on_one_stage_detectors(detector: str) -> None:
    assert is_idle("MODEL.FBNET.ARCH", detector)
    assert is_idle("MODEL.RESNETS.RES5_DILATION", detector)
    assert not is_idle("MODEL.FBNET.ARCH", "rcnn")
    assert not is_idle("MODEL.RESNETS.RES5_DILATION", "rcnn")
