"""Same detections as detectron2's and mmdetection's RetinaNet and R-CNN, which were recorded from their own code."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_detectors import CLASSES, NAMES, Recorded, detect, detector, images
from torch import Tensor

import fcos
from fcos import WeightsError
from fcos.config.overrides import validate
from fcos.config.text import flatten
from fcos.interop.checkpoints import from_content, load_checkpoint
from fcos.interop.torchvision import COCO_CLASSES
from fcos.models import build_model
from fcos.structures import Instances

MASK_TOLERANCE = 3e-4
MMDETECTION_C4 = "mmdetection__mask-rcnn_r50-caffe-c4_1x_coco"


@pytest.fixture(scope="module", params=NAMES)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param)


def match(found: Instances, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return the index of our detection for each recorded one, since nearly equal scores may swap places."""
    distance = (found.boxes[:, None] - boxes).abs().amax(dim=2) + 1000.0 * (found.labels[:, None] != labels)
    index = distance.argmin(dim=0)
    assert sorted(index.tolist()) == list(range(len(found)))
    return index


@pytest.mark.parametrize(
    "recorded",
    # Both projects have the same head on C4.
    [pytest.param(name, marks=[pytest.mark.slow] if name == MMDETECTION_C4 else []) for name in NAMES],
    indirect=True,
)
def test_detections_match_the_source_project(recorded: Recorded) -> None:
    """Float64 leaves only the rounding of the recording, which is the same on every processor."""
    for i, found in enumerate(detect(detector(recorded.checkpoint()).double())):
        expected = {
            key.partition("/")[2]: torch.from_numpy(array)
            for key, array in recorded.numbers.items()
            if key.startswith(f"det{i}/")
        }
        assert len(found) == len(expected["scores"]) > 5
        order = match(found, expected["boxes"], expected["labels"])
        assert_close(found.boxes[order], expected["boxes"], atol=2e-3)
        assert_close(found.scores[order], expected["scores"], atol=2e-5)
        assert ("grids" in expected, "keypoints" in expected) == (
            found.mask_grids is not None,
            found.keypoints is not None,
        )
        if found.mask_grids is not None:
            assert_close(found.mask_grids[order], expected["grids"], atol=MASK_TOLERANCE)
            check_masks(found[order], expected["masks"].numpy())
        if found.keypoints is not None:
            points = found.keypoints[order, :, :2]
            assert_close(points, expected["keypoints"][..., :2], atol=1e-3)


def assert_close(found: Tensor, recorded: Tensor, *, atol: float) -> None:
    torch.testing.assert_close(found, recorded, rtol=0, atol=atol, check_dtype=False)


def check_masks(found: Instances, packed: np.ndarray) -> None:
    """Compare masks with the recorded ones, except at pixels whose probability is close to the threshold."""
    height, width = found.size
    expected = np.unpackbits(packed, axis=-1, count=width).astype(bool)
    probabilities = found.mask_probabilities()
    assert probabilities is not None
    for ours, theirs in zip(probabilities, expected, strict=True):
        assert theirs.shape == (height, width)
        assert theirs.any()
        differs = (ours.numpy() > 0.5) != theirs
        assert not differs[np.abs(ours.numpy() - 0.5) > MASK_TOLERANCE].any()


# --------------------------------------------------------------------------------------------------- tensors, settings


def test_all_tensors_are_converted(recorded: Recorded) -> None:
    content = recorded.content(recorded.empty_state())
    checkpoint = from_content(content, where="x", class_names=recorded.class_names())
    config = validate(checkpoint.config, where="x")
    with torch.device("meta"):
        model = build_model(config.model, num_classes=len(checkpoint.category_ids), pretrained=False)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith("pixel_")}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.model.items()}
    counters = {name for name in found if name.endswith("num_batches_tracked")}
    assert {name: shape for name, shape in found.items() if name not in counters - ours.keys()} == ours
    assert set(checkpoint.original_names.values()) == set(recorded.shapes)


COUNTS = {
    "detectron2__keypoint_rcnn_R_50_FPN_1x": 313,
    "detectron2__mask_rcnn_R_50_C4_1x": 279,
    "detectron2__mask_rcnn_R_50_FPN_1x": 307,
    "detectron2__mask_rcnn_R_50_FPN_1x_cls_agnostic": 307,
    "detectron2__mask_rcnn_R_50_FPN_3x_gn": 223,
    "detectron2__retinanet_R_50_FPN_1x": 301,
    "mmdetection__mask-rcnn_r50-caffe-c4_1x_coco": 332,
    "mmdetection__mask-rcnn_r50_fpn_1x_coco": 360,
    "mmdetection__retinanet_r50_fpn_1x_coco": 354,
}


def test_recordings_have_the_names_of_the_source_projects() -> None:
    assert {name: len(Recorded(name).shapes) for name in NAMES} == COUNTS


SHARED = {
    "location": "multiple",
    "pooling_aligned": True,
    "proposals.in_padding": True,
    "box.sampling_ratio": 0,
    "box.offset_weights": (10.0, 10.0, 5.0, 5.0),
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "max_detections": 100,
}
BGR = {"channel_order": "bgr", "pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}
RGB = {
    "channel_order": "rgb",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}
MASKS = {"mask.pasting": "exact", "mask.sampling_ratio": 0}
FPN = {
    "strides": [4, 8, 16, 32, 64],
    "anchor_sizes": [[32], [64], [128], [256], [512]],
    "proposals.pre_nms_top_k": 1000,
}
C4 = {"strides": [16], "anchor_sizes": [[32, 64, 128, 256, 512]], "proposals.pre_nms_top_k": 6000, "mask.layers": "box"}
RETINANET = {
    "strides": [8, 16, 32, 64, 128],
    "location": "multiple",
    "fpn.extra_level_source": "c5",
    "offset_weights": (1.0, 1.0, 1.0, 1.0),
    "nms_threshold": 0.5,
}
DETECTRON2 = {"backbone.stride_in_1x1": True, **BGR}
OPTIONS: dict[str, dict[str, Any]] = {
    "detectron2__retinanet_R_50_FPN_1x": {**RETINANET, **DETECTRON2, "clip_after_nms": True},
    "detectron2__mask_rcnn_R_50_FPN_1x": {**SHARED, **FPN, **DETECTRON2, **MASKS, "level_epsilon": 1e-8},
    "detectron2__mask_rcnn_R_50_C4_1x": {**SHARED, **C4, **DETECTRON2, **MASKS, "empty_boxes": "remove_last"},
    "detectron2__keypoint_rcnn_R_50_FPN_1x": {**SHARED, **FPN, **DETECTRON2, "keypoints.num_keypoints": 17},
    "detectron2__mask_rcnn_R_50_FPN_1x_cls_agnostic": {**SHARED, **FPN, **DETECTRON2, "box.class_agnostic": True},
    "detectron2__mask_rcnn_R_50_FPN_3x_gn": {
        **{**SHARED, **FPN, **BGR, **MASKS, "backbone.stride_in_1x1": False, "backbone.norm": "gn"},
        **{"fpn.norm": "gn", "box.num_convs": 4, "box.conv_norm": "gn", "box.num_linears": 1, "mask.norm": "gn"},
    },
    "mmdetection__retinanet_r50_fpn_1x_coco": {**RETINANET, **RGB, "fpn.extra_level_relu": False},
    "mmdetection__mask-rcnn_r50_fpn_1x_coco": {**SHARED, **FPN, **RGB, **MASKS, "empty_boxes": "keep"},
    "mmdetection__mask-rcnn_r50-caffe-c4_1x_coco": {**SHARED, **C4, **DETECTRON2, **MASKS, "level_epsilon": 2.5e-7},
}


@pytest.mark.parametrize("name", NAMES)
def test_options_are_those_of_the_source_project(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Recorded(name)
    with caplog.at_level(logging.INFO, logger="fcos"):
        config = validate(from_content(model.content(model.empty_state()), where="x.pth").config, where="x")
    options = flatten(config.model.model_dump())
    expected = OPTIONS[name]
    assert {key: options[key] for key in expected} == expected
    assert (config.data.detection_short_side, config.data.detection_max_side) == (800, 1333)
    assert (config.data.masks, config.data.keypoints) == (config.model.predicts_masks, "keypoint" in name)
    assert f"model.channel_order={expected['channel_order']}" in caplog.text


@pytest.mark.parametrize("name", ["detectron2__keypoint_rcnn_R_50_FPN_1x", "detectron2__mask_rcnn_R_50_FPN_1x"])
def test_the_class_with_17_keypoints_is_person(name: str) -> None:
    model = Recorded(name)
    checkpoint = from_content(model.content(model.empty_state()), where="x")
    assert checkpoint.class_names == (("person",) if "keypoint" in name else ())


def with_classes(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return tensors with the shapes for another number of classes."""
    rows = {"fc_cls": count + 1, "fc_reg": 4 * count, "conv_logits": count, "retina_cls": 9 * count}
    shapes = {name: (rows.get(name.split(".")[-2], len(t)), *t.shape[1:]) for name, t in state.items() if t.dim()}
    return {name: torch.empty(shapes.get(name, ()), device="meta") for name in state}


CAFFE = {
    "cfg": """
custom_imports = dict(imports=['x'])
model = dict(
    backbone=dict(depth=50, style='caffe', type='ResNet', init_cfg=dict(checkpoint=make('x'))),
    data_preprocessor=dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]))
""",
    "config": """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1, 1, 1], to_rgb=False)
model = {'backbone': {'style': 'caffe'}, **other}
""",
}
"""Configs of style caffe, as versions 3 and 2 of mmdetection store them in files."""


@pytest.mark.parametrize("key", CAFFE)
@pytest.mark.parametrize("name", ["mmdetection__retinanet_r50_fpn_1x_coco", "mmdetection__mask-rcnn_r50_fpn_1x_coco"])
def test_the_config_in_a_file_of_mmdetection_tells_style_and_pixels(
    name: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Recorded(name)
    with caplog.at_level(logging.INFO, logger="fcos"):
        content = {**model.content(model.empty_state()), "meta": {key: CAFFE[key]}}
        section = from_content(content, where="x.pth").config["model"]
    assert section["backbone"]["stride_in_1x1"]
    assert (section["channel_order"], section["pixel_mean"]) == ("bgr", (103.53, 116.28, 123.675))
    assert section["pixel_std"] == (1, 1, 1)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "text",
    ["model = dict(", "\0", "model = load()", "model = dict(backbone=1)", "img_norm_cfg = dict(mean=[1], std=2)"],
)
def test_other_configs_in_files_of_mmdetection_change_nothing(text: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Recorded("mmdetection__retinanet_r50_fpn_1x_coco")
    content = model.content(model.empty_state())
    with caplog.at_level(logging.INFO, logger="fcos"):
        found = from_content({**content, "meta": {"cfg": text}}, where="x.pth").config
    assert found == from_content(content, where="x.pth").config
    assert "model.backbone.stride_in_1x1=false model.channel_order=rgb model.pixel_mean=[123.675," in caplog.text
    assert "if the detector was trained with others, give them" in caplog.text


@pytest.mark.parametrize("name", ["mmdetection__retinanet_r50_fpn_1x_coco", "mmdetection__mask-rcnn_r50_fpn_1x_coco"])
def test_class_names_in_files_of_mmdetection_are_used(name: str) -> None:
    model = Recorded(name)
    meta = {"meta": {"dataset_meta": {"classes": CLASSES}}}
    assert from_content({**model.content(model.empty_state()), **meta}, where="x").class_names == CLASSES
    of_coco = from_content({**model.content(with_classes(model.empty_state(), 80)), **meta}, where="x")
    assert dict(zip(of_coco.category_ids, of_coco.class_names, strict=True)) == COCO_CLASSES


@pytest.mark.parametrize(
    ("name", "moved", "title"),
    [
        (
            "detectron2__mask_rcnn_R_50_FPN_1x",
            ("roi_heads.box_predictor.", "roi_heads.box_predictor.0."),
            "Cascade R-CNN",
        ),
        ("detectron2__mask_rcnn_R_50_FPN_1x", ("roi_heads.", "sem_seg_head."), "Panoptic FPN"),
        (
            "detectron2__mask_rcnn_R_50_FPN_1x",
            ("roi_heads.mask_head.", "roi_heads.mask_head.coarse_head."),
            "PointRend",
        ),
        ("detectron2__mask_rcnn_R_50_FPN_1x", ("backbone.fpn_", "x."), r"an R-CNN on a dilated C5 \(DC5\)"),
        ("detectron2__mask_rcnn_R_50_FPN_1x", ("roi_heads.", "x."), "a region proposal network without box head"),
        (
            "mmdetection__mask-rcnn_r50_fpn_1x_coco",
            ("roi_head.bbox_head.", "roi_head.bbox_head.0."),
            "Cascade R-CNN or",
        ),
        ("mmdetection__mask-rcnn_r50_fpn_1x_coco", ("roi_head.", ""), "a detector of mmdetection 1"),
        ("mmdetection__mask-rcnn_r50_fpn_1x_coco", ("neck.", "x."), r"an R-CNN on a dilated C5 \(DC5\)"),
        ("mmdetection__mask-rcnn_r50_fpn_1x_coco", ("roi_head.", "x."), "a region proposal network without"),
    ],
)
def test_other_detectors_are_refused_by_name(name: str, moved: tuple[str, str], title: str) -> None:
    model = Recorded(name)
    state = {old.replace(*moved): tensor for old, tensor in model.empty_state().items()}
    project = name.partition("__")[0]
    with pytest.raises(WeightsError, match=rf"^x\.pth: expected {project}'s FCOS, .*, found {title}"):
        from_content(model.content(state), where="x.pth")


@pytest.mark.parametrize(
    ("tensor", "shape", "expected"),
    [
        ("roi_heads.box_predictor.cls_score.weight", (7, 128), r"found weight: \[7, 128\], bias: \[6\]"),
        (
            "roi_heads.box_predictor.bbox_pred.bias",
            (21,),
            r"20 or 4 rows of box\.offsets\.bias for 5 classes, .*\[21\]",
        ),
        ("roi_heads.mask_head.predictor.weight", (3, 64, 1, 1), r"5 or 1 rows of heads\.mask\.logits\.weight"),
        ("roi_heads.mask_head.predictor.bias", (), r"found the shape \[\]"),
    ],
)
def test_damaged_heads_raise(tensor: str, shape: tuple[int, ...], expected: str) -> None:
    model = Recorded("detectron2__mask_rcnn_R_50_FPN_1x")
    state = {**model.empty_state(), tensor: torch.empty(shape, device="meta")}
    with pytest.raises(WeightsError, match=rf"x\.pth: damaged weights: .*{expected}"):
        from_content(model.content(state), where="x.pth")


def test_pickles_of_the_model_zoo_predict(tmp_path: Path) -> None:
    """A pickle of arrays, as detectron2's model zoo has them, with the anchors that older files contain."""
    model = Recorded("detectron2__retinanet_R_50_FPN_1x")
    state = {name: tensor.numpy() for name, tensor in model.state().items()}
    for level in range(5):
        sizes = [32 * 2 ** (level + k / 3) for k in range(3)]
        sides = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in (0.5, 1, 2)]
        state[f"anchor_generator.cell_anchors.{level}"] = np.array(
            [[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides], np.float32
        )
    state |= {
        "pixel_mean": np.array([[[103.53]], [[116.28]], [[123.675]]], np.float32),
        "pixel_std": np.ones((3, 1, 1), "f4"),
    }
    path = tmp_path / "model_final_5bd44e.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    checkpoint = load_checkpoint(path, class_names=CLASSES)
    expected = model.checkpoint().model
    assert all(torch.equal(checkpoint.model[name], tensor) for name, tensor in expected.items())
    options = ["model.pre_nms_top_k=100", f"data.classes=[{','.join(CLASSES)}]", "device=cpu"]
    assert len(fcos.load(path, *options).predict(images()[0][0], threshold=0.05)) > 0
    with pytest.raises(WeightsError, match=r"5 with other values: cell_anchors_0.*use the model options they were"):
        fcos.load(path, "model.anchor_ratios=[1,2,3]", *options)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps({"model": {"a": Path}}), r"refers to pathlib\S*\.Path; only arrays and plain containers"),
        (b"\x80garbage", "not a readable pickle of arrays"),
        (pickle.dumps({"blobs": {"conv1_w": np.zeros(3, np.float32)}}), "found the tensors conv1_w"),
        (pickle.dumps([1]), "found a list"),
    ],
)
def test_other_pickles_raise(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=text):
        load_checkpoint(path)
