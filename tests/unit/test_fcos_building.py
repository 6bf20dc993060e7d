"""Construction of FCOS from a config: levels, strides, options, state dict."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise

import pytest
import torch
from detectors import build_fcos, tiny_config
from fcos_inputs import build, noise, sizes_of, two_boxes

from fcos.config.detectors import HeadConfig
from fcos.errors import ConfigError
from fcos.models.fcos import FCOSHead

LOSSES = ["loss_cls", "loss_box", "loss_centerness"]


def test_head_has_the_same_defaults_as_the_config() -> None:
    parameters = inspect.signature(FCOSHead).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert defaults.keys() == HeadConfig.model_fields.keys()
    assert HeadConfig(**defaults) == HeadConfig()


@pytest.mark.parametrize("fpn", [{"extra_level_source": "c5"}, {"norm": "gn", "relu": True}])
@pytest.mark.parametrize("strides", [[8, 16, 32, 64, 128], [4, 8, 16, 32, 64], [8, 16, 32], [16, 32, 64], [32], [4, 8]])
def test_pyramid_can_start_at_any_backbone_stride(strides: list[int], fpn: dict) -> None:
    ends = [-1, *(4 * s for s in strides[:-1]), None]
    model = build(
        backbone={"name": "mobilenet_v2", "weights": None},
        strides=strides,
        size_ranges=list(pairwise(ends)),
        fpn={"channels": 32, **fpn},
        score_threshold=0.001,
    ).eval()
    images, sizes = noise(1, 3, 64, 96), sizes_of((64, 96))
    assert [x.shape[3] for x in model(images, sizes).logits] == [math.ceil(96 / s) for s in strides]
    assert all(loss.isfinite() for loss in model(images, sizes, two_boxes(1)).terms.values())
    assert len(model.detect(images, sizes)[0]) > 0


@pytest.mark.parametrize("strides", [[2, 4, 8], [64, 128], [3, 6]])
def test_first_stride_must_be_a_backbone_stride(strides: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"the first stride must be one of the strides of mobilenet_v2: \[4, 8"):
        build(strides=strides, size_ranges=[[0, None]] * len(strides))


def test_config_options_are_passed_to_the_detector() -> None:
    options = {
        "center_sampling_radius": 1.5,
        "box_loss": "giou",
        "focal_alpha": 0.3,
        "focal_gamma": 1.5,
        "score": "product",
        "score_threshold": 0.1,
        "pre_nms_top_k": 77,
        "top_k_on": "class",
        "nms_threshold": 0.4,
        "max_detections": 9,
        "clip_after_nms": True,
        "box_convention": "inclusive",
        "channel_order": "bgr",
    }
    model = build(**options, head={"num_convs": 3, "norm": "none", "centerness_on": "box", "regression": "relu_stride"})
    parts = (model.assigner, model.loss, model.postprocess, model)
    for name, value in options.items():
        assert {getattr(part, name) for part in parts if hasattr(part, name)} == {value}, name
    assert model.num_classes == 3
    assert [type(m).__name__ for m in model.head.box_tower] == ["Conv2d", "ReLU"] * 3
    assert model.head.centerness_on_box
    assert model.head.regression == "relu_stride"


def test_single_class_detector_detects() -> None:
    model = build_fcos(tiny_config(score_threshold=0.001).model, num_classes=1).eval()
    (instances,) = model.detect(noise(1, 3, 64, 64), sizes_of((64, 64)))
    assert len(instances) > 0
    assert instances.labels.unique().tolist() == [0]


def test_state_dict_restores_identical_detections() -> None:
    shared = build()
    other = build(pixel_mean=[1, 2, 3]).eval()
    images, sizes = noise(1, 3, 64, 64), sizes_of((64, 64))
    other.load_state_dict(shared.state_dict())
    for ours, theirs in zip(other.detect(images, sizes), shared.detect(images, sizes), strict=True):
        assert torch.equal(ours.boxes, theirs.boxes)
        assert torch.equal(ours.scores, theirs.scores)


def test_double_precision_is_preserved() -> None:
    model = build().double().eval()
    outputs = model(noise(1, 3, 64, 64), sizes_of((64, 64)))
    assert {x.dtype for levels in outputs for x in levels} == {torch.float64}
    losses = model(noise(1, 3, 64, 64), sizes_of((64, 64)), two_boxes(1)).terms
    assert losses["loss_cls"].dtype == torch.float64
