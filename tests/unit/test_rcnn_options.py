"""Options of R-CNN that have no effect or contradict each other, and the recipe of Keypoint R-CNN."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_backbones import one_block_per_stage
from tiny_data import coco_tree, write_coco

import fcos
from fcos.config.options import in_effect, options_of
from fcos.config.text import flatten
from fcos.errors import ConfigError, DataError
from fcos.models import build_model
from fcos.recipes import load_config


def test_problem_of_the_strides_is_described_once() -> None:
    options = ["model.strides=[4,8]", "model.anchor_sizes=[8,16]"]
    ranges = "model.fcos.size_ranges=[[-1,64],[64,null]]"
    for strides in ("[8,4]", "[3000,6000]"):
        with pytest.raises(ConfigError) as caught:
            load_config(
                None, ["model.name=rcnn", "model.fcos.enabled=true", *options, ranges, f"model.strides={strides}"]
            )
        assert str(caught.value).count("strides must") == 1


@pytest.mark.parametrize("ranges", ["[[64,-1]]", "[[64,-1],[0,9],[9,9],[9,9],[9,null]]"])
def test_size_ranges_of_fcos_as_first_stage_are_checked(ranges: str) -> None:
    with pytest.raises(ConfigError, match=r"fcos\.size_ranges must be pairs \(low, high\), found \[\(64\.0, -1\.0\)"):
        load_config(None, ["model.name=rcnn", "model.fcos.enabled=true", f"model.fcos.size_ranges={ranges}"])


def test_options_of_anchors_are_not_checked_if_fcos_proposes_the_boxes() -> None:
    options = ["model.strides=[8,16]", "model.fcos.size_ranges=[[-1,64],[64,null]]"]
    config = load_config(None, ["model.name=rcnn", "model.fcos.enabled=true", *options])
    model = build_model(config.model, num_classes=2, pretrained=False)
    assert model.loss_names[:3] == ("loss_proposal_cls", "loss_proposal_box", "loss_proposal_centerness")
    with pytest.raises(ConfigError, match="strides has 2 levels but anchor_sizes has 5"):
        load_config(None, ["model.name=rcnn", *options])


@pytest.mark.parametrize(
    ("idle", "condition"),
    [
        ("mask.resolution=28", "mask.enabled"),
        ("mask.norm=gn", "mask.enabled"),
        ("mask.enabled=true mask.pasting=exact mask.margin=1", "mask.pasting=truncated"),
        ("fpn.extra_level_relu=false", "fpn.extra_level_source!=max_pool"),
        ("keypoints.num_keypoints=5", "keypoints.enabled"),
        ("fcos.nms_threshold=0.5", "fcos.enabled"),
        ("fcos.head.num_convs=2", "fcos.enabled"),
        ("box.conv_channels=128", "box.num_convs"),
        ("fcos.enabled=true proposals.nms_threshold=0.5", "fcos.enabled!=true"),
        ("fcos.enabled=true anchor_ratios=[1.0]", "fcos.enabled!=true"),
        ("fpn.norm_groups=16", "fpn.norm=gn"),
        ("strides=[16] anchor_sizes=[32] fpn.enabled=false fpn.channels=64", "fpn.enabled"),
        ("strides=[16] anchor_sizes=[32] fpn.enabled=false box.layers=backbone box.num_linears=3",
         "box.layers=own"),
        ("strides=[16] anchor_sizes=[32] fpn.enabled=false box.layers=backbone mask.enabled=true mask.layers=box"
         " mask.dilation=2", "mask.layers=own"),
    ],
)  # fmt: skip
def test_options_without_effect_are_named(idle: str, condition: str, caplog: pytest.LogCaptureFixture) -> None:
    options = [f"model.{option}" for option in idle.split()]
    config = load_config(None, ["model.name=rcnn", "data.masks=true", *options])
    assert caplog.messages == [f"{options[-1]}: no effect, because it needs model.{condition}"]
    used = in_effect(flatten(config.model.model_dump()), options_of(type(config.model)))
    keys = [option.partition("=")[0] for option in idle.split()]
    assert keys[-1] not in used
    assert used.keys() >= {*keys[:-1], "mask.enabled", "keypoints.enabled", "fcos.enabled", "fpn.enabled"}


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("fcos_mnv2_small", "data.masks=true", "data.masks: no effect, because the detector predicts no masks"),
        ("mask_rcnn_mnv2_small", "data.keypoints=true data.keypoint_pairs=[[0,1]] eval.keypoint_sigmas=[0.1]",
         "data.keypoints, data.keypoint_pairs, eval.keypoint_sigmas: no effect, because the detector predicts no"
         " keypoints"),
        ("mask_rcnn_mnv2_small", "model.mask.enabled=false data.boxes=masks", None),
        ("keypoint_rcnn_r50", "data.keypoint_pairs=[[0,1]]", None),
    ],
)  # fmt: skip
def test_options_of_details_that_are_not_predicted_are_named_before_a_training(
    recipe: str, options: str, message: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError):
        fcos.train(recipe, f"data={tmp_path / 'missing'}", *options.split())
    assert [text for text in caplog.messages if "no effect" in text] == ([message] if message else [])


def test_recipe_of_keypoint_rcnn_builds_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_block_per_stage(monkeypatch)
    config = load_config("keypoint_rcnn_r50")
    assert (config.model.num_predicted_keypoints, config.data.largest_short_side) == (17, 800)
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["keypoints"] = [x + 1, y + 1, 2, x + width - 1, y + height - 1, 2]
    for split in ("train", "val"):
        write_coco(tmp_path / "data", tree, split=split)
    options = """
        data.workers=0 data.short_side=64 data.max_side=96 model.backbone.weights=null model.fpn.channels=32
        model.box.linear_channels=32 model.box.samples_per_image=32 model.keypoints.conv_channels=[16]
        model.keypoints.num_keypoints=2 model.max_detections=5
        train.batch_size=2 train.iterations=2 device=cpu
    """
    result = fcos.train(
        "keypoint_rcnn_r50", f"data={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}", *options.split()
    )
    assert (result.run / "weights/best.pt").is_file()
    assert "AP_keypoints" in result.metrics
