"""Keys of the original's configs: each is converted, rejected with its name, or reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectors import fcos_section
from original_configs import BODIES, BODY, DEFAULTS, RECORDED, error_message, leaves, other_value, read, recorded_config

from fcos.config.overrides import validate
from fcos.errors import ConfigError
from fcos.interop.fcos_core import keys as fcos_core_keys
from fcos.interop.fcos_core.config import config_from_yaml, split_pairs
from fcos.interop.fcos_core.mapping import option_keys
from fcos.recipes import load_config


def test_default_values_match_the_original() -> None:
    config = validate(config_from_yaml(DEFAULTS, BODY), where="x")
    assert config == read("MODEL.FCOS.NUM_CLASSES", "81")  # our table has the same defaults


@pytest.mark.parametrize("detector", BODIES)
@pytest.mark.parametrize("key", leaves(DEFAULTS))
def test_every_changed_key_is_converted_rejected_or_reported(
    key: str, detector: str, caplog: pytest.LogCaptureFixture
) -> None:
    default = leaves(DEFAULTS)[key]
    if isinstance(default, list):
        other: Any = [7.0] * max(len(default), 1)
    else:
        other = {bool: not default, str: "other", int: 7, float: 0.123}[type(default)]
    body = BODIES[detector]
    pairs = body[2:] if key == body[0] else body[:2] if key == body[-2] else body
    with caplog.at_level(logging.INFO, logger="fcos"):
        try:
            is_changed = validate(config_from_yaml({key: other}, pairs), where="x") != read(body=body)
            outcome = "changed" if is_changed else "same"
        except ConfigError as error:
            outcome = f"refused {error}"
    messages = [text for text in caplog.messages if " a config for " not in text]
    if outcome == "same" and key not in ("MODEL.FCOS_ON", "MODEL.RETINANET_ON"):
        title = "RetinaNet" if detector == "retinanet" else "FCOS"
        assert messages[-1:] == [f"config: ignoring keys without effect on {title}: {key}"]
    else:
        assert messages[-1:] == []
        assert "no such key" not in outcome


@pytest.mark.parametrize("name", RECORDED)
def test_no_changed_key_of_any_detector_is_silently_ignored(name: str, caplog: pytest.LogCaptureFixture) -> None:
    tree = recorded_config(name)
    original = config_from_yaml(tree)
    silent = set()
    for key, value in leaves(tree).items():
        caplog.clear()
        try:
            with caplog.at_level(logging.INFO, logger="fcos"):
                changed = config_from_yaml(tree, [key, str(other_value(key, value))])
        except ConfigError as error:
            assert "no such key" not in str(error)  # noqa: PT017 (most keys raise no error)
            continue
        notes = [text.partition(" without effect on ")[2].partition(": ")[2].split(", ") for text in caplog.messages]
        if changed == original and not any(key in note for note in notes):
            silent.add(key)
    # The first line of the log says that another key decides.
    assert silent == ({"MODEL.RETINANET_ON"} if name.startswith("fcos/") else set())


@pytest.mark.parametrize(
    ("name", "pair", "expected_text"),
    [
        ("e2e_mask_rcnn_R_50_FPN_1x", ("MODEL.ROI_MASK_HEAD.RESOLUTION", "29"), "29: expected 28, the side"),
        ("e2e_mask_rcnn_R_50_C4_1x", ("MODEL.ROI_MASK_HEAD.RESOLUTION", "28"), "28: expected 14, the side"),
        ("e2e_mask_rcnn_fbnet", ("MODEL.ROI_MASK_HEAD.RESOLUTION", "28"), "28: expected 12, the side"),
        ("e2e_keypoint_rcnn_R_50_FPN_1x", ("MODEL.ROI_KEYPOINT_HEAD.RESOLUTION", "28"), "28: expected 56, the side"),
        *(
            (f"e2e_{kind}_rcnn_R_50_FPN_1x", (f"MODEL.ROI_{head}_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", "True"), text)
            for kind, head, text in (
                ("mask", "MASK", "True: expected False with the FEATURE_EXTRACTOR Mask"),
                (
                    "keypoint",
                    "KEYPOINT",
                    "True: expected False with the FEATURE_EXTRACTOR Keyp",
                ),
            )
        ),
        (
            "e2e_mask_rcnn_R_50_FPN_1x",
            ("MODEL.FCOS_ON", "True"),
            "for R-CNN, set MODEL.FCOS_ON and MODEL.RETINANET_ON to False",
        ),
        (
            "retinanet/retinanet_R-50-FPN_1x",
            ("MODEL.RETINANET_ON", "False"),
            "for FCOS or RetinaNet, set MODEL.FCOS_ON or MODEL.RETINANET_ON to True",
        ),
    ],
)
def test_keys_that_contradict_the_detector_raise(name: str, pair: tuple[str, str], expected_text: str) -> None:
    tree = recorded_config(name)
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(tree, pair)
    assert expected_text in str(caught.value)


KEYPOINTS_ON = [
    *("MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.RESOLUTION", "56"),
    *("MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR", "False"),
]


@pytest.mark.parametrize(
    ("pairs", "unused"),
    [
        (["MODEL.MASK_ON", "True"], ["MODEL.FBNET.", "MODEL.ROI_KEYPOINT_HEAD."]),
        (KEYPOINTS_ON, ["MODEL.FBNET.", "MODEL.ROI_MASK_HEAD."]),
        (["MODEL.RPN_ONLY", "True"], ["MODEL.FBNET.", "MODEL.ROI_", "MODEL.CLS_AGNOSTIC_BBOX_REG"]),
    ],
)
def test_keys_of_other_backbones_and_of_missing_heads_are_reported(
    pairs: list[str], unused: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    body = ["MODEL.BACKBONE.CONV_BODY", "R-50-C4", "MODEL.FCOS_ON", "False", *pairs]
    with caplog.at_level(logging.INFO, logger="fcos"):
        config_from_yaml({**DEFAULTS, "DATASETS": {}}, body)
    reported = caplog.messages[-1].partition(": ignoring keys without effect on ")[2].partition(": ")[2].split(", ")
    expected = {key for key in leaves(DEFAULTS) if key.startswith(tuple(unused))}
    assert expected <= set(reported)
    assert set(reported) <= set(leaves(DEFAULTS))


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


@pytest.mark.parametrize("detector", BODIES)
def test_mapped_names_are_existing_options(detector: str) -> None:
    config = read(body=BODIES[detector])
    keys = option_keys(detector, config.model.backbone.name)
    assert set(keys) <= set(leaves(config.to_dict()))
    assert keys["model.num_classes"] == f"MODEL.{detector.upper()}.NUM_CLASSES"


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
