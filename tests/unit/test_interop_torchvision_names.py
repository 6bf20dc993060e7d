"""Tensor names, classes and options of torchvision's RetinaNet and R-CNN, converted both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_options import changed_sections
from small_backbones import randomise
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision_models import (
    RETINANETS,
    assert_equal,
    assert_same_details,
    old_names,
    random_model,
)

import fcos
from fcos.config.detectors import DETECTORS
from fcos.config.options import free_options, in_effect, options_of
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.errors import WeightsError
from fcos.interop.checkpoints import from_content, load_checkpoint
from fcos.interop.torchvision import COCO_CLASSES, from_torchvision, to_torchvision
from fcos.interop.torchvision.architectures import ARCHITECTURES
from fcos.keypoints import COCO_PERSON
from fcos.models import build_model
from fcos.training.start import start_from


@pytest.fixture(scope="module")
def mask_rcnn() -> dict[str, Tensor]:
    """Weights of torchvision's Mask R-CNN for the classes of COCO."""
    model = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    return randomise(model)


OLD = ("retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn")


@pytest.mark.parametrize("name", OLD)
def test_names_before_torchvision_0_13_are_supported(name: str) -> None:
    state = randomise(getattr(detection, name)(weights=None, weights_backbone=None, num_classes=2))
    old = old_names(state)
    assert not (state.keys() - old.keys()).isdisjoint({"backbone.fpn.layer_blocks.0.0.weight"})
    expected = from_torchvision(state).model
    found = from_torchvision(old).model
    assert_equal(found, {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")})


def class_rows(name: str, num_labels: int) -> dict[str, Tensor]:
    """Return the parameters with class rows of a state dict, each row filled with its label."""
    labels = torch.arange(float(num_labels))
    if name in RETINANETS:
        rows = labels.repeat(9)
        head = "head.classification_head.cls_logits"
        state = {f"{head}.weight": rows[:, None, None, None].expand(-1, 2, 3, 3).clone(), f"{head}.bias": rows}
        box = "head.regression_head.bbox_reg"
        state |= {f"{box}.weight": torch.zeros(36, 2, 3, 3), f"{box}.bias": torch.zeros(36)}
        return state | ({"head.classification_head.conv.0.1.weight": torch.zeros(2)} if name.endswith("v2") else {})
    state = {"roi_heads.box_head.0.0.weight": torch.zeros(2, 2, 3, 3)} if name.endswith("v2") else {}
    for head, rows in (("cls_score", labels), ("bbox_pred", labels.repeat_interleave(4))):
        state[f"roi_heads.box_predictor.{head}.weight"] = rows[:, None].expand(-1, 2).clone()
        state[f"roi_heads.box_predictor.{head}.bias"] = rows
    if name.startswith("mask"):
        state["roi_heads.mask_predictor.mask_fcn_logits.weight"] = labels[:, None, None, None].expand(-1, 2, 1, 1)
        state["roi_heads.mask_predictor.mask_fcn_logits.bias"] = labels
    if name.startswith("keypoint"):
        state["roi_heads.keypoint_predictor.kps_score_lowres.weight"] = torch.zeros(8, 17, 4, 4)
        state["roi_heads.keypoint_predictor.kps_score_lowres.bias"] = torch.zeros(17)
    return state


def test_91_rows_are_those_of_the_coco_classes() -> None:
    retinanet = from_torchvision(class_rows("retinanet_resnet50_fpn", 91))
    assert dict(zip(retinanet.category_ids, retinanet.class_names, strict=True)) == COCO_CLASSES
    assert retinanet.model["head.logits.bias"].tolist() == [float(i) for _ in range(9) for i in COCO_CLASSES]
    mask = from_torchvision(class_rows("maskrcnn_resnet50_fpn", 91))
    assert dict(zip(mask.category_ids, mask.class_names, strict=True)) == COCO_CLASSES
    rows = [0.0, *map(float, COCO_CLASSES)]  # with the background
    assert mask.model["box.logits.weight"][:, 1].tolist() == rows
    assert mask.model["box.offsets.bias"].tolist() == [row for row in rows for _ in range(4)]
    assert mask.model["heads.mask.logits.weight"][:, 0, 0, 0].tolist() == rows


def test_the_class_with_17_keypoints_is_person() -> None:
    checkpoint = from_torchvision(class_rows("keypointrcnn_resnet50_fpn", 2))
    assert (checkpoint.category_ids, checkpoint.class_names) == ((1,), ("person",))
    assert checkpoint.config["model"]["keypoints"] == {"enabled": True, "num_keypoints": 17}
    named = from_torchvision(class_rows("keypointrcnn_resnet50_fpn", 2), class_names=["cow"])
    assert named.class_names == ("cow",)
    assert checkpoint.keypoint_layout == COCO_PERSON
    assert not from_torchvision(class_rows("maskrcnn_resnet50_fpn", 4)).keypoint_layout.names


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "maskrcnn_resnet50_fpn"])
def test_category_ids_become_labels(name: str) -> None:
    before = replace(from_torchvision(class_rows(name, 4)), category_ids=(2, 7, 90))
    state = to_torchvision(before)
    head = "head.classification_head.cls_logits" if name in RETINANETS else "roi_heads.box_predictor.cls_score"
    blocks = state[f"{head}.bias"].view(-1, 91)
    assert blocks[:, [2, 7, 90]].tolist() == [[1, 2, 3]] * len(blocks)
    assert set(blocks[:, [3, 50, 89]].flatten().tolist()) == {-10.0 if name in RETINANETS else -1000.0}
    after = from_torchvision(state)
    assert after.category_ids == (2, 7, 90)
    assert_equal(after.model, before.model)


@pytest.mark.parametrize("name", RETINANETS)
def test_effective_options_of_retinanet_raise_unless_exempt(name: str) -> None:
    checkpoint = from_torchvision(class_rows(name, 3))
    section = validate(checkpoint.config, where="torchvision").model.model_dump(mode="json")
    options = options_of(DETECTORS[section["name"]])
    free = free_options(options, "torchvision")
    for key, changed in changed_sections(section).items():
        other = replace(checkpoint, config={"model": changed})
        if key in free or changed == section or key not in in_effect(flatten(changed), options):
            assert to_torchvision(other)
        else:
            with pytest.raises(WeightsError, match=r": torchvision's \w+ cannot reproduce this detector: model\."):
                to_torchvision(other)


@pytest.mark.parametrize(
    ("name", "options", "expected_text"),
    [
        ("retinanet_resnet50_fpn", {"offset_weights": (10, 10, 5, 5)}, "offset_weights=[10,10,5,5] (expected [1,1,1,1"),
        ("fasterrcnn_resnet50_fpn", {"location": "center"}, "location=center (expected corner)"),
        ("fasterrcnn_resnet50_fpn", {"anchor_rounding": "none"}, "anchor_rounding=none (expected corners)"),
        ("fasterrcnn_resnet50_fpn", {"proposals": {"in_padding": False}}, "proposals.in_padding=false"),
        ("fasterrcnn_resnet50_fpn", {"box": {"class_agnostic": True}}, "box.class_agnostic=true"),
        ("fasterrcnn_resnet50_fpn", {"box": {"num_convs": 4}}, "fpn.norm=none (expected bn)"),
        ("fasterrcnn_resnet50_fpn_v2", {"fpn": {"norm": "gn"}}, "fpn.norm=gn (expected bn)"),
        ("fasterrcnn_resnet50_fpn_v2", {"keypoints": {"enabled": True}}, "fpn.norm=bn (expected none)"),
        ("maskrcnn_resnet50_fpn", {"mask": {"enabled": True, "margin": 0}}, "mask.margin=0 (expected 1)"),
        ("maskrcnn_resnet50_fpn", {"keypoints": {"enabled": True}}, "keypoints.enabled=true (expected false)"),
        ("keypointrcnn_resnet50_fpn", {"box": {"num_linears": 1}}, "box.num_linears=1 (expected 2)"),
    ],
)
def test_options_that_torchvision_lacks_raise(name: str, options: dict[str, Any], expected_text: str) -> None:
    checkpoint = from_torchvision(class_rows(name, 3))
    section = checkpoint.config["model"]
    merged = {k: {**section.get(k, {}), **v} if isinstance(v, dict) else v for k, v in options.items()}
    with pytest.raises(WeightsError) as caught:
        to_torchvision(replace(checkpoint, config={"model": {**section, **merged}}), where="best.pt")
    assert str(caught.value).startswith("best.pt: torchvision's ")
    assert f"model.{expected_text}" in str(caught.value)


def test_class_heads_of_wrong_shape_raise() -> None:
    state = class_rows("maskrcnn_resnet50_fpn", 3)
    box = "roi_heads.box_predictor."
    for changed, expected in (
        ({f"{box}cls_score.weight": torch.zeros(4, 2)}, r"found weight: \[4, 2\], bias: \[3\]"),
        ({f"{box}cls_score.bias": torch.zeros(())}, r"found weight: \[3, 2\], bias: none"),
        ({f"{box}bbox_pred.bias": torch.zeros(9)}, r"box\.offsets\.bias must have 12, found the shape \[9\]"),
    ):
        with pytest.raises(WeightsError, match=rf"x\.pth: damaged weights.*{expected}"):
            from_content({**state, **changed}, where="x.pth")


def test_mobilenet_v3_raises() -> None:
    state = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2).state_dict()
    with pytest.raises(WeightsError, match=r"x\.pth: expected .* with a ResNet-50 .*, found another backbone"):
        from_content(state, where="x.pth")
    for name in ("torchvision/fasterrcnn_mobilenet_v3_large_fpn", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"):
        with pytest.raises(WeightsError, match=rf"^{name}: this project has no MobileNetV3, .*fasterrcnn_resnet50"):
            fcos.load(name)
        with pytest.raises(WeightsError, match="no MobileNetV3"):
            load_checkpoint(name)


def test_rpn_cannot_be_converted() -> None:
    checkpoint = replace(from_torchvision(class_rows("fasterrcnn_resnet50_fpn", 3)), config={"model": {"name": "rpn"}})
    with pytest.raises(WeightsError, match=r"x\.pt: weights of rpn, but torchvision supports only FCOS, RetinaNet and"):
        to_torchvision(checkpoint, where="x.pt")


def test_weights_by_name_predict_and_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from the name, with a file of the same names and shapes in the cache instead of torchvision's."""
    name = "maskrcnn_resnet50_fpn_v2"
    theirs = random_model(name, 91, box_score_thresh=0.01)
    head = theirs.get_submodule("roi_heads.box_predictor.cls_score")
    no_class = [row for row in range(1, 91) if row not in COCO_CLASSES]
    head.get_parameter("bias").data[no_class] = -1000.0
    file = tmp_path / "checkpoints" / Path(ARCHITECTURES[name].coco.url).name
    file.parent.mkdir()
    torch.save(theirs.state_dict(), file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    options = ["data.test_short_side=96", "data.test_max_side=192", "model.score_threshold=0.01"]
    options += ["model.proposals.max_proposals=100", "model.max_detections=20"]
    ours = fcos.load(f"torchvision/{name}", *options, device="cpu")
    image = torch.randint(0, 16, (3, 48, 64), dtype=torch.uint8) * 16  # doubled without rounding
    with torch.inference_mode():
        (expected,) = theirs([image / 255])
    found = ours.predict(image, threshold=0)
    assert len(found) == 20
    labels = torch.tensor(ours.category_ids)[found.labels]
    assert_same_details(replace(found, labels=labels - 1), expected)
    assert [found.class_names[i] for i in found.labels] == [COCO_CLASSES[int(i)] for i in labels]
    fcos.convert(f"torchvision/{name}", tmp_path / "ours.pt")
    summary = fcos.convert(tmp_path / "ours.pt", tmp_path / "back.pth", to="torchvision")
    assert "new:" not in summary
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    rows = [0, *COCO_CLASSES]
    for key, tensor in theirs.state_dict().items():
        if ".cls_score." in key or ".mask_fcn_logits." in key:
            assert torch.equal(back[key][rows], tensor[rows])
        elif ".bbox_pred." not in key:
            assert torch.equal(back[key], tensor)


def test_fine_tuning_keeps_the_rows_of_shared_classes(mask_rcnn: dict[str, Tensor]) -> None:
    checkpoint = from_torchvision(mask_rcnn)
    config = validate(checkpoint.config, where="torchvision").model
    names = ("robot", "toothbrush", "person")
    model = build_model(config, num_classes=3, pretrained=False)
    summary = start_from(model, checkpoint, config, names, where="tv.pth")
    assert "loaded 2 of 3 rows by class name (toothbrush, person); newly initialised: robot" in summary
    last = len(checkpoint.class_names)
    for name, size in (("box.logits.weight", 1), ("box.offsets.weight", 4), ("heads.mask.logits.weight", 1)):
        ours = model.get_parameter(name).unflatten(0, (-1, size))
        theirs = checkpoint.model[name].unflatten(0, (-1, size))
        assert torch.equal(ours[[0, 2, 3]], theirs[[0, last, 1]])  # with the background
        assert not (ours[1] == theirs).flatten(1).all(dim=1).any()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        # Not in the config that the conversion of torchvision's weights writes, since it has our default.
        ({"anchor_ratios": [1.0, 2.0, 3.0]}, "model.anchor_ratios=[0.5,1,2]"),
        ({"mask": {"enabled": True, "resolution": 28}}, "model.mask.resolution=14"),
        ({"mask": {"enabled": False, "resolution": 28}}, ""),
        ({"location": "center", "anchor_rounding": "none"}, "model.location=corner model.anchor_rounding=corners"),
    ],
)
def test_fine_tuning_names_all_options_with_another_meaning(
    mask_rcnn: dict[str, Tensor], changed: dict[str, Any], told: str
) -> None:
    checkpoint = from_torchvision(mask_rcnn)
    section = {**checkpoint.config["model"], **changed}
    config = validate({**checkpoint.config, "model": section}, where="torchvision").model
    model = build_model(config, num_classes=len(checkpoint.class_names), pretrained=False)
    if not config.predicts_masks:
        checkpoint = replace(checkpoint, model={k: v for k, v in checkpoint.model.items() if "mask" not in k})
    summary = start_from(model, checkpoint, config, checkpoint.class_names, where="tv.pth")
    expected = f"; they were trained with {told}; use the same options" if told else ""
    assert summary == f"weights: all {len(model.state_dict()) - 2} tensors from tv.pth{expected}"
