"""Options given for trained weights: those that contradict the weights or have no effect are rejected by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectors import NAMES, tiny_config, tiny_model
from foreign_weights import MOBILE, original_file

import fcos
from fcos.checkpoint import save_checkpoint
from fcos.errors import ConfigError
from fcos.recipes import load_config
from fcos.restore import Use, restore_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    config = tiny_config()
    save_checkpoint(path, model=tiny_model(config), config=config, class_names=NAMES, category_ids=(1, 2, 3))
    return path


@pytest.mark.parametrize(
    ("option", "trained", "reason"),
    [
        ("model.channel_order=bgr", "model.channel_order=rgb", "determines the meaning"),
        ("model.pixel_std=[1, 1, 1]", "model.pixel_std=[58.395, 57.12, 57.375]", "determines the meaning"),
        ("model.quality=iou", "model.quality=centerness", "determines the meaning"),
        ("model.head.regression=relu_stride", "model.head.regression=exp", "determines the meaning"),
        ("model.box_convention=inclusive", "model.box_convention=continuous", "determines the meaning"),
        ("model.fpn.channels=32", "model.fpn.channels=64", "determines the shapes"),
        ("model.backbone.name=resnet101", "model.backbone.name=mobilenet_v2", "determines the shapes"),
        ("model.num_classes=7", "model.num_classes=3", "the weights determine the number of classes"),
        ("model.focal_gamma=3", "model.focal_gamma=2.0", "only affects training"),
    ],
)
def test_options_that_contradict_our_weights_are_rejected(
    weights: Path, option: str, trained: str, reason: str
) -> None:
    new_file = weights.with_name("new.pt")
    for function in (fcos.load, fcos.evaluate, lambda path, text: fcos.convert(path, new_file, text)):
        with pytest.raises(ConfigError) as caught:
            function(weights, option)
        assert not new_file.exists()
        assert f"{weights} was trained with {trained}, and " in str(caught.value)
        assert str(caught.value).endswith("; remove it")
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        "model.channel_order=rgb",
        "model.num_classes=3",
        "model.backbone.name=mobilenet_v2",
        "model.nms_threshold=0.4",
        "model.score=product",
        "data.short_side=64",
        "data.classes=[cat,dog,owl]",
        "eval.flip=true",
        "model.fpn.norm_groups=16",  # no effect without model.fpn.norm=gn
        "model.fpn.norm_eps=0.1",
    ],
)
def test_options_that_agree_or_only_affect_detection_are_accepted(weights: Path, option: str) -> None:
    assert fcos.load(weights, option, device="cpu").class_names == NAMES


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        ("an evaluation", ["train.lr=3"], "train.lr: no effect on an evaluation; remove it"),
        ("an evaluation", ["data.flip=0", "output_dir=x"], "data.flip, output_dir: no effect on an evaluation"),
        ("an evaluation", ["train.weights=x"], "train.weights: no effect"),
        ("an evaluation", ["lr=1"], "lr: no such option, and train.lr has no effect on an evaluation; remove it"),
        ("predictions", ["epochs=3"], "epochs: no such option, and train.epochs has no effect on predictions"),
        ("predictions", ["data=cells"], "data: no effect on predictions; remove it"),
        ("predictions", ["data.val.images=x"], "data.val.images: no effect"),
        ("predictions", ["data={short_side: 64}"], "data is a section; give its options one by one"),
        (
            "predictions",
            ["eval.voc_metrics=true", "eval.keypoint_sigmas=[0.1]"],
            "eval.voc_metrics, eval.keypoint_sigmas: no effect on predictions; remove them",
        ),
    ],
)
def test_options_without_effect_are_rejected(weights: Path, use: Use, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        restore_detector(weights, options, None, use=use)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("option", "condition"),
    [
        ("model.fpn.norm_groups=16", "model.fpn.norm=gn"),
        ("eval.scales_max_side=800", "eval.scales"),
        ("eval.flip=true", None),
    ],
)
def test_options_without_effect_given_the_others_are_named(
    weights: Path, option: str, condition: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    fcos.load(weights, option, device="cpu")
    assert caplog.messages == ([f"{option}: no effect, because it needs {condition}"] if condition else [])


@pytest.fixture
def original(tmp_path: Path) -> tuple[Path, Path]:
    """Return weights of the original, and a YAML file with their config."""
    config = tmp_path / "original.yaml"
    config.write_text(json.dumps(MOBILE["merged_config"]))
    return original_file(tmp_path / "original.pth", classes=2), config


def test_options_describe_weights_of_other_projects(original: tuple[Path, Path]) -> None:
    path, config = original
    model = fcos.load(path, "model.channel_order=rgb", "model.pixel_std=[2, 2, 2]", config=config, device="cpu").model
    assert torch.equal(model.pixel_std.flatten(), torch.full((3,), 2.0))


def test_config_names_the_classes_of_weights_without_names(original: tuple[Path, Path], tmp_path: Path) -> None:
    path, config = original
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(load_config(config, [f"train.weights={path}", "data.classes=[a, b]"]).to_yaml())
    assert fcos.load(recipe, device="cpu").class_names == ("a", "b")
    assert fcos.load(path, config=recipe, device="cpu").class_names == ("a", "b")
