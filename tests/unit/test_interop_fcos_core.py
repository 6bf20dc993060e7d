"""Conversion of the original's configs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectors import build_fcos, fcos_section
from torch import nn

from fcos.config import Config
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import ConfigError
from fcos.interop.fcos_core import keys as fcos_core_keys
from fcos.interop.fcos_core.config import config_from_yaml, split_pairs
from fcos.interop.fcos_core.mapping import KEYS, to_keys
from fcos.recipes import load_config
from fcos.training.optim import freeze_parameters

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"
DEFAULTS: dict[str, Any] = json.loads((GOLDENS / "facts" / "default_config.json").read_text())
BODY = ["MODEL.BACKBONE.CONV_BODY", "R-50-FPN-RETINANET"]
MOBILE = ["MODEL.BACKBONE.CONV_BODY", "MNV2-FPN-RETINANET", "MODEL.BACKBONE.FREEZE_CONV_BODY_AT", "0"]


def read(*pairs: str, body: list[str] = BODY) -> Config:
    return validate(config_from_yaml({}, [*body, *pairs], where="x"), where="x")


def error_message(*pairs: str, tree: dict[str, Any] | None = None, body: list[str] = BODY) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(tree or {}, [*body, *pairs], where="old.yaml")
    return str(caught.value)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# ----------------------------------------------------------------------------------------------------------- the keys


def test_default_values_match_the_original() -> None:
    config = validate(config_from_yaml(DEFAULTS, BODY), where="x")
    assert config == read("MODEL.FCOS.NUM_CLASSES", "81")  # our table has the same defaults


# These keys have an effect only together with others; see the tests below.
AUGMENTATION = ("ENABLED", "H_FLIP", "SCALES", "MAX_SIZE", "SCALE_H_FLIP")
CONDITIONAL = {"MODEL.USE_SYNCBN", *(f"TEST.BBOX_AUG.{key}" for key in AUGMENTATION)}


@pytest.mark.parametrize("key", leaves(DEFAULTS))
def test_every_changed_key_is_converted_rejected_or_reported(key: str, caplog: pytest.LogCaptureFixture) -> None:
    default = leaves(DEFAULTS)[key]
    if isinstance(default, list):
        other: Any = [7.0] * max(len(default), 1)
    else:
        other = {bool: not default, str: "other", int: 7, float: 0.123}[type(default)]
    body = [] if key == BODY[0] else BODY
    with caplog.at_level(logging.INFO, logger="fcos"):
        try:
            outcome = "changed" if validate(config_from_yaml({key: other}, body), where="x") != read() else "same"
        except ConfigError as error:
            outcome = f"refused {error}"
    if outcome == "same" and key not in CONDITIONAL:
        assert caplog.messages == [f"config: ignoring keys without effect on an FCOS model: {key}"]
    else:
        assert caplog.messages == []
        assert "no such key" not in outcome


def test_unknown_key_suggests_the_closest_key() -> None:
    assert (
        "MODEL.FCOS.NMS: no such key in the config of the original FCOS, did you mean 'MODEL.FCOS.NMS_TH'?"
        in error_message("MODEL.FCOS.NMS", "1")
    )


def test_all_errors_are_reported_at_once() -> None:
    tree = {"MODEL": {"FCOS": {"FOO": 1}, "RESNETS": {"STEM_OUT_CHANNELS": 2}}, "SOLVER": {"BASE_LR": "high"}}
    text = error_message("INPUT.PIXEL_MEAN", "(1, 2)", tree=tree, body=["MODEL.BACKBONE.CONV_BODY", "VGG"])
    assert text.startswith("old.yaml:\n")
    for key in ("MODEL.FCOS.FOO", "MODEL.RESNETS.STEM_OUT_CHANNELS", "SOLVER.BASE_LR", "INPUT.PIXEL_MEAN"):
        assert f"  {key}" in text
    assert "MODEL.BACKBONE.CONV_BODY='VGG': expected one of R-50-FPN-RETINANET, R-101-FPN-RETINANET, MNV2" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BASE_LR", "abc", "a number"),
        ("SOLVER.BASE_LR", "True", "a number"),
        ("INPUT.MAX_SIZE_TRAIN", "(3,)", "a number"),
        ("MODEL.FCOS.NORM_REG_TARGETS", "1", "True or False"),
        ("MODEL.FCOS.NORM_REG_TARGETS", "true", "True or False"),
        ("INPUT.PIXEL_MEAN", "3", "a list of 3 numbers"),
        ("INPUT.PIXEL_STD", "('a','b','c')", "a list of 3 numbers"),
        ("INPUT.MIN_SIZE_RANGE_TRAIN", "(640,)", "a list of 2 numbers"),
        ("INPUT.MIN_SIZE_TRAIN", "('a',)", "a list of numbers"),
        ("MODEL.FCOS.FPN_STRIDES", "8", "a list of 5 numbers"),
        ("SOLVER.STEPS", "8", "a list of increasing integers of at least 1"),
        ("SOLVER.STEPS", "(1, 'a')", "a list of increasing integers of at least 1"),
        ("SOLVER.STEPS", "(2, 1)", "a list of increasing integers of at least 1"),
        ("SOLVER.STEPS", "(0.5,)", "a list of increasing integers of at least 1"),
        ("SOLVER.STEPS", "(0, 1)", "a list of increasing integers of at least 1"),
        ("SOLVER.STEPS", "(True,)", "a list of increasing integers of at least 1"),
        ("TEST.BBOX_AUG.SCALES", "640", "a list of numbers"),
    ],
)
def test_values_of_wrong_type_raise(key: str, value: str, expected: str) -> None:
    text = error_message(key, value)
    assert text.startswith(f"old.yaml: {key}=")
    assert text.endswith(f"expected {expected}")


@pytest.mark.parametrize(
    ("tree", "expected_text"),
    [
        ({"MODEL": 3}, "MODEL=3"),
        ({"MODEL": {"RESNETS": None}}, "MODEL.RESNETS=None"),
        ({"MODEL": {"FCOS": "x"}}, "MODEL.FCOS='x'"),
        ({"MODEL": {"RPN": 3}}, "MODEL.RPN=3"),
    ],
)
def test_value_in_place_of_a_section_raises(tree: dict[str, Any], expected_text: str) -> None:
    assert error_message(tree=tree) == f"old.yaml: {expected_text}: expected a section with keys"


def test_number_as_key_raises() -> None:
    assert "MODEL.1: no such key in the config of the original FCOS" in error_message(tree={"MODEL": {1: 2}})


def test_known_keys_match_the_keys_of_the_original() -> None:
    assert sorted([*fcos_core_keys.DEFAULTS, *fcos_core_keys.IDLE]) == sorted(leaves(DEFAULTS))


@pytest.mark.parametrize("key", ["MODEL.RETINANET.USE_C", "MODEL.RPN.NOPE", "TEST.EXPECTED_RESULT"])
def test_unknown_key_in_an_ignored_section_raises(key: str) -> None:
    assert f"{key}: no such key in the config of the original FCOS" in error_message(key, "False")


@pytest.mark.parametrize(
    ("key", "value", "expected_text"),
    [
        ("SOLVER.MAX_ITER", "100.5", "SOLVER.MAX_ITER (train.iterations): should be an integer"),
        ("SOLVER.BASE_LR", "-1", "SOLVER.BASE_LR (train.lr): should be greater than 0, found -1"),
        ("MODEL.FCOS.IOU_LOSS_TYPE", "diou", "MODEL.FCOS.IOU_LOSS_TYPE (model.box_loss): should be 'iou', "),
        ("MODEL.FCOS.NUM_CLASSES", "1", "MODEL.FCOS.NUM_CLASSES=1: expected an integer of at least 2"),
        ("MODEL.FCOS.NUM_CLASSES", "1.5", "MODEL.FCOS.NUM_CLASSES=1.5: expected an integer of at least 2"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "INPUT.MIN_SIZE_TRAIN (data): short_side must contain positive pixel counts"),
        ("INPUT.MIN_SIZE_RANGE_TRAIN", "(800, 640)", "INPUT.MIN_SIZE_RANGE_TRAIN (data): short_side_range must be"),
        (
            "MODEL.BACKBONE.FREEZE_CONV_BODY_AT",
            "7",
            "MODEL.BACKBONE.FREEZE_CONV_BODY_AT (model.backbone.frozen_stages)",
        ),
        ("MODEL.FCOS.FPN_STRIDES", "(8.5, 16, 32, 64, 128)", "MODEL.FCOS.FPN_STRIDES (model.strides.0): should be a"),
        ("INPUT.MIN_SIZE_TRAIN", "640.5", "INPUT.MIN_SIZE_TRAIN (data.short_side.0): should be an integer"),
    ],
)
def test_invalid_value_error_names_the_original_key(key: str, value: str, expected_text: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [key, value])
    assert str(caught.value).startswith(f"{path}: {expected_text}")


def test_mapped_names_are_existing_options() -> None:
    assert set(KEYS) <= set(leaves(read().to_dict()))


@pytest.mark.parametrize("text", ["{[]: 1}", "(" * 1000 + ")" * 1000, "(" * 100_000])
def test_text_that_is_not_a_literal_stays_text(text: str) -> None:
    assert read("MODEL.WEIGHT", text).train.weights == text


def test_num_groups_must_be_a_number() -> None:
    assert "MODEL.RESNETS.NUM_GROUPS=[1]: expected a number" in error_message("MODEL.RESNETS.NUM_GROUPS", "[1]")


def test_key_value_pairs_are_separated_from_other_arguments() -> None:
    address = "https://huggingface.co/tianzhi/FCOS/resolve/main/FCOS_R_50_FPN_1x.pth?download=true#fcos_R_50_FPN_1x.pth"
    pairs = ["MODEL.WEIGHT", address, "OUTPUT_DIR", "a=b", "MODEL.FOO", "OUTPUT_DIR"]
    words = ["IMG_1.JPG", *pairs[:2], "data=a", *pairs[2:], "TEST", "SOLVER.STEPS"]
    assert split_pairs(words) == ([*pairs, "SOLVER.STEPS"], ["IMG_1.JPG", "data=a", "TEST"])


def test_existing_file_whose_name_begins_like_a_key_is_not_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TEST.jpg", "OUTPUT_DIR"):
        (tmp_path / name).touch()
    assert split_pairs(["TEST.jpg", "TEST.png", "OUTPUT_DIR", "b"]) == (["TEST.png", "OUTPUT_DIR"], ["TEST.jpg", "b"])


@pytest.mark.parametrize(
    ("key", "close"), [("solver.base_lr", "SOLVER.BASE_LR"), ("MODLE.FCOS.NMS_TH", "MODEL.FCOS.NMS_TH")]
)
def test_key_with_typo_in_section_suggests_the_closest_key(key: str, close: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [key, "0.5"])
    expected = "expected key=value, or a KEY of the original and its VALUE"
    assert str(caught.value) == f"{path}: {key!r}: {expected}, did you mean {close!r}?"


@pytest.mark.parametrize("folder", ["", "."])
def test_empty_or_current_output_dir_becomes_none(folder: str) -> None:
    assert read("OUTPUT_DIR", folder).output_dir is None


def test_key_without_value_raises() -> None:
    assert "expected KEY VALUE pairs" in error_message("SOLVER.BASE_LR")


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


@pytest.mark.parametrize(
    ("options", "detector"),
    [
        ({"MODEL.RETINANET_ON": True}, "RetinaNet"),  # as in the original's own file, without FCOS_ON
        ({"MODEL.FCOS_ON": False, "MODEL.RETINANET_ON": True}, "RetinaNet"),
        (RCNN_BODY, "Faster R-CNN"),
        ({"MODEL.BACKBONE.CONV_BODY": "R-50-C4", "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 21}, "Faster R-CNN"),
        ({"MODEL.FCOS_ON": False}, "Faster R-CNN"),
        ({**RCNN_BODY, "MODEL.MASK_ON": True}, "Mask R-CNN"),
        ({**RCNN_BODY, "MODEL.MASK_ON": True, "MODEL.KEYPOINT_ON": True}, "Keypoint R-CNN"),
        ({**RCNN_BODY, "MODEL.RPN_ONLY": True}, "a region proposal network (RPN)"),
    ],
)
def test_a_config_for_another_detector_is_an_error_with_its_name(options: dict[str, Any], detector: str) -> None:
    pairs = [str(item) for pair in options.items() for item in pair]
    assert error_message(*pairs, "NO.KEY", "1").startswith(
        f"old.yaml: a config for {detector}, which this project does not"
    )


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


def test_original_config_accepts_pairs_and_our_overrides(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    tree = {"MODEL": {"BACKBONE": {"CONV_BODY": "R-101-FPN-RETINANET"}}, "SOLVER": {"STEPS": "(60000, 60000, 80000)"}}
    path.write_text(yaml.safe_dump(tree))
    pairs = ["SOLVER.BASE_LR", "1e-3", "MODEL.FCOS.CENTER_SAMPLING_RADIUS", "1.5", "INPUT.MIN_SIZE_TRAIN", "(640,)"]
    pairs += ["MODEL.WEIGHT", "https://a.b/c.pth?download=true#d.pth"]
    config = load_config(path, [*pairs, "data=cells", "train.iterations=100"])
    assert config.train.weights == pairs[-1]
    assert config.model.backbone.name == "resnet101"
    assert (config.train.lr, config.train.iterations) == (1e-3, 100)
    assert config.train.milestones == [60000, 60000, 80000]  # two drops of the lr at once, as in the original
    assert fcos_section(config).center_sampling_radius == 1.5
    assert config.data.short_side == [640]
    assert config.data.root == Path("cells")


def test_error_message_names_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("MODEL: {BACKBONE: {CONV_BODY: R-18}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: MODEL.BACKBONE.CONV_BODY='R-18': expected one of")
