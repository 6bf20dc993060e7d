"""Fine-tuning: a new training that starts from the weights of another one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from detectors import CATEGORY_IDS, NAMES, build_fcos, tiny_config, tiny_model
from torch import nn

from fcos.checkpoint import Checkpoint, Project, save_checkpoint
from fcos.config import Config
from fcos.errors import WeightsError
from fcos.interop.checkpoints import load_checkpoint
from fcos.models import DetectionModel
from fcos.models.detector import ClassRows
from fcos.models.fcos import FCOS
from fcos.training.start import start_from


def save(path: Path, model: FCOS, config: Config) -> None:
    save_checkpoint(path, model=model, config=config, class_names=NAMES, category_ids=CATEGORY_IDS)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(path: Path, names: tuple[str, ...]) -> tuple[FCOS, FCOS, FCOS, str]:
    """Save a detector of `NAMES` and start one of `names` from it.

    Returns the saved detector, the new one before and after the start, and the summary.
    """
    config = tiny_config()
    old = tiny_model(config)
    save(path, old, config)
    fresh = build_fcos(config.model, num_classes=len(names), pretrained=False)
    new = copy.deepcopy(fresh)
    return old, fresh, new, start_from(new, load_checkpoint(path), config.model, names, where="a.pt")


def test_start_from_same_classes_loads_all_tensors(tmp_path: Path) -> None:
    old, _, new, summary = start(tmp_path / "a.pt", NAMES)
    assert same(new.state_dict(), old.state_dict())
    assert summary == f"weights: all {len(old.state_dict()) - 2} tensors from a.pt"  # without pixel mean and std


def test_start_from_summary_does_not_count_omitted_tensors(tmp_path: Path) -> None:
    learning, frozen = (
        tiny_config(backbone={"name": "mobilenet_v2", "weights": None, "norm": norm}) for norm in ("bn", "frozen_bn")
    )
    save(tmp_path / "a.pt", tiny_model(learning), learning)
    new = tiny_model(frozen)
    summary = start_from(new, load_checkpoint(tmp_path / "a.pt"), frozen.model, NAMES, where="a.pt")
    assert summary == f"weights: all {len(new.state_dict()) - 2} tensors from a.pt"  # without pixel mean and std


def test_start_from_reports_options_of_the_original_weights() -> None:
    config = tiny_config(backbone={"name": "resnet50", "weights": None})
    model = build_fcos(config.model, num_classes=1, pretrained=False)
    weights = Checkpoint(model.state_dict(), {"model": {}}, ("cat",), (1,), project="fcos_core")
    summary = start_from(model, weights, config.model, ["cat"], where="a.pth")
    told = summary.partition("; they were trained with ")[2]
    assert set(told.removesuffix("; use the same options").split()) == {
        "model.backbone.norm_eps=0",
        "model.backbone.stride_in_1x1=true",
        "model.box_convention=inclusive",
        "model.channel_order=bgr",
        "model.pixel_mean=[102.9801,115.9465,122.7717]",
        "model.pixel_std=[1,1,1]",
    }


def test_start_from_copies_class_head_rows_by_name(tmp_path: Path) -> None:
    old, fresh, new, summary = start(tmp_path / "a.pt", ("horse", "owl", "cat", "cow"))
    for part in ("weight", "bias"):
        before, own, after = (getattr(model.head.logits, part) for model in (old, fresh, new))
        assert torch.equal(after[[1, 2]], before[[2, 0]])
        assert torch.equal(after[[0, 3]], own[[0, 3]])
    assert torch.equal(new.head.ltrb.weight, old.head.ltrb.weight)
    assert summary.splitlines() == [
        f"weights: {len(old.state_dict()) - 4} tensors from a.pt",
        "  head.logits.weight, head.logits.bias: loaded 2 of 4 rows by class name (owl, cat);"
        " newly initialised: horse, cow",
    ]


def test_start_from_permuted_classes_reorders_class_head_rows(tmp_path: Path) -> None:
    old, _, new, summary = start(tmp_path / "a.pt", NAMES[::-1])
    assert torch.equal(new.head.logits.weight, old.head.logits.weight.flip(0))
    assert summary.endswith("head.logits.bias: loaded 3 of 3 rows by class name (owl, dog, cat)")


def test_start_from_other_classes_keeps_the_new_class_head(tmp_path: Path) -> None:
    old, fresh, new, summary = start(tmp_path / "a.pt", ("horse", "cow"))
    assert torch.equal(new.head.ltrb.weight, old.head.ltrb.weight)
    assert torch.equal(new.head.logits.weight, fresh.head.logits.weight)
    assert summary.endswith(
        "newly initialised, because the classes differ: the weights have cat, dog, owl, the data has horse, cow"
    )


class Heads(nn.Module):
    """Module with the attributes that `start_from` needs, and parameters with several layouts of class rows."""

    class_parameters: ClassVar[dict[str, ClassRows]] = {
        "anchors": ClassRows(repeats=2),
        "scores": ClassRows(before=1),
        "boxes": ClassRows(before=2, per_class=2),
        "masks.scores": ClassRows(),
    }
    keypoint_parameters: ClassVar[dict[str, int]] = {}
    optional_modules = ("masks",)

    def __init__(self, num_classes: int, value: float, *, masks: bool = True):
        super().__init__()
        counts = {name: rows.count(num_classes) for name, rows in self.class_parameters.items() if "." not in name}
        for name, count in counts.items():
            self.register_parameter(name, nn.Parameter(value + torch.arange(float(count))))
        self.masks = nn.ParameterDict({"scores": nn.Parameter(value + torch.arange(num_classes))} if masks else {})


def test_start_from_copies_class_rows_of_every_layout() -> None:
    model = cast("DetectionModel", Heads(3, 100.0))
    weights = Checkpoint(Heads(2, 0.0, masks=False).state_dict(), {"model": {}}, ("cat", "dog"), (1, 2))
    summary = start_from(model, weights, Config().model, ["dog", "owl", "cat"], where="a.pt")
    assert {name: parameter.tolist() for name, parameter in model.named_parameters()} == {
        "anchors": [1, 101, 0, 3, 104, 2],
        "scores": [0, 2, 102, 1],
        "boxes": [0, 1, 4, 5, 104, 105, 2, 3],
        "masks.scores": [100, 101, 102],
    }
    assert summary.splitlines()[1:] == [
        "  anchors, scores, boxes: loaded 2 of 3 rows by class name (dog, cat); newly initialised: owl",
        "  masks.scores: newly initialised, because the weights do not contain them",
    ]


def test_start_from_rejects_weights_of_another_width(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", tiny_model(tiny_config()), Config())
    config = tiny_config(fpn={"channels": 32})
    new = build_fcos(config.model, num_classes=2, pretrained=False)
    with pytest.raises(WeightsError, match=r"of a different shape: .*fpn"):
        start_from(new, load_checkpoint(tmp_path / "a.pt"), config.model, ("cat", "cow"), where="a.pt")


def option_advice(section: dict[str, Any], project: Project = "fcos", **here: Any) -> str:
    """Return the advice in the error for weights that do not fit, of a detector with this `model` section."""
    config = tiny_config(**here)
    model = build_fcos(config.model, num_classes=3, pretrained=False)
    weights = Checkpoint({}, {"model": section}, NAMES, CATEGORY_IDS, project=project)
    with pytest.raises(WeightsError) as caught:
        start_from(model, weights, config.model, NAMES, where="a.pt")
    return str(caught.value).rpartition("; use the model options they were trained with")[2]


HERE: dict[str, Any] = {"fpn": {"channels": 64}, "head": {"num_convs": 1}}
MOBILE: dict[str, Any] = {"name": "mobilenet_v2"}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"backbone": MOBILE, **HERE}, ""),
        ({"backbone": {**MOBILE, "norm": "frozen_bn", "weights": None}, **HERE, "location": "corner"}, ""),
        (
            {"backbone": MOBILE, "fpn": {"channels": 64}, "head": {"num_convs": 1, "conv_bias": False}},
            ": model.head.conv_bias=false",
        ),
        ({"backbone": {"name": "resnet50", "norm": "frozen_bn"}, **HERE}, ": model.backbone.name=resnet50"),
        (
            {"backbone": {"norm": "gn", "deformable_stages": ["C4", "C5"], "modulated": False}, "fpn": {"relu": True}},
            ": model.backbone.name=resnet50 model.backbone.norm=gn model.backbone.deformable_stages=[C4,C5]"
            " model.backbone.modulated=false model.fpn.channels=256 model.fpn.relu=true model.head.num_convs=4",
        ),
        (
            {"backbone": {"name": "own:build", "options": {"width": 8}}, **HERE},
            ": model.backbone.name='own:build' model.backbone.options.width=8",
        ),
        ({"backbone": {"name": "of a later version"}}, ""),
    ],
)
def test_mismatched_weights_error_lists_the_matching_options(section: dict[str, Any], told: str) -> None:
    assert option_advice(section) == told


def test_mismatched_weights_error_compares_options_with_the_config() -> None:
    here = {"name": "resnet50", "weights": None, "deformable_stages": ["C5"]}
    assert option_advice({"backbone": {}, **HERE}, backbone=here) == ": model.backbone.deformable_stages=[]"


def test_mismatched_original_weights_error_lists_no_options() -> None:
    assert option_advice({"box_convention": "inclusive"}, "fcos_core") == ""


def test_start_from_loads_the_class_head_of_unnamed_classes(tmp_path: Path) -> None:
    config = tiny_config()
    save(tmp_path / "a.pt", tiny_model(config), config)
    nameless = replace(load_checkpoint(tmp_path / "a.pt"), class_names=())
    new = build_fcos(config.model, num_classes=3, pretrained=False)
    start_from(new, nameless, config.model, ["a", "b", "c"], where="a.pt")
    assert same(new.state_dict(), nameless.model)
    summary = start_from(
        build_fcos(config.model, num_classes=2, pretrained=False), nameless, config.model, ["a", "b"], where="a.pt"
    )
    assert "the classes differ: the weights have 3 unnamed classes, the data has a, b" in summary


def test_start_from_initializes_missing_level_scales(tmp_path: Path) -> None:
    config = tiny_config(head={"num_convs": 1, "level_scales": False}, location="corner")
    save(tmp_path / "a.pt", tiny_model(config), config)
    new = build_fcos(tiny_config().model, num_classes=3, pretrained=False)
    summary = start_from(new, load_checkpoint(tmp_path / "a.pt"), tiny_config().model, NAMES, where="a.pt")
    assert [scale.item() for scale in new.head.scales] == [1.0] * 5
    first, scales = summary.splitlines()
    assert first.endswith("; they were trained with model.location=corner; use the same options")
    assert scales.startswith("  head.scales.0, head.scales.1")
    assert scales.endswith("head.scales.4: newly initialised, because the weights do not contain them")


def test_start_from_reports_options_that_change_tensor_meaning(tmp_path: Path) -> None:
    config = tiny_config(head={"num_convs": 1, "regression": "relu_stride"}, pixel_mean=[1.5, 2.0, 3.0])
    save(tmp_path / "a.pt", tiny_model(config), config)
    here = tiny_config(head={"num_convs": 1, "centerness_on": "box"})
    new = build_fcos(here.model, num_classes=3, pretrained=False)
    summary = start_from(new, load_checkpoint(tmp_path / "a.pt"), here.model, NAMES, where="a.pt")
    told = summary.partition("; they were trained with ")[2]
    assert set(told.removesuffix("; use the same options").split()) == {
        "model.pixel_mean=[1.5,2,3]",
        "model.head.centerness_on=cls",
        "model.head.regression=relu_stride",
    }
    assert new.pixel_mean.flatten().tolist() == pytest.approx(here.model.pixel_mean)
