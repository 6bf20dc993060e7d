"""Warnings before a training starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_data import coco_tree, write_coco

from fcos.config import Config
from fcos.data import load_annotations
from fcos.training.loop import train
from fcos.training.messages import SCALING_RULES, start_warnings


def warnings_of(config: Config, *, fresh_backbone: bool = False) -> list[str]:
    data = load_annotations(config.data, "train")
    assert data is not None
    return list(start_warnings(config, data, fresh_backbone=fresh_backbone))


@pytest.fixture
def quiet(configure: Callable[..., Config]) -> Callable[..., Config]:
    """Return a function like `configure` whose configs cause no warnings."""
    return lambda **options: configure(**{"lr": 0.00125, **options})


def test_sound_config_causes_no_warnings(quiet: Callable[..., Config]) -> None:
    assert warnings_of(quiet(), fresh_backbone=True) == []


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "rate"),
    [("sgd", 16, 0.01), ("sgd", 2, 0.00125), ("adamw", 4, 2e-3), ("adamw", 16, 4e-3), ("adamw", 1, 1e-3)],
)
def test_learning_rate_scales_with_batch_size(optimizer: str, batch_size: int, rate: float) -> None:
    assert SCALING_RULES[optimizer](batch_size) == pytest.approx(rate)


@pytest.mark.parametrize("rate", [0.01, 1e-4])
def test_learning_rate_far_from_the_scaling_rule_warns(quiet: Callable[..., Config], rate: float) -> None:
    (warning,) = warnings_of(quiet(lr=rate))
    assert f"train.lr={rate:g} is {rate / 0.00125:.2g} times the usual value for sgd with train.batch_size=2" in warning
    assert warning.endswith("try train.lr=0.0013")


def test_random_weights_with_frozen_batch_norm_warn(quiet: Callable[..., Config]) -> None:
    model = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}
    (warning,) = warnings_of(quiet(model=model), fresh_backbone=True)
    assert "random weights and frozen batch norm" in warning
    assert "model.backbone.weights=imagenet" in warning
    assert warnings_of(quiet(model=model)) == []


def test_random_weights_in_frozen_stages_warn(quiet: Callable[..., Config]) -> None:
    model = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "bn", "frozen_stages": 2}}
    (warning,) = warnings_of(quiet(model=model), fresh_backbone=True)
    assert warning.startswith("the backbone has random weights and 2 frozen stages, which stay random")
    assert warnings_of(quiet(model=model)) == []


def test_class_without_training_boxes_warns(quiet: Callable[..., Config], data: Path) -> None:
    tree = coco_tree()
    tree["categories"].append({"id": 9, "name": "owl"})
    write_coco(data, tree)
    (warning,) = warnings_of(quiet())
    assert warning.startswith("1 of 3 classes have no training boxes: owl; add images of these classes")


@pytest.mark.parametrize(
    ("ranges", "count"),
    [
        ([[-1, 8], [8, None]], 0),
        # Scaled by 32 / 30: the longer sides are 21.3, 32 and 17.1 pixels.
        ([[-1, 8], [8, 10]], 2),  # half sides 10.7 and 16 exceed 10, 8.5 does not
        ([[-1, 4], [20, None]], 1),
        ([[-1, 2], [64, None]], 3),
    ],
)
def test_boxes_covered_by_no_level_warn(quiet: Callable[..., Config], ranges: list[Any], count: int) -> None:
    found = warnings_of(quiet(model={"strides": [8, 16], "size_ranges": ranges}))
    assert [text.split(" a size")[0] for text in found] == ([f"{count} of 3 boxes have"] if count else [])


def test_start_warnings_are_printed_once(configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    train(configure(lr=1e-4, warmup="linear", warmup_iterations=500))
    out = capsys.readouterr().out
    assert out.count("the run of 2 iterations ends within the warm-up") == 1
    assert out.count("warning: train.lr=0.0001 is 0.08 times the usual value") == 1
    assert (
        "step: 2 images over 1 process, at most 2 in a micro-batch; learning rate 0.0001 (linear scaling rule: 0.00125"
        in out
    )


def test_start_names_the_scaling_rule_of_adamw(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(optimizer="adamw", lr=1e-3))
    expected = "learning rate 0.001 (square-root scaling rule: 0.00141, from 0.002 for 4 images)"
    assert expected in capsys.readouterr().out


def test_freezing_a_random_backbone_warns(quiet: Callable[..., Config]) -> None:
    (warning,) = warnings_of(quiet(freeze=["backbone.*"]), fresh_backbone=True)
    assert warning.startswith("the backbone has random weights, and train.freeze=['backbone.*'] freezes some of them")
    assert warnings_of(quiet(freeze=["fpn.*"]), fresh_backbone=True) == []


def test_low_learning_rate_of_a_random_backbone_warns(quiet: Callable[..., Config]) -> None:
    model = {"backbone": {"name": "mobilenet_v2", "weights": None}}
    slow = quiet(model=model, lr_factors={"fpn.*": 0.5, "backbone.*": 0.15})
    (warning,) = warnings_of(slow, fresh_backbone=True)
    assert warning.startswith("the backbone has random weights, but train.lr_factors multiplies")
    assert "learning rate by 0.15; use train.lr_factors={}" in warning
    assert warnings_of(slow) == []
    factors = {"backbone.*": 1.0, "head.*": 0.5}
    assert warnings_of(quiet(model=model, lr_factors=factors), fresh_backbone=True) == []
    own = quiet(lr_factors={"backbone.*": 0.15})  # this backbone is a function, which may load weights
    assert warnings_of(own, fresh_backbone=True) == []
