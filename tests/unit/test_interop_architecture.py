"""Weights of AdelaiDet, detectron2 and mmdetection: names, inferred structure, classes. tests/parity checks numbers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectors import fcos_of
from foreign_weights import state_of
from torch import Tensor

import fcos
from fcos.config import FCOSConfig
from fcos.errors import WeightsError
from fcos.interop.architecture import infer_model_section, map_names, shift_number
from fcos.interop.checkpoints import from_content, load_checkpoint
from fcos.interop.torchvision import COCO_CLASSES

MMDETECTION = "mmdetection__fcos_r50-caffe_fpn_gn-head_1x_coco"
IMPROVED = "mmdetection__fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco"
OTHERS = ["adelaidet__R_50_1x", "detectron2__fcos_R_50_FPN_1x", MMDETECTION]


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("wrapping", ["model", "state_dict", None])
def test_project_is_recognised_with_any_wrapper_key(model: str, wrapping: str | None) -> None:
    state = {f"module.{name}": tensor for name, tensor in state_of(model).items()}
    checkpoint = from_content({wrapping: state, "iteration": 5} if wrapping else state, where="x.pth")
    assert checkpoint.project == model.partition("__")[0]
    assert dict(zip(checkpoint.category_ids, checkpoint.class_names, strict=True)) == COCO_CLASSES


@pytest.mark.parametrize("model", OTHERS)
def test_non_coco_weights_have_class_names_only_if_given(model: str) -> None:
    state = state_of(model, classes=3)
    unnamed = from_content(state, where="x.pth")
    assert (unnamed.class_names, unnamed.category_ids) == ((), (1, 2, 3))
    assert from_content(state, where="x.pth", class_names=["a", "b", "c"]).class_names == ("a", "b", "c")
    with pytest.raises(WeightsError, match=r"x\.pth: the weights have 3 classes, but data\.classes has 2 names"):
        from_content(state, where="x.pth", class_names=["a", "b"])


@pytest.mark.parametrize("model", OTHERS)
def test_only_adelaidet_weights_have_a_restrictive_licence(model: str) -> None:
    licence = "licence of AdelaiDet (non-commercial use only) if its authors published these weights"
    assert from_content(state_of(model), where="x.pth").licence == (licence if model.startswith("adelaidet") else "")


def test_tensor_names_before_mmdetection_2_are_supported() -> None:
    state = state_of(MMDETECTION)
    old = {name.replace("bbox_head.conv_", "bbox_head.fcos_"): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    assert from_content(old, where="old").model.keys() == from_content(state, where="new").model.keys()


def test_mmdetection_level_scale_of_wrong_shape_is_not_reshaped() -> None:
    state = state_of(MMDETECTION)
    state["bbox_head.scales.0.scale"] = torch.zeros(2)
    model = from_content(state, where="x.pth").model
    assert [tuple(model[f"head.scales.{level}"].shape) for level in range(5)] == [(2,), (1,), (1,), (1,), (1,)]


def test_pixel_statistics_in_the_file_are_used(caplog: pytest.LogCaptureFixture) -> None:
    state = state_of("detectron2__fcos_R_50_FPN_1x")
    state |= {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]), "pixel_std": torch.ones(3, 1, 1)}
    with caplog.at_level(logging.INFO):
        checkpoint = from_content(state, where="x.pth")
    section = FCOSConfig.model_validate(checkpoint.config["model"])
    assert (section.pixel_mean, section.pixel_std) == ((123.675, 116.28, 103.53), (1.0, 1.0, 1.0))
    assert checkpoint.model["pixel_mean"].shape == (3, 1, 1)
    assert "weights do not determine: model.backbone.stride_in_1x1=true model.channel_order=bgr" in caplog.text
    assert "pixel" not in caplog.text


def test_mmdetection_deformable_layers_are_converted() -> None:
    state = state_of(IMPROVED)
    for layer in ("backbone.layer3.0.conv2", "bbox_head.cls_convs.3.conv", "bbox_head.reg_convs.3.conv"):
        state[f"{layer}.conv_offset.weight"] = torch.zeros(27, 256, 3, 3, device="meta")
        state[f"{layer}.conv_offset.bias"] = torch.zeros(27, device="meta")
    checkpoint = from_content(state, where="x.pth")
    for layer in ("backbone.layer3.0.conv2", "head.cls_tower.9", "head.box_tower.9"):
        own = {name.removeprefix(f"{layer}.") for name in checkpoint.model if name.startswith(f"{layer}.")}
        bias = set() if layer.startswith("backbone") else {"conv.bias"}
        assert own == {"offset.weight", "offset.bias", "conv.weight"} | bias
    assert checkpoint.config["model"]["backbone"]["deformable_stages"] == ["C4"]
    assert checkpoint.config["model"]["head"]["deformable"]
    assert checkpoint.config["model"]["head"]["num_convs"] == 4


def test_mmdetection_variants_are_distinguished_by_their_towers() -> None:
    first, improved = (from_content(state_of(name), where="x.pth").config["model"] for name in (MMDETECTION, IMPROVED))
    assert (first["nms_threshold"], improved["nms_threshold"]) == (0.5, 0.6)
    assert improved["head"]["regression"] == "relu_stride"
    assert "regression" not in first["head"]


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("cat", "dog")},
        {"dataset_meta": {"classes": ["cat", "dog"]}},
        {"dataset_meta": {}},
        {"dataset_meta": {"classes": ["cat", "cat"]}},
    ],
)
def test_mmdetection_metadata_provides_class_names(meta: dict[str, Any]) -> None:
    state = state_of(MMDETECTION, classes=2)
    expected = ("cat", "dog") if "dog" in str(meta) else ()
    assert from_content({"meta": meta, "state_dict": state}, where="x.pth").class_names == expected
    given = from_content({"meta": meta, "state_dict": state}, where="x.pth", class_names=["a", "b"])
    assert given.class_names == ("a", "b")
    three = from_content({"meta": meta, "state_dict": state_of(MMDETECTION, classes=3)}, where="x.pth")
    assert three.class_names == ()


def test_coco_class_names_give_coco_category_ids(caplog: pytest.LogCaptureFixture) -> None:
    content = {"meta": {"CLASSES": tuple(COCO_CLASSES.values())}, "state_dict": state_of(MMDETECTION)}
    with caplog.at_level(logging.INFO):
        checkpoint = from_content(content, where="x.pth")
    assert checkpoint.category_ids == tuple(COCO_CLASSES)
    assert "classes are those of COCO" not in caplog.text


class HistoryBuffer:
    """Stand-in for mmengine's class, which keeps its own functions in its pickled state."""

    def __init__(self) -> None:
        self.log, self.count = np.array([0.5, 0.25]), np.float64(2)

    def mean(self) -> float:
        return float(np.mean(self.log))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_mmengine_training_log_in_the_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for pickled in (HistoryBuffer, HistoryBuffer.mean):
        monkeypatch.setattr(pickled, "__module__", module.__name__)
    state = {name: torch.zeros(tensor.shape) for name, tensor in state_of(MMDETECTION).items()}
    log = {"log_scalars": {"loss": HistoryBuffer()}}
    torch.save({"meta": {}, "message_hub": log, "state_dict": state}, tmp_path / "epoch_12.pth")
    assert load_checkpoint(tmp_path / "epoch_12.pth").project == "mmdetection"


def test_assumptions_about_the_weights_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        from_content(state_of(MMDETECTION), where="x.pth")
    assert "x.pth: assuming that the 80 classes are those of COCO" in caplog.text
    options = "model.backbone.stride_in_1x1=true model.channel_order=bgr model.pixel_mean=[102.9801,115.9465,122.7717]"
    assert (
        f"x.pth: using the values of mmdetection's configs for options that weights do not determine: {options}"
        in caplog.text
    )


def test_mmdetection_file_loads_as_a_detector(tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 12}, "state_dict": state_of(IMPROVED, classes=2, device="cpu")}, tmp_path / "x.pth")
    detector = fcos.load(tmp_path / "x.pth", "data.classes=[cat, dog]", "model.nms_threshold=0.3", "device=cpu")
    assert detector.class_names == ("cat", "dog")
    assert (detector.config.data.detection_short_side, detector.config.data.detection_max_side) == (800, 1333)
    options = fcos_of(detector).postprocess
    assert (options.score, options.nms_threshold) == ("product", 0.3)


# ----------------------------------------------------------------------------------------------------- names, structure


def test_renaming_rules_are_applied_in_order() -> None:
    rules = [(r"^a\.", "b."), (r"^b\.p(\d)", shift_number("level.", -3))]
    assert list(map_names(["a.p3.x", "other"], rules).items()) == [("level.0.x", "a.p3.x"), ("other", "other")]


def test_weights_next_to_offsets_are_renamed_to_the_deformable_conv() -> None:
    names = ["a.offset.weight", "a.offset.bias", "a.weight", "a.bias", "b.weight", "c.offset.weight", "c.conv.weight"]
    found = map_names(names, [])
    assert found.keys() == {*names} - {"a.weight", "a.bias"} | {"a.conv.weight", "a.conv.bias"}
    assert found["a.conv.bias"] == "a.bias"


def tensors(
    more: Mapping[str, Tensor] | None = None, *, levels: int = 5, blocks: int = 6, first: tuple[int, int] = (64, 64)
) -> dict[str, Tensor]:
    """Return the tensors, by our names, from which the structure is inferred."""
    shapes = {
        **{f"backbone.layer3.{i}.conv3.weight": (1024, 256, 1, 1) for i in range(blocks)},
        "backbone.layer1.0.conv2.weight": (*first, 3, 3),
        "fpn.lateral.0.weight": (64, 512, 1, 1),
        **{f"fpn.output.{i}.weight": (64, 64, 3, 3) for i in range(3)},
        **{f"fpn.extra.{i}.weight": (64, 64, 3, 3) for i in range(levels - 3)},
        "head.cls_tower.0.weight": (64, 64, 3, 3),
    }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()} | dict(more or {})


@pytest.mark.parametrize(
    ("blocks", "first", "name"),
    [
        (6, (64, 64), "resnet50"),
        (23, (64, 64), "resnet101"),
        (23, (256, 8), "resnext101_32x8d"),
        (23, (256, 4), "resnext101_64x4d"),
        (36, (64, 64), "resnet152"),
        (6, (128, 4), "resnext50_32x4d"),
    ],
)
def test_backbone_is_inferred_from_shapes(blocks: int, first: tuple[int, int], name: str) -> None:
    assert infer_model_section(tensors(blocks=blocks, first=first), where="x")["backbone"]["name"] == name


def test_unsupported_backbone_raises() -> None:
    with pytest.raises(
        WeightsError, match=r"x\.pth: expected a detector with one of the backbones .*resnet50, .* found another"
    ):
        infer_model_section(tensors(blocks=8), where="x.pth")


@pytest.mark.parametrize("model", OTHERS)
def test_unsupported_neck_raises(model: str) -> None:
    state = {name: tensor for name, tensor in state_of(model).items() if "lateral" not in name}
    with pytest.raises(WeightsError, match=r"x\.pth: expected a detector with a feature pyramid .* another neck"):
        from_content(state, where="x.pth")


def test_levels_and_channels_are_inferred_from_shapes() -> None:
    section = infer_model_section(tensors(levels=3), where="x")
    assert section["strides"] == [8, 16, 32]
    assert section["size_ranges"] == [(-1, 64), (64, 128), (128, None)]
    assert section["fpn"] == {"channels": 64}
    assert infer_model_section(tensors(levels=5), where="x")["strides"] == [8, 16, 32, 64, 128]


@pytest.mark.parametrize(("rows", "modulated", "groups"), [(18, False, 1), (27, True, 1), (108, True, 4)])
def test_deformable_stages_are_inferred_from_offsets(rows: int, modulated: bool, groups: int) -> None:
    offsets = {f"backbone.layer{i}.0.conv2.offset.weight": torch.empty(rows, 64, 3, 3) for i in (3, 4)}
    backbone = infer_model_section(tensors(offsets), where="x")["backbone"]
    assert backbone["deformable_stages"] == ["C4", "C5"]
    assert (backbone["modulated"], backbone["offset_groups"]) == (modulated, groups)


@pytest.mark.parametrize(
    ("more", "expected_values"),
    [
        ([], {"num_convs": 1, "norm": "none", "conv_bias": False, "deformable": False, "level_scales": False}),
        (["0.bias", "1.weight", "1.bias"], {"norm": "gn", "conv_bias": True}),
        (["1.0.weight", "1.0.running_mean"], {"norm": "bn", "conv_bias": False}),
    ],
)
def test_tower_options_are_inferred_from_names(more: list[str], expected_values: dict[str, object]) -> None:
    head = infer_model_section(tensors({f"head.cls_tower.{name}": torch.empty(64) for name in more}), where="x")["head"]
    assert {key: head[key] for key in expected_values} == expected_values
