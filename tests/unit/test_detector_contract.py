"""Contracts of detectors, of one-stage detectors as a first stage, of backbones, and of their options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, get_args

import grimp
import pytest
import torch
from detectors import tiny_config
from ground_truth import objects_of
from pydantic import BaseModel
from torch import Tensor, nn

from fcos.config import DetectorConfig, FCOSConfig, RetinaNetConfig
from fcos.config.backbones import SECTIONS, BackboneSection
from fcos.config.detectors import DETECTORS
from fcos.config.options import Role, options_of
from fcos.inference.detect import detect_in_views
from fcos.models import MODELS, DetectionModel, build_anchors, build_model
from fcos.models.anchors import AnchorGrid, AnchorMatcher, BoxCoder
from fcos.models.detector import ClassRows, Pixels
from fcos.models.losses import FCOSLoss, RetinaNetLoss
from fcos.models.points import Assigner
from fcos.models.postprocess import FCOSPostprocess
from fcos.models.rcnn import RCNN
from fcos.structures import Instances, Losses, Objects, View

STRIDES = {
    "usual": [8, 16, 32, 64, 128],
    "fine": [4, 8, 16, 32, 64],
    "few": [8, 16],
    "one": [32],
}
SHAPES = [("usual", (97, 131)), ("usual", (1, 1)), ("fine", (64, 96)), ("few", (33, 160)), ("one", (250, 63))]
"""Strides and image sizes (height, width)."""


def build(
    strides: Sequence[int] = (8, 16), *, name: str = "fcos", num_classes: int = 3, **options: Any
) -> DetectionModel:
    """Build an untrained detector with frozen batch norm."""
    ends = [-1, *(4 * stride for stride in strides[:-1]), None]
    anchors = {"anchor_sizes": [4 * stride for stride in strides]}
    levels = {"fcos": {"size_ranges": list(pairwise(ends))}, "retinanet": anchors, "rpn": anchors, "rcnn": anchors}
    config = tiny_config(
        name=name,
        strides=list(strides),
        backbone={"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"},
        fpn={"channels": 32},
        **levels[name],
        **options,
    )
    return build_model(config.model, num_classes=num_classes, pretrained=False)


def batch(height: int = 64, width: int = 96, *, images: int = 3) -> tuple[Tensor, Tensor, list[Objects]]:
    """Build images that in turn have two objects, reaching the lower right corner, and a crowd; one object; none."""
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    frame = torch.tensor([width, height, width, height])
    boxes = torch.tensor([[0.1, 0.1, 1.0, 1.0], [0.6, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5]]) * frame
    counts = [(3, 1, 0)[i % 3] for i in range(images)]
    targets = objects_of(
        [boxes[:count] for count in counts],
        [torch.tensor([2, 0, 1])[:count] for count in counts],
        [torch.tensor([False, False, True])[:count] for count in counts],
    )
    return pixels, torch.tensor([[height, width]] * images), targets


def total(losses: Losses) -> Tensor:
    return torch.stack(list(losses.terms.values())).sum()


# --------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": "iou", "score": "product", "box_convention": "inclusive"},
        {"name": "retinanet"},
        {"name": "retinanet", "box_convention": "inclusive"},
        {"name": "rpn"},
        {"name": "rcnn"},
        {"name": "rcnn", "box": {"class_agnostic": True}, "box_convention": "inclusive", "loss_average": "batch"},
    ],
    ids=str,
)
def test_detector_attributes_match_its_losses_and_parameters(options: dict[str, Any]) -> None:
    model = build(**options)
    images, sizes, targets = batch()
    losses: Losses = model(images, sizes, targets)
    assert tuple(losses.terms) == model.loss_names
    assert all(name.startswith("loss_") for name in model.loss_names)
    assert {count.shape for count in losses.stats.values()} == {()}
    parameters = dict(model.named_parameters())
    assert model.num_classes == 3
    assert all(len(parameters[name]) == rows.count(3) for name, rows in model.class_parameters.items())
    assert set(model.class_parameters) == class_parameters(options)
    assert all(isinstance(model.get_submodule(path), nn.Module) for path in model.compiled_parts)
    assert model.box_convention == options.get("box_convention", "continuous")
    assert model.default_threshold == tiny_config(**options).model.default_threshold
    assert model.device == torch.device("cpu")
    assert model.to("meta").device == torch.device("meta")


def class_parameters(options: dict[str, Any]) -> set[str]:
    """Return the names of the parameters with rows for every class."""
    if options.get("name") == "rpn":
        return set()
    if options.get("name") != "rcnn":
        return {"head.logits.weight", "head.logits.bias"}
    layers = ["logits"] if options.get("box") else ["logits", "offsets"]
    return {f"box.{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias")}


@pytest.mark.parametrize(
    ("layout", "rows", "of_none"),
    [
        (ClassRows(), [[0], [1], [2]], []),
        (ClassRows(repeats=2), [[0, 3], [1, 4], [2, 5]], []),
        (ClassRows(before=1), [[1], [2], [3]], [0]),
        (ClassRows(before=2, per_class=2), [[2, 3], [4, 5], [6, 7]], [0, 1]),
        (ClassRows(repeats=2, before=1), [[1, 5], [2, 6], [3, 7]], [0, 4]),
    ],
    ids=["one row per class", "anchors", "background first", "per-class boxes", "anchors with background"],
)
def test_class_rows_map_classes_to_parameter_rows(layout: ClassRows, rows: list[list[int]], of_none: list[int]) -> None:
    assert [layout.of(label, 3) for label in range(3)] == rows
    assert layout.of_none(3) == of_none
    assert sorted([*of_none, *(row for of_class in rows for row in of_class)]) == list(range(layout.count(3)))


@pytest.mark.parametrize("name", DETECTORS)
def test_compiled_parts_contain_all_parameters_except_linear_predictions(name: str) -> None:
    model = build(name=name)
    parts = tuple(f"{part}." for part in model.compiled_parts)
    outside = {name for name, _ in model.named_parameters() if not name.startswith(parts)}
    linear = {f"box.{layer}.{parameter}" for layer in ("logits", "offsets") for parameter in ("weight", "bias")}
    assert outside == (linear if name == "rcnn" else set())


@pytest.mark.parametrize("name", DETECTORS)
def test_detections_are_the_candidates_after_suppression(name: str) -> None:
    options: dict[str, Any] = {} if name == "rpn" else {"score_threshold": 0.001}
    model = build(name=name, **options).eval()
    images, sizes, _ = batch()
    for detections, candidates in zip(model.detect(images, sizes), model.candidates(images, sizes), strict=True):
        assert 0 < len(detections) <= len(candidates)
        chosen = model.suppress(candidates)
        assert torch.equal(detections.boxes, chosen.boxes)
        assert torch.equal(detections.scores, chosen.scores)
        assert (detections.scores.diff() <= 0).all()


def test_only_the_builders_import_detector_modules() -> None:
    graph = grimp.build_graph("fcos")
    for name in DETECTORS:
        importers = graph.find_modules_that_directly_import(type(build(name=name)).__module__)
        assert importers, name
        assert importers <= {"fcos.models.building", "fcos.models.building_rcnn"}, name


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_section_has_its_name(name: str) -> None:
    assert DETECTORS[name].model_fields["name"].default == name


def test_every_detector_has_a_config_section_and_a_builder() -> None:
    assert DETECTORS.keys() == MODELS.keys()


def test_detector_with_missing_methods_cannot_be_instantiated() -> None:
    class Unfinished(DetectionModel):
        def detect(self, images: Tensor, sizes: Tensor) -> list[Instances]:
            return []

    with pytest.raises(TypeError, match=r"abstract methods? '?decode'?, '?forward'?, '?loss_normalizers'?"):
        Unfinished(1, box_convention="continuous", default_threshold=0.5, loss_names=(), pixels=Pixels())  # pyright: ignore[reportAbstractUsage]


# -------------------------------------------------------------------------------------------------- two-stage detectors


def build_two_stages() -> RCNN:
    model = build(name="rcnn", score_threshold=0.001, box={"linear_channels": 32}, proposals={"samples_per_image": 64})
    assert isinstance(model, RCNN)
    return model


def test_training_step_updates_both_stages() -> None:
    model = build_two_stages()
    images, sizes, targets = batch()
    losses = model.train()(images, sizes, targets)
    assert tuple(losses.terms) == model.loss_names
    assert all(term.isfinite() and term > 0 for term in losses.terms.values())
    assert losses.stats["unassigned"] == 0
    total(losses).backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"backbone", "fpn", "proposals", "box"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", ["loss_cls", "loss_box"])
def test_second_stage_gradient_reaches_backbone_but_not_first_head(loss: str) -> None:
    model = build_two_stages()
    model(*batch()).terms[loss].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name in reached if name.startswith("backbone")}
    assert not {name for name in reached if name.startswith("proposals")}  # proposals carry no gradient to its head


def test_two_stage_detector_supports_test_time_augmentation() -> None:
    model = build_two_stages().eval()
    images, sizes, _ = batch()
    for instances in model.detect(images, sizes):
        assert len(instances) > 0
        assert instances.size == (64, 96)
    views = [View(images, sizes), View(images.flip(3), sizes, flipped=True)]
    assert [len(instances) > 0 for instances in detect_in_views(model, views)] == [True] * 3


# ---------------------------------------------------------------------------------------------------------- normalizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": "iou"},
        {"box_convention": "inclusive", "center_sampling_radius": 1.5},
        {"location": "corner"},
        {"head": {"num_convs": 1, "regression": "relu_stride"}, "box_loss": "giou"},
        {"name": "retinanet"},
        {"name": "retinanet", "box_convention": "inclusive", "anchor_rounding": "base", "anchor_ratios": [1.0]},
        {"name": "retinanet", "location": "corner", "anchor_rounding": "corners", "low_quality_matches": False},
        {"name": "rpn", "proposals": {"samples_per_image": 20}},
        {"name": "rcnn", "proposals": {"samples_per_image": 20, "straddle_threshold": 0.0}},
        {"name": "rcnn", "box_convention": "inclusive", "box": {"samples_per_image": 20, "linear_channels": 8}},
    ],
    ids=str,
)
@pytest.mark.parametrize(("strides", "size"), SHAPES)
def test_micro_batch_losses_sum_to_the_batch_losses(
    strides: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    model = build(STRIDES[strides], **options)
    images, sizes, targets = batch(*size, images=5)
    whole = model(images, sizes, targets)
    normalizers = model.loss_normalizers(targets, size)
    assert normalizers is not None
    again = model(images, sizes, targets, normalizers)
    torch.testing.assert_close(again.terms, whole.terms, rtol=0, atol=0)
    parts = [model(images[part], sizes[part], targets[part], normalizers) for part in (slice(2), slice(2, 5))]
    for name, term in whole.terms.items():
        assert sum(part.terms[name].item() for part in parts) == pytest.approx(term.item(), rel=1e-5), name
    assert sum(part.stats["unassigned"] for part in parts) == whole.stats["unassigned"]


# -------------------------------------------------------------------------------------------------------------- options


def option_names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a section's options, without those of the backbone."""
    for key, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from option_names(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize("section", DETECTORS.values())
def test_every_detector_option_declares_its_roles(section: type[DetectorConfig]) -> None:
    known, names = options_of(section), list(option_names(section))
    assert len(names) > 30
    assert set(names) - known.keys() == {"name"}
    assert all(info.roles and info.roles <= set(get_args(Role)) for info in known.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_every_backbone_option_declares_its_roles(section: type[BackboneSection]) -> None:
    known = options_of(section)
    assert known.keys() == set(option_names(section))
    assert {f"backbone.{name}" for name in known} <= options_of(FCOSConfig).keys()
    assert all(info.roles and info.roles <= set(get_args(Role)) for info in known.values())


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (Assigner, FCOSConfig),
        (FCOSLoss, FCOSConfig),
        (FCOSPostprocess, FCOSConfig),
        (AnchorMatcher, RetinaNetConfig),
        (RetinaNetLoss, RetinaNetConfig),
    ],
)
def test_detector_parts_have_the_same_defaults_as_the_config(kind: type[Any], section: type[DetectorConfig]) -> None:
    made, config = kind(), section()  # pyright: ignore[reportCallIssue]
    defaults = {field.name: getattr(made, field.name) for field in fields(kind)}
    options = {name: default for name, default in defaults.items() if name in section.model_fields}
    assert section.model_validate(options) == config
    assert defaults.keys() - options.keys() <= {"default_threshold"}
    assert defaults.get("default_threshold", config.default_threshold) == config.default_threshold


def test_anchors_have_the_same_defaults_as_the_config() -> None:
    built, grid = build_anchors(RetinaNetConfig()), AnchorGrid()
    for ours, default in zip(built.cells(), grid.cells(), strict=True):
        torch.testing.assert_close(ours, default)
    assert (list(built.strides), built.num_anchors) == (list(grid.strides), 9)
    assert RetinaNetConfig().offset_weights == BoxCoder().weights


def test_pixels_have_the_same_defaults_as_the_config() -> None:
    pixels, config = Pixels(), FCOSConfig()
    assert (pixels.channel_order, pixels.mean, pixels.std) == (
        config.channel_order,
        config.pixel_mean,
        config.pixel_std,
    )
