"""Weights of RPN and R-CNN in the original's format: settings of its config, and detectors that it cannot compute.

The names and settings of all its configs are tested in tests/parity/test_manifests.py.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_options import changed_sections
from original_configs import SMALL_FBNET
from torch import nn

import fcos
from fcos.checkpoint import Checkpoint, save_checkpoint
from fcos.config.detectors import DETECTORS
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten, nest
from fcos.errors import WeightsError
from fcos.interop.fcos_core.config import config_from_yaml
from fcos.interop.fcos_core.keys import DEFAULTS
from fcos.interop.fcos_core.mapping import to_keys
from fcos.interop.fcos_core.weights import find_detector, to_fcos_core
from fcos.models import build_model
from fcos.recipes import load_config

MANIFESTS = Path(__file__).parents[1] / "parity" / "goldens" / "manifests"
MASK_FPN, KEYPOINT_FPN = "e2e_mask_rcnn_R_50_FPN_1x", "e2e_keypoint_rcnn_R_50_FPN_1x"
MASK_C4, MASK_FBNET = "e2e_mask_rcnn_R_50_C4_1x", "e2e_mask_rcnn_fbnet"


def section_of(name: str, **options: Any) -> dict[str, Any]:
    """Return our `model` section of a recorded config, with changed options by dotted key, `__` for dots."""
    section = config_from_yaml(json.loads((MANIFESTS / f"{name}.json").read_text())["merged_config"])["model"]
    for key, value in options.items():
        *parents, leaf = key.split("__")
        inner = section
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = value
    return DETECTORS[section["name"]].model_validate(section).model_dump()


def checkpoint_of(section: dict[str, Any]) -> Checkpoint:
    return Checkpoint(model={}, config={"model": section}, class_names=("a", "b"), category_ids=(1, 2))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (MASK_FPN, {"box_convention": "continuous"}, "model.box_convention=continuous (expected inclusive)"),
    (MASK_FPN, {"anchor_rounding": "none"}, "model.anchor_rounding=none (expected base)"),
    (MASK_FPN, {"location": "corner"}, "model.location=corner (expected center)"),
    (MASK_FPN, {"fpn__extra_level_source": "p5"}, "model.fpn.extra_level_source=p5 (expected max_pool)"),
    (MASK_FPN, {"fpn__norm": "bn"}, "model.fpn.norm=bn (expected none)"),
    (MASK_FPN, {"anchor_sizes": [[32, 48], [64, 96], [128, 192], [256, 384], [512, 768]]}, "model.anchor_sizes=[[32"),
    (MASK_FPN, {"proposals__num_convs": 2}, "model.proposals.num_convs=2 (expected 1)"),
    (MASK_FPN, {"box__num_linears": 3}, "model.box.num_linears=3 (expected 2)"),
    (MASK_FPN, {"box__num_convs": 4}, "model.box.num_linears=2 (expected 1)"),
    (MASK_FPN, {"box__num_linears": 1}, "model.box.num_convs=0 (expected 4)"),
    (MASK_FPN, {"mask__norm": "bn"}, "model.mask.norm=bn (expected none)"),
    (MASK_FPN, {"mask__margin": 1.0}, "model.mask.margin=1 (expected 0)"),
    (MASK_FPN, {"fcos__enabled": True, "loss_average": "image"}, "model.fcos.enabled=true (expected false)"),
    (MASK_FPN, {"backbone": {"name": "resnet50", "norm": "bn", "norm_eps": 0.0}}, "model.backbone.norm=bn (expected"),
    (MASK_FPN, {"backbone": {"name": "mobilenet_v2"}}, "model.backbone.name=mobilenet_v2 (expected resnet50 or"),
    (MASK_FPN, {"backbone": {"name": "dla34"}}, "model.backbone.name=dla34 (expected resnet50 or resnet101 or"),
    (MASK_C4, {"backbone": {"name": "resnet152"}}, "model.backbone.name=resnet152 (expected resnet50 or resnet101 or"),
    (MASK_C4, {"backbone__deformable_stages": ["C5"]}, "model.backbone.deformable_stages=[C5] (expected [])"),
    ("rpn_R_50_C4_1x", {"strides": [8]}, "model.strides=[8] (expected [16])"),
    ("rpn_R_50_FPN_1x", {"proposals__num_convs": 2}, "model.proposals.num_convs=2 (expected 1)"),
    (
        "rpn_R_50_FPN_1x",
        {"strides": [8, 16, 32, 64, 128]},
        "model.strides=[8,16,32,64,128] (expected [4,8,16,32,64])",
    ),
    (
        KEYPOINT_FPN,
        {
            "fpn__enabled": False,
            "strides": [16],
            "anchor_sizes": [[32, 64]],
            "keypoints__layers": "backbone",
            "box__layers": "backbone",
        },
        "model.keypoints.layers=backbone (expected own)",
    ),
    (MASK_FBNET, {"strides": [8]}, "model.strides=[8] (expected [16])"),
]


@pytest.mark.parametrize(("name", "options", "expected_text"), REFUSED)
def test_options_unsupported_by_the_original_raise(name: str, options: dict[str, Any], expected_text: str) -> None:
    with pytest.raises(WeightsError, match=r"best\.pt: the original FCOS cannot reproduce this detector: ") as caught:
        to_fcos_core(checkpoint_of(section_of(name, **options)), where="best.pt")
    assert expected_text in str(caught.value)


NOT_EXPORTED = {
    "num_classes": "the rows of the class predictions",
    **dict.fromkeys(("backbone.weights", "backbone.frozen_stages", "loss_average"), "training only"),
    **dict.fromkeys(("proposals.low_quality_matches", "proposals.limit_per_batch"), "training only"),
    **dict.fromkeys(("proposals.smooth_l1_beta", "box.smooth_l1_beta"), "training only"),
    **dict.fromkeys(
        (f"proposals.{prefix}{name}" for prefix in ("", "train_") for name in ("post_nms_top_k", "max_proposals")),
        "for a single level, only the lower one counts",
    ),
    **dict.fromkeys(("pre_nms_top_k", "min_size"), "detection only"),
    **dict.fromkeys(("detect_in_padding", "proposals.in_padding", "empty_boxes"), "fixed with inclusive boxes"),
    **dict.fromkeys(("pixel_mean", "pixel_std"), "in its config, but for rounding"),
}
"""Options of `model` that may change without changing any setting of the original, and the reasons."""
DEPENDENT = (
    *("fpn.enabled", "fcos", "box.layers", "mask.layers", "keypoints.layers", "proposals.layers"),
    *("anchor_sizes", "strides", "backbone.head_dilation", "backbone.architecture", "backbone.deformable_stages"),
    *("backbone.name", "num_classes"),
)
"""Options that cannot change without others, or that are in REFUSED."""


@pytest.mark.parametrize("name", [MASK_FPN, KEYPOINT_FPN, MASK_C4, MASK_FBNET, "rpn_R_50_FPN_1x", "rpn_R_50_C4_1x"])
def test_every_model_option_is_exported_rejected_or_exempt(name: str) -> None:
    section = section_of(name)
    checkpoint, settings = checkpoint_of(section), to_keys(flatten(section), 2)
    forgotten = set()
    for key, changed in changed_sections(section, skip=DEPENDENT).items():
        try:
            to_fcos_core(replace(checkpoint, config={"model": changed}))
        except WeightsError:
            continue
        if to_keys(flatten(changed), 2) == settings:
            forgotten.add(key)
    options = options_of(DETECTORS[section["name"]])
    assert forgotten & in_effect(flatten(section), options).keys() <= NOT_EXPORTED.keys()
    assert NOT_EXPORTED.keys() & options.keys() <= set(free_options(options, "fcos_core"))


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({}, {"RPN_ONLY": True, "BACKBONE.CONV_BODY": "R-50-C4", "RESNETS.BACKBONE_OUT_CHANNELS": 1024}),
        ({"fpn__channels": 256}, {"RESNETS.BACKBONE_OUT_CHANNELS": 1024}),  # no effect without a pyramid
        (
            {"strides": [32]},
            {"BACKBONE.CONV_BODY": "R-50-C5", "RESNETS.BACKBONE_OUT_CHANNELS": 2048, "RPN.ANCHOR_STRIDE": (32,)},
        ),
        (
            {"proposals__post_nms_top_k": 500, "proposals__max_proposals": 50},
            {"RPN.POST_NMS_TOP_N_TEST": 50, "RPN.FPN_POST_NMS_TOP_N_TEST": 2000},
        ),
        ({"proposals__straddle_threshold": None}, {"RPN.STRADDLE_THRESH": -1}),
    ],
)
def test_settings_of_a_single_map(options: dict[str, Any], settings: dict[str, Any]) -> None:
    section = section_of("rpn_R_50_C4_1x", **options)
    to_fcos_core(checkpoint_of(section))  # it can be converted
    found = {**DEFAULTS, **to_keys(flatten(section), 1)}
    assert {key: found[f"MODEL.{key}"] for key in settings} == settings


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        (MASK_FPN, {}, 28),
        (MASK_FPN, {"mask__upsample": False, "mask__resolution": 10}, 10),
        (MASK_C4, {}, 14),
        (MASK_C4, {"mask__layers": "backbone", "mask__resolution": 13}, 14),
        (MASK_C4, {"backbone__head_dilation": 2}, 28),
        (MASK_C4, {"mask__layers": "own"}, 28),
        (MASK_FBNET, {}, 12),
        (MASK_FBNET, {"backbone__mask_head__stride": 2}, 6),
        (MASK_FBNET, {"backbone__mask_head__blocks": [0, 1]}, 6),
        (MASK_FBNET, {"mask__layers": "box"}, 3),
        ("e2e_mask_rcnn_fbnet_xirb16d_dsmask", {}, 12),
    ],
)
def test_side_of_the_masks_is_computed(name: str, options: dict[str, Any], side: int) -> None:
    section = section_of(name, **options)
    assert {**DEFAULTS, **to_keys(flatten(section), 2)}["MODEL.ROI_MASK_HEAD.RESOLUTION"] == side
    with torch.device("meta"):
        model: Any = build_model(DETECTORS["rcnn"].model_validate(section), num_classes=2, pretrained=False)
        head = model.heads["mask"]
        channels = next(layer for layer in head.body.modules() if isinstance(layer, nn.Conv2d)).in_channels
        pooled = torch.zeros(1, channels, head.pooler.resolution, head.pooler.resolution)
        assert head.upsample(head.body(pooled)).shape[2:] == (side, side)


def test_files_are_converted_to_the_original_and_back_without_a_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = validate(config_from_yaml(nest(SMALL_FBNET | {"MODEL.KEYPOINT_ON": True})), where="x")
    model = build_model(config.model, num_classes=2, pretrained=False)
    save_checkpoint(tmp_path / "best.pt", model=model, config=config, class_names=("a", "b"), category_ids=(1, 2))
    with caplog.at_level(logging.INFO, logger="fcos"):
        summary = fcos.convert(tmp_path / "best.pt", tmp_path / "original.pth", to="fcos_core")
    tensors, saved = len(model.state_dict()) - 2, torch.load(tmp_path / "original.pth")["model"]  # pixel mean and std
    assert summary.splitlines()[0] == f"matched: {tensors} of {tensors + 2} tensors, {tensors} renamed"
    assert summary.splitlines()[-1] == "new: 1: rpn.anchor_generator.cell_anchors.0"
    assert find_detector(saved) == "rcnn"
    pairs = shlex.split(next(text for text in caplog.messages if "settings that" in text).partition("defaults: ")[2])
    (tmp_path / "original.yaml").write_text("MODEL:\n  FCOS_ON: false\n")
    fcos.convert(
        tmp_path / "original.pth",
        tmp_path / "again.pt",
        *pairs,
        "data.classes=[a, b]",
        config=tmp_path / "original.yaml",
    )
    files = [torch.load(tmp_path / name) for name in ("best.pt", "again.pt")]
    assert files[0]["config"]["model"] == files[1]["config"]["model"]
    assert files[0]["model"].keys() == files[1]["model"].keys()
    assert all(torch.equal(tensor, files[1]["model"][name]) for name, tensor in files[0]["model"].items())


def test_recipes_with_continuous_boxes_are_refused_by_name() -> None:
    section = load_config("mask_rcnn_r50").to_dict()["model"]
    with pytest.raises(WeightsError, match=r"model\.anchor_rounding=none \(expected base\)") as caught:
        to_fcos_core(checkpoint_of(section), where="best.pt")
    for option in ("box_convention=continuous", "backbone.stride_in_1x1", "channel_order"):
        assert (f"model.{option}" in str(caught.value)) == (option == "box_convention=continuous")
