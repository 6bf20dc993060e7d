"""Detectors of the original's configs: what has no counterpart, and the conventions that every config implies."""

from __future__ import annotations

from typing import Any

import pytest
from detectors import build_fcos, fcos_section
from original_configs import BODY, MOBILE, error_message, read
from torch import nn

from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import ConfigError
from fcos.interop.fcos_core import keys as fcos_core_keys
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.mapping import to_keys
from fcos.training.optim import freeze_parameters

# --------------------------------------------------------------------------------------------------------- differences


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 128}, "another backbone width"),
        ({"MODEL.META_ARCHITECTURE": "Other"}, "another meta-architecture"),
    ],
)
def test_unsupported_part_raises_with_key_and_reason(options: dict[str, Any], needs: str) -> None:
    text = error_message(*(str(item) for pair in options.items() for item in pair))
    for key in options:
        assert f"{key}=" in text
    assert f"(not supported: {needs})" in text


def test_stem_and_block_types_must_match() -> None:
    assert "expected BottleneckWithFixedBatchNorm" in error_message("MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN")
    norm = read("MODEL.RESNETS.TRANS_FUNC", "BottleneckWithGN", "MODEL.RESNETS.STEM_FUNC", "StemWithGN").model.backbone
    assert (norm.norm, norm.norm_eps) == ("gn", 1e-5)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("body", "groups", "width", "name"),
    [
        ("R-50-FPN-RETINANET", 32, 4, "resnext50_32x4d"),
        ("R-50-FPN-RETINANET", 1, 128, "resnext50_1x128d"),  # a wide ResNet
        ("R-101-FPN-RETINANET", 32, 4, "resnext101_32x4d"),
        ("R-101-FPN-RETINANET", 32, 8, "resnext101_32x8d"),
        ("R-101-FPN-RETINANET", 1, 64, "resnet101"),
    ],
)
def test_any_shape_of_a_residual_network_has_a_name(body: str, groups: int, width: int, name: str) -> None:
    shape = {"MODEL.RESNETS.NUM_GROUPS": groups, "MODEL.RESNETS.WIDTH_PER_GROUP": width}
    pairs = [str(item) for pair in shape.items() for item in pair]
    config = read(*pairs, body=["MODEL.BACKBONE.CONV_BODY", body])
    assert config.model.backbone.name == name
    settings = to_keys(flatten(config.model.model_dump()), 3)
    assert {key: settings.get(key, fcos_core_keys.DEFAULTS[key]) for key in shape} == shape
    assert settings["MODEL.BACKBONE.CONV_BODY"] == body


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "10000"])
@pytest.mark.parametrize("key", ["MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"])
def test_groups_and_widths_are_positive_integers(key: str, value: str) -> None:
    assert f"{key}={value}: expected an integer from 1 to 9999" in error_message(key, value)


RCNN_BODY = {"MODEL.BACKBONE.CONV_BODY": "R-50-FPN"}


C4 = {"MODEL.BACKBONE.CONV_BODY": "R-50-C4", "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 21}
PYRAMID = {
    **RCNN_BODY,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 256,
    "MODEL.RPN.USE_FPN": True,
    "MODEL.RPN.ANCHOR_STRIDE": (4, 8, 16, 32, 64),
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "FPN2MLPFeatureExtractor",
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (0.25, 0.125, 0.0625, 0.03125),
}


@pytest.mark.parametrize(
    ("options", "name", "title"),
    [
        (PYRAMID, "rcnn", "Faster R-CNN"),
        ({**PYRAMID, "MODEL.FCOS_ON": False}, "rcnn", "Faster R-CNN"),
        (C4, "rcnn", "Faster R-CNN"),
        ({**C4, "MODEL.MASK_ON": True}, "rcnn", "Mask R-CNN"),
        ({**PYRAMID, "MODEL.RPN_ONLY": True}, "rpn", "a region proposal network (RPN)"),
    ],
)
def test_backbone_and_switches_choose_a_detector_with_regions(
    options: dict[str, Any], name: str, title: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fcos"):
        config = config_from_yaml({}, [str(item) for pair in options.items() for item in pair], where="old.yaml")
    assert validate(config, where="x").model.name == name
    assert caplog.messages[0].startswith(f"old.yaml: a config for {title} (")
    assert ("the original would train FCOS" in caplog.messages[0]) == ("MODEL.FCOS_ON" not in options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "Mine"}, "EXTRACTOR='Mine': expected FPN2MLPFeatureExtractor or"),
        ({"MODEL.ROI_BOX_HEAD.POOLER_SCALES": (0.25,)}, "SCALES=(0.25,): expected [0.25, 0.125, 0.0625, 0.03125]"),
        ({"MODEL.RPN.ANCHOR_SIZES": (32,)}, "MODEL.RPN.ANCHOR_SIZES=(32,): expected one for each of MODEL.RPN.ANCHOR_"),
        ({"MODEL.RPN.USE_FPN": False}, "MODEL.RPN.ANCHOR_STRIDE=(4, 8, 16, 32, 64): expected one stride without"),
    ],
)  # fmt: skip
def test_contradicting_options_of_regions_have_a_clear_message(options: dict[str, Any], message: str) -> None:
    pairs = [str(item) for pair in {**PYRAMID, **options}.items() for item in pair]
    assert message in error_message(body=pairs)


def test_an_unknown_backbone_is_an_error_that_names_custom_backbones() -> None:
    text = error_message(body=["MODEL.BACKBONE.CONV_BODY", "R-18"])
    assert "add model.backbone.name=timm/NAME, or package.module:function for a backbone of your own" in text


@pytest.mark.parametrize(("value", "stages"), [("-1", 0), ("0", 0), ("5", 5)])
def test_a_negative_number_freezes_no_stage(value: str, stages: int) -> None:
    assert read("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", value).model.backbone.frozen_stages == stages


@pytest.mark.parametrize(
    ("pairs", "count"), [((), 2), (("-1",), 0), (("0",), 0), (("1",), 1), (("12",), 12), (("18",), 18)]
)
def test_mobilenet_is_frozen_by_blocks(pairs: tuple[str, ...], count: int) -> None:
    body = MOBILE[:2] if not pairs else [*MOBILE[:3], *pairs]
    config = read(body=body)
    assert config.train.freeze == [f"backbone.features.{block}.*" for block in range(count)]
    model = build_fcos(config.model, num_classes=1)
    freeze_parameters(model, config.train.freeze)
    frozen = [not any(p.requires_grad for p in block.parameters()) for block in model.backbone.features]  # pyright: ignore
    assert frozen == [block < count for block in range(18)]


@pytest.mark.parametrize("value", ["19", "1.5", "True"])
def test_mobilenet_has_no_more_blocks_to_freeze(value: str) -> None:
    body = [*MOBILE[:3], value]
    assert f"MODEL.BACKBONE.FREEZE_CONV_BODY_AT={value}: expected an" in error_message(body=body)


@pytest.mark.parametrize(("value", "radius"), [("-1", 0), ("0", 0), ("1.5", 1.5)])
def test_a_negative_radius_means_no_center_sampling(value: str, radius: float) -> None:
    assert fcos_section(read("MODEL.FCOS.CENTER_SAMPLING_RADIUS", value)).center_sampling_radius == radius


@pytest.mark.parametrize(("key", "value"), [("MODEL.RESNETS.RES5_DILATION", "2"), ("MODEL.BACKBONE.USE_GN", "True")])
def test_keys_of_other_backbones_have_no_effect(key: str, value: str) -> None:
    assert read(key, value) == read()


GROUP_NORM = [
    "MODEL.FPN.USE_GN",
    "True",
    "MODEL.RESNETS.TRANS_FUNC",
    "BottleneckWithGN",
    "MODEL.RESNETS.STEM_FUNC",
    "StemWithGN",
]


@pytest.mark.parametrize(
    ("dim", "groups", "option", "expected"), [(-1, 32, 32, 32), (-1, 16, 16, 16), (8, -1, -8, 8), (1, -1, -1, 64)]
)
def test_groups_of_group_norm_apply_to_backbone_and_pyramid(dim: int, groups: int, option: int, expected: int) -> None:
    pairs = ["MODEL.GROUP_NORM.DIM_PER_GP", str(dim), "MODEL.GROUP_NORM.NUM_GROUPS", str(groups)]
    channels = ["MODEL.RESNETS.BACKBONE_OUT_CHANNELS", "64", "MODEL.GROUP_NORM.EPSILON", "0.001"]
    config = read(*GROUP_NORM, *channels, *pairs)
    model = build_fcos(config.model, num_classes=1)
    assert model.backbone.bn1.num_groups == expected  # pyright: ignore[reportAttributeAccessIssue]
    assert model.backbone.bn1.eps == 1e-3  # pyright: ignore[reportAttributeAccessIssue]
    laterals = [module for module in model.fpn.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in laterals} == {(expected, 1e-3)}
    towers = [module for module in model.head.modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in towers} == {(32, 1e-5)}
    section = fcos_section(config)
    assert section.fpn.norm_groups == section.backbone.norm_groups == option  # pyright: ignore[reportAttributeAccessIssue]
    settings = to_keys(flatten(section.model_dump()), 3)
    again = fcos_section(validate(config_from_yaml(settings), where="x"))
    assert (again.fpn, again.backbone) == (section.fpn, section.backbone)


@pytest.mark.parametrize(("dim", "groups"), [("16", "32"), ("-1", "-1"), ("0", "-1"), ("-1", "1.5")])
def test_group_norm_needs_exactly_one_of_its_numbers(dim: str, groups: str) -> None:
    pairs = ["MODEL.GROUP_NORM.DIM_PER_GP", dim, "MODEL.GROUP_NORM.NUM_GROUPS", groups]
    assert "expected one of them -1, and the other at least 1" in error_message(*GROUP_NORM, *pairs)


def test_groups_must_divide_the_channels() -> None:
    pairs = ["MODEL.GROUP_NORM.NUM_GROUPS", "7"]
    with pytest.raises(ConfigError, match="must divide 64, found 7"):
        read(*GROUP_NORM, *pairs)
    with pytest.raises(ConfigError, match=r"fpn\.channels must be a multiple of 7 with norm gn, found 1024"):
        read(*GROUP_NORM[:2], *pairs)


# --------------------------------------------------------------------------------------------------------- conventions


def test_conventions_of_the_original_are_used() -> None:
    model = read().model
    assert (model.box_convention, model.channel_order, model.backbone.norm) == ("inclusive", "bgr", "frozen_bn")
    assert model.backbone.norm_eps == 0  # pyright: ignore[reportAttributeAccessIssue]
    assert model.backbone.stride_in_1x1  # pyright: ignore[reportAttributeAccessIssue]
    assert model.pixel_mean == (102.9801, 115.9465, 122.7717)
    assert model.pixel_std == (1, 1, 1)


def test_pixel_statistics_from_0_to_1_are_scaled_to_255() -> None:
    model = read(
        "INPUT.TO_BGR255", "False", "INPUT.PIXEL_MEAN", "[0.485, 0.456, 0.406]", "INPUT.PIXEL_STD", "[0.2, 0.4, 0.6]"
    ).model
    assert model.channel_order == "rgb"
    assert model.pixel_mean == pytest.approx((0.485 * 255, 0.456 * 255, 0.406 * 255))
    assert model.pixel_std == pytest.approx((51, 102, 153))


@pytest.mark.parametrize(
    ("body", "use_c5", "channels", "source"),
    [
        (BODY, "True", "256", "c5"),
        (BODY, "False", "256", "p5"),
        (BODY, "True", "2048", "p5"),
        (MOBILE, "True", "128", "p5"),
        (MOBILE, "True", "256", "p5"),
        (MOBILE, "False", "256", "p5"),
    ],
)
def test_p6_is_built_from_c5_only_with_a_resnet_of_other_channels(
    body: list[str], use_c5: str, channels: str, source: str
) -> None:
    pairs = ["MODEL.RETINANET.USE_C5", use_c5, "MODEL.RESNETS.BACKBONE_OUT_CHANNELS", channels]
    assert fcos_section(read(*pairs, body=body)).fpn.extra_level_source == source


def test_mobilenet_builds_p6_from_p5_if_the_key_is_omitted() -> None:
    assert fcos_section(read(body=MOBILE)).fpn.extra_level_source == "p5"


@pytest.mark.parametrize(("flag", "norm"), [("True", "sync_bn"), ("False", "bn")])
def test_mobilenet_uses_trainable_batch_norm(flag: str, norm: str) -> None:
    assert read("MODEL.USE_SYNCBN", flag, body=MOBILE).model.backbone.norm == norm


def test_test_time_augmentation_requires_the_enabled_key() -> None:
    values = {"H_FLIP": "True", "SCALES": "(400, 1200)", "MAX_SIZE": "3000", "SCALE_H_FLIP": "True"}
    pairs = [item for key, value in values.items() for item in (f"TEST.BBOX_AUG.{key}", value)]
    assert read(*pairs).eval == read().eval
    found = read(*pairs, "TEST.BBOX_AUG.ENABLED", "True").eval
    assert (found.flip, found.scales, found.scales_max_side, found.scales_flip) == (True, [400, 1200], 3000, True)


def test_num_classes_excludes_the_background() -> None:
    assert read("MODEL.FCOS.NUM_CLASSES", "21").model.num_classes == 20
    assert read().model.num_classes is None  # not given: taken from the data


def test_train_size_can_be_one_value_a_list_or_a_range() -> None:
    assert read("INPUT.MIN_SIZE_TRAIN", "640").data.short_side == [640]
    assert read("INPUT.MIN_SIZE_TRAIN", "(640, 800)").data.short_side == [640, 800]
    assert read("INPUT.MIN_SIZE_RANGE_TRAIN", "(640, 800)").data.short_side_range == (640, 800)
    assert read().data.short_side_range is None
