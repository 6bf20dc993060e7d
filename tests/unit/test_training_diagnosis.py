"""What a training is warned of before it starts, and what is said when its numbers are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import coco_tree, write_coco

from fcos.config import Config
from fcos.data import load_annotations
from fcos.errors import TrainingError
from fcos.models import fcos as fcos_module
from fcos.training import diagnosis, step
from fcos.training.diagnosis import linear_rule, start_warnings
from fcos.training.loop import train


def warnings_of(config: Config, *, fresh_backbone: bool = False) -> list[str]:
    data = load_annotations(config.data, "train")
    assert data is not None
    return list(start_warnings(config, data, fresh_backbone=fresh_backbone))


@pytest.fixture
def quiet(configure: Callable[..., Config]) -> Callable[..., Config]:
    """Like `configure`, with nothing to warn of."""
    return lambda **options: configure(**{"lr": 0.00125, **options})


def test_nothing_to_warn_of(quiet: Callable[..., Config]) -> None:
    assert warnings_of(quiet(), fresh_backbone=True) == []


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "rate"),
    [("sgd", 16, 0.01), ("sgd", 2, 0.00125), ("adamw", 8, 1e-3), ("adamw", 4, 5e-4)],
)
def test_the_linear_rule(quiet: Callable[..., Config], optimizer: str, batch_size: int, rate: float) -> None:
    assert linear_rule(quiet(optimizer=optimizer, batch_size=batch_size)) == pytest.approx(rate)


@pytest.mark.parametrize("rate", [0.01, 1e-4])
def test_a_rate_far_from_the_rule(quiet: Callable[..., Config], rate: float) -> None:
    (warning,) = warnings_of(quiet(lr=rate))
    assert f"train.lr={rate:g} is {rate / 0.00125:.2g} times what is usual for sgd with 2 images a step" in warning
    assert warning.endswith("try train.lr=0.0013")


def test_random_weights_behind_frozen_batch_norm(quiet: Callable[..., Config]) -> None:
    model = {"backbone": {"name": "mobilenet_v2", "weights": None, "norm": "frozen_bn"}}
    (warning,) = warnings_of(quiet(model=model), fresh_backbone=True)
    assert "random weights and frozen batch norm" in warning
    assert "model.backbone.weights=imagenet" in warning
    assert warnings_of(quiet(model=model)) == []


def test_a_class_without_a_box(quiet: Callable[..., Config], data: Path) -> None:
    tree = coco_tree()
    tree["categories"].append({"id": 9, "name": "owl"})
    write_coco(data, tree)
    (warning,) = warnings_of(quiet())
    assert warning.startswith("1 of 3 classes have no box to learn from: owl; add images of them")


@pytest.mark.parametrize(
    ("ranges", "count"),
    [
        ([[-1, 8], [8, None]], 0),
        # Scaled by 32 / 30: the longer sides are 21.3, 32 and 17.1 pixels.
        ([[-1, 8], [8, 10]], 2),  # halves of 10.7 and 16 exceed 10, that of 8.5 does not
        ([[-1, 4], [20, None]], 1),
        ([[-1, 2], [64, None]], 3),
    ],
)
def test_boxes_that_no_level_covers(quiet: Callable[..., Config], ranges: list[Any], count: int) -> None:
    found = warnings_of(quiet(model={"strides": [8, 16], "size_ranges": ranges}))
    assert [text.split(" of a size")[0] for text in found] == ([f"{count} of 3 boxes are"] if count else [])


def test_warnings_are_said_once_at_the_start(
    configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(lr=1e-4))
    out = capsys.readouterr().out
    assert out.count("warning: train.lr=0.0001 is 0.08 times what is usual") == 1
    assert "step: 2 images over 1 process, at most 2 at a time; learning rate 0.0001, by the linear rule 0.00125" in out


def refused(config: Config) -> str:
    with pytest.raises(TrainingError) as caught:
        train(config)
    return str(caught.value)


def test_the_box_whose_loss_is_not_finite_is_named(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.fcos_loss

    def poisoned(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        losses, assignment = original(*args, **kwargs), args[3]
        if (assignment.labels == 0).any():  # the only cat
            losses["loss_box"] = losses["loss_box"] * math.nan
        return losses

    monkeypatch.setattr(fcos_module, "fcos_loss", poisoned)
    config = configure(iterations=9)
    message = refused(config.model_copy(update={"data": config.data.model_copy(update={"flip": 0.0})}))
    assert "a.png: loss_box of cat [2.1" in message  # 2 pixels, scaled by 32 / 30
    assert "dog" not in message


def test_outputs_that_are_not_finite_are_blamed_on_the_image(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def poisoned(*args: Any) -> Any:
        outputs = original(*args)
        outputs.logits[0] = outputs.logits[0] * math.inf
        return outputs

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", poisoned)
    assert ".png: the network's outputs are not finite" in refused(configure())


def test_gradients_that_are_not_finite_are_named(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def poisoned(head: fcos_module.FCOSHead, features: Any) -> Any:
        if torch.is_grad_enabled() and not head.centerness.weight._backward_hooks:
            head.centerness.weight.register_hook(lambda gradient: gradient * math.nan)
        return original(head, features)

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", poisoned)
    message = refused(configure())
    assert "the gradients are not finite" in message
    assert "gradients of head.centerness.weight" in message


def test_what_only_half_precision_cannot_hold_is_found_in_it(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcos_module.FCOSHead.forward

    def large(head: fcos_module.FCOSHead, features: list[torch.Tensor]) -> Any:
        return original(head, [f * 6e4 * 6e4 / 6e4 / 6e4 for f in features])

    monkeypatch.setattr(fcos_module.FCOSHead, "forward", large)
    message = refused(configure(precision="float16"))
    assert ".png: the network's outputs are not finite" in message
    assert "try train.precision=bfloat16 or float32, a lower train.lr" in message


def test_a_batch_that_cannot_be_kept_does_not_hide_the_reason(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(diagnosis, "write", full)
    monkeypatch.setattr(step, "get_total_norm", lambda _: torch.tensor(math.inf))
    message = refused(configure())
    assert "iteration 1: the gradients are not finite" in message
    assert "the batch could not be kept: [Errno 28] No space left on device" in message


def test_freezing_a_random_backbone(quiet: Callable[..., Config]) -> None:
    (warning,) = warnings_of(quiet(freeze=["backbone.*"]), fresh_backbone=True)
    assert warning.startswith("the backbone has random weights, and train.freeze=['backbone.*'] keeps some of them")
    assert warnings_of(quiet(freeze=["fpn.*"]), fresh_backbone=True) == []
