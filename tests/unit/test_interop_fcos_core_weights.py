"""The original's weight names, converted in both directions."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import load
from model_options import changed_sections
from tiny_data import write_json

from fcos.checkpoint import Checkpoint
from fcos.config.detectors import DETECTORS
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.data import coco
from fcos.data.source import SplitFiles
from fcos.errors import WeightsError
from fcos.interop.fcos_core import keys as fcos_core_keys
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.mapping import to_keys
from fcos.interop.fcos_core.weights import (
    ANCHORS,
    convert_state_dict,
    find_detector,
    rename,
    renaming_back,
    to_fcos_core,
)
from fcos.models.backbones.renames import to_torchvision
from fcos.recipes import load_config

GOLDENS = Path(__file__).parents[1] / "parity" / "goldens"


MANIFESTS = {
    file.stem: json.loads(file.read_text())
    for detector in ("fcos", "retinanet")
    for file in sorted((GOLDENS / "manifests" / detector).glob("*.json"))
}


def original_names(name: str) -> list[str]:
    return [row[0] for row in MANIFESTS[name]["tensors"]]


def renamed(name: str) -> list[str]:
    return [rename(tensor, name.partition("_")[0]) for tensor in original_names(name)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_renamed_tensors_have_unique_names(name: str) -> None:
    names = renamed(name)
    assert len(names) > 100
    assert len(set(names)) == len(names)
    assert not [n for n in names if n.startswith(("rpn.", "backbone.body", "backbone.fpn"))]


@pytest.mark.parametrize("name", MANIFESTS)
def test_renaming_back_restores_the_names(name: str) -> None:
    section = config_from_yaml(MANIFESTS[name]["merged_config"])["model"]
    assert list(map(renaming_back(section), renamed(name))) == original_names(name)


def manifest_checkpoint(name: str, **options: Any) -> tuple[list[str], Checkpoint]:
    """Return the original's tensor names, and a checkpoint with dummy tensors: [0, 1, 2], one value per class row."""
    model = {n: torch.arange(3.0) for n in renamed(name) if not n.startswith(ANCHORS["retinanet"])}
    config = validate(config_from_yaml(MANIFESTS[name]["merged_config"]), where=name).to_dict()
    backbone, head = ({**config["model"][part], **options.pop(part, {})} for part in ("backbone", "head"))
    config["model"] |= {"backbone": backbone, "head": head, **options}
    return original_names(name), Checkpoint(
        model=model, config=config, class_names=("a", "b", "c"), category_ids=(7, 3, 5)
    )


@pytest.mark.parametrize("name", ["retinanet_R-50-FPN_1x"])
def test_anchors_are_written_for_the_original(name: str) -> None:
    written = to_fcos_core(manifest_checkpoint(name)[1])
    recorded = load(GOLDENS / "rcnn_units" / "anchors.npz")
    for level in range(5):
        cells = recorded[f"retinanet/cell/cell_anchors.{level}"].tolist()
        assert written[f"rpn.anchor_generator.cell_anchors.{level}"].tolist() == cells


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_original_model_can_be_exported(name: str) -> None:
    names, checkpoint = manifest_checkpoint(name)
    checkpoint.model["pixel_mean"] = torch.zeros(3, 1, 1)  # not in the original
    assert list(to_fcos_core(checkpoint)) == names


@pytest.mark.parametrize(
    "options",
    [{}, {"channel_order": "rgb", "pixel_mean": [123.0, 116.0, 103.0], "pixel_std": [58.0, 57.0, 56.0]}],
)
def test_settings_needed_by_the_original_are_logged(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    _, checkpoint = manifest_checkpoint("fcos_imprv_R_50_FPN_1x", backbone={"stride_in_1x1": False}, **options)
    with caplog.at_level(logging.INFO, logger="fcos"):
        to_fcos_core(checkpoint, where="best.pt")
    where, _, pairs = caplog.messages[0].partition(
        ": settings that the original's config needs in addition to its defaults: "
    )
    assert where == "best.pt"
    assert_same_section(config_from_yaml({}, shlex.split(pairs))["model"], checkpoint.config["model"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_settings_reproduce_the_model_section(name: str) -> None:
    _, checkpoint = manifest_checkpoint(name)
    expected = checkpoint.config["model"]
    settings = to_keys(flatten(expected), 3)
    assert_same_section(config_from_yaml(settings)["model"], expected)
    assert not [key for key, value in settings.items() if value == fcos_core_keys.DEFAULTS[key]]


def test_settings_are_derived_from_our_recipe() -> None:
    small = load_config("fcos_mnv2_small", ["model.box_convention=inclusive"]).model
    settings = to_keys(flatten(small.model_dump()), 3)
    assert settings["MODEL.FCOS.NUM_CONVS"] == 2
    assert settings["MODEL.RESNETS.BACKBONE_OUT_CHANNELS"] == 96
    assert settings["MODEL.FCOS.NORM_REG_TARGETS"] is settings["MODEL.FCOS.CENTERNESS_ON_REG"] is True
    assert settings["MODEL.RETINANET.USE_C5"] is False


def assert_same_section(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check that two `model` sections with three classes compute the same, without comparing backbone weights."""
    config = DETECTORS[expected["name"]]
    sections = [flatten(config.model_validate(section).model_dump()) for section in (found, expected)]
    other = {key: pytest.approx(sections[1][key], rel=1e-12) for key in ("pixel_mean", "pixel_std")}  # by 255 and back
    assert sections[0] == sections[1] | other | {"num_classes": 3, "backbone.weights": None}


NOT_EXPORTED = {
    "num_classes": "the rows of the class head",
    **dict.fromkeys(("backbone.modulated", "backbone.offset_groups"), "given where a stage is deformable"),
    **dict.fromkeys(("backbone.norm_groups", "fpn.norm_groups", "fpn.norm_eps"), "given where the norm is gn"),
    **dict.fromkeys(("backbone.weights", "backbone.frozen_stages", "size_ranges", "quality"), "training only"),
    **dict.fromkeys(("low_quality_matches", "box_loss"), "training only"),
    **dict.fromkeys(("detect_in_padding", "keep_empty_boxes"), "on with inclusive boxes"),
    **dict.fromkeys(("pixel_mean", "pixel_std"), "in its config, but for rounding"),
}
"""Options of `model` that may change without changing any setting of the original, and the reasons."""


@pytest.mark.parametrize("name", ["fcos_imprv_R_50_FPN_1x", "retinanet_R-50-FPN_1x"])
def test_every_model_option_is_exported_rejected_or_exempt(name: str) -> None:
    _, checkpoint = manifest_checkpoint(name)
    settings = to_keys(flatten(checkpoint.config["model"]), 3)
    forgotten = set()
    for key, section in changed_sections(checkpoint.config["model"]).items():
        try:
            to_fcos_core(replace(checkpoint, config={"model": section}))
        except WeightsError:
            continue
        if to_keys(flatten(section), 3) == settings:
            forgotten.add(key)
    assert forgotten <= NOT_EXPORTED.keys()
    options, values = options_of(DETECTORS[checkpoint.config["model"]["name"]]), flatten(checkpoint.config["model"])
    exempt = NOT_EXPORTED.keys() & values.keys()
    assert exempt & in_effect(values, options).keys() <= set(free_options(options, "fcos_core"))


def test_class_rows_keep_the_order_of_the_file_with_the_categories(caplog: pytest.LogCaptureFixture) -> None:
    _, checkpoint = manifest_checkpoint("fcos_imprv_R_50_FPN_1x")
    with caplog.at_level(logging.INFO, logger="fcos"):
        written = to_fcos_core(checkpoint, where="best.pt")
    assert written["rpn.head.cls_logits.bias"].tolist() == [0, 1, 2]  # the category ids are 7, 3, 5
    assert written["rpn.head.bbox_pred.bias"] is checkpoint.model["head.ltrb.bias"]
    assert "best.pt: order of the classes: a, b, c; the original numbers them in the order of the" in caplog.messages[1]


def test_labels_of_a_shuffled_file_are_those_recorded_from_the_original(tmp_path: Path) -> None:
    recorded = json.loads((GOLDENS / "units" / "coco_dataset.json").read_text())
    tree = {**recorded["coco"], "images": [{**i, "file_name": "a.png"} for i in recorded["coco"]["images"]]}
    files = SplitFiles(write_json(tmp_path / "train.json", tree), (tmp_path,))
    labels = {str(i): label for label, i in enumerate(coco.read(files, None).category_ids, 1)}
    assert labels == recorded["json_to_contiguous"]


def test_a_mobilenet_with_p6_from_c5_is_refused() -> None:
    _, checkpoint = manifest_checkpoint("fcos_bn_bs16_MNV2_FPN_1x", fpn={"extra_level_source": "c5"})
    with pytest.raises(WeightsError, match=r"model\.fpn\.extra_level_source=c5 \(expected p5\)"):
        to_fcos_core(checkpoint)


@pytest.mark.parametrize(
    ("options", "expected_text"),
    [
        ({"strides": [4, 8, 16, 32, 64]}, "model.strides=[4,8,16,32,64] (expected [8,16,32,64,128])"),
        ({"location": "corner"}, "model.location=corner (expected center)"),
        ({"box_convention": "continuous"}, "model.box_convention=continuous (expected inclusive)"),
        ({"head": {"level_scales": False}}, "model.head.level_scales=false (expected true)"),
        ({"threshold_on": "score"}, "model.threshold_on=score (expected class)"),
        ({"top_k_on": "class"}, "model.top_k_on=class (expected score)"),
        ({"clip_after_nms": True}, "model.clip_after_nms=true (expected false)"),
        ({"fpn": {"channels": 2048, "extra_level_source": "c5"}}, "model.fpn.extra_level_source=c5 (expected p5)"),
        ({"head": {"num_shared_convs": 1}}, "model.head.num_shared_convs=1 (expected 0)"),
        ({"backbone": {"norm": "bn"}}, "model.backbone.norm=bn (expected frozen_bn)"),
        ({"backbone": {"norm_eps": 1e-5}}, "model.backbone.norm_eps=1.0e-05 (expected 0)"),
    ],
)
def test_options_unsupported_by_the_original_raise(options: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(WeightsError) as caught:
        to_fcos_core(manifest_checkpoint("fcos_imprv_R_50_FPN_1x", **options)[1], where="best.pt")
    assert str(caught.value).startswith("best.pt: the original FCOS cannot reproduce this detector: ")
    assert expected_text in str(caught.value)


def test_backbone_unsupported_by_the_original_raises() -> None:
    _, checkpoint = manifest_checkpoint("fcos_imprv_R_50_FPN_1x")
    checkpoint.config["model"]["backbone"] = {"name": "dla34"}
    with pytest.raises(WeightsError, match=r"model\.backbone\.name=dla34 \(expected resnet50 or resnet101 or"):
        to_fcos_core(checkpoint)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.body.stem.conv1.weight", "backbone.conv1.weight"),
        ("backbone.body.layer3.5.bn2.running_var", "backbone.layer3.5.bn2.running_var"),
        ("backbone.body.features.1.conv.3.weight", "backbone.features.1.conv.1.weight"),
        ("backbone.body.features.7.conv.6.weight", "backbone.features.7.conv.2.weight"),
        ("backbone.fpn.fpn_inner2.weight", "fpn.lateral.0.weight"),
        ("backbone.fpn.fpn_layer4.bias", "fpn.output.2.bias"),
        ("backbone.fpn.top_blocks.p7.weight", "fpn.extra.1.weight"),
        ("rpn.head.cls_tower.4.bias", "head.cls_tower.4.bias"),
        ("rpn.head.bbox_tower.0.weight", "head.box_tower.0.weight"),
        ("rpn.head.bbox_pred.weight", "head.ltrb.weight"),
        ("rpn.head.cls_logits.bias", "head.logits.bias"),
        ("rpn.head.centerness.bias", "head.centerness.bias"),
        ("rpn.head.scales.3.scale", "head.scales.3"),
        ("something.else", "something.else"),
    ],
)
def test_tensor_names_are_converted_in_both_directions(theirs: str, ours: str) -> None:
    assert rename(theirs) == ours
    assert renaming_back({"name": "fcos"})(ours) == theirs


@pytest.mark.parametrize(
    ("shapes", "detector"),
    [
        ({"cls_logits.bias": [3], "centerness.bias": [1]}, "fcos"),
        ({"cls_logits.weight": [9, 8, 3, 3], "bbox_pred.weight": [36, 8, 3, 3]}, "retinanet"),
        ({"cls_logits.weight": [3, 8, 1, 1], "bbox_pred.weight": [12, 8, 1, 1]}, None),  # proposals of Faster R-CNN
        ({"cls_logits.weight": [9, 8, 3, 3]}, None),
        ({}, None),
    ],
)
def test_detector_is_recognised_by_its_tensors(shapes: dict[str, list[int]], detector: str | None) -> None:
    assert find_detector({f"rpn.head.{name}": torch.zeros(shape) for name, shape in shapes.items()}) == detector


@pytest.mark.parametrize(
    ("options", "expected_text"),
    [
        ({"anchor_rounding": "none"}, "model.anchor_rounding=none (expected base)"),
        ({"offset_weights": [1, 1, 1, 1]}, "model.offset_weights="),
        ({"anchor_sizes": [[8, 16]] * 5}, "model.anchor_sizes="),
        ({"head": {"norm": "gn"}}, "model.head.norm=gn (expected none)"),
        ({"location": "corner"}, "model.location=corner (expected center)"),
    ],
)
def test_options_unsupported_by_the_originals_retinanet_raise(options: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(WeightsError, match="the original FCOS cannot reproduce this detector") as caught:
        to_fcos_core(manifest_checkpoint("retinanet_R-50-FPN_1x", **options)[1], where="best.pt")
    assert expected_text in str(caught.value)


@pytest.mark.parametrize(
    ("names", "without"),
    [(["module.a", "module.b"], ["a", "b"]), (["module.a", "b"], ["module.a", "b"]), ([], [])],
)
def test_module_prefix_is_removed_if_all_names_have_it(names: list[str], without: list[str]) -> None:
    state = {name: torch.zeros(1) for name in names}
    assert list(to_torchvision(state)) == without


def test_tensors_are_not_copied() -> None:
    tensor = torch.rand(3)
    assert convert_state_dict({"rpn.head.bbox_pred.bias": tensor})["head.ltrb.bias"] is tensor
