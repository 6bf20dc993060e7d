"""Comparison of the options with which a run is resumed with those of its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fcos.config import Config
from fcos.config.overrides import apply_overrides
from fcos.training.changed_options import compare_options, describe_changed_options

FOLDER = Path.cwd()

CHANGES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "no option": ([], [], []),
    "another value": ([], ["train.lr=0.02", "train.seed=3"], ["train.lr: 0.01 -> 0.02", "train.seed: 0 -> 3"]),
    "value in another notation": ([], ["train.lr=1e-2"], []),
    "length given in another way": (
        [],
        ["train.epochs=3"],
        ["length of the run: train.iterations=90000 -> train.epochs=3.0"],
    ),
    "longer": (["train.epochs=3"], ["train.epochs=4"], ["train.epochs: 3.0 -> 4.0"]),
    "another backbone": ([], ["model.backbone.name=dla34"], ["model.backbone.name: resnet50 -> dla34"]),
    "another folder": (
        ["data=a", "data.train.annotations=a/x.json"],
        ["data=b"],
        [f"data.root: {FOLDER / 'a'} -> {FOLDER / 'b'}"],
    ),
    "another annotation file": (
        ["data=a", "data.val.annotations=x.json"],
        ["data=a", "data.val.annotations=y.json"],
        [f"data.val.annotations: [{FOLDER / 'x.json'}] -> [{FOLDER / 'y.json'}]"],
    ),
    "same folder as an absolute path": (["data=a"], [f"data={FOLDER / 'a'}"], []),
    "value that null stood for": ([], ["data.test_short_side=800", "data.test_max_side=1333", "train.devices=1"], []),
    "size of which another one follows": ([], ["data.short_side=[600]"], ["data.short_side: [800] -> [600]"]),
    "detection size": ([], ["data.test_short_side=600"], ["data.test_short_side: 800 -> 600"]),
    "schedule without milestones": (
        [],
        ["train.schedule=cosine", "train.gamma=0.3"],
        ["train.schedule: multistep -> cosine"],
    ),
    "averages of batch-norm statistics": (
        ["train.ema=0.9"],  # as in configs of earlier versions
        ["train.ema=0.9", "train.ema_statistics=same_age"],
        ["train.ema_statistics: same_decay -> same_age"],
    ),
    "unused options": (
        ["train.warmup=none", "train.optimizer=adamw", "data.short_side_range=[600,800]"],
        [
            "train.warmup=none",
            "train.warmup_iterations=7",
            "train.optimizer=adamw",
            "train.momentum=0.5",
            "train.ema_statistics=same_age",
            "data.short_side_range=[600,800]",
            "data.short_side=[500]",
            "eval.scales_flip=true",
            "model.fpn.norm_groups=16",
            "model.backbone.offset_groups=2",
        ],
        [],
    ),
    "options of new runs": (
        [],
        [
            "model.backbone.weights=null",
            "train.weights=a.pt",
            "output_dir=b",
            "train.resume=true",
            "model.num_classes=3",
        ],
        [],
    ),
    "entries of a dictionary": (
        ["train.lr_factors={backbone.*: 0.1, fpn.*: 0.5}"],
        ["train.lr_factors={backbone.*: 0.1, head.*: 2}"],
        ["train.lr_factors.fpn.*: 0.5 -> -", "train.lr_factors.head.*: - -> 2.0"],
    ),
    "device": (["device=cpu"], ["device=cuda:63"], ["device: cpu -> cuda:63"]),
}


def config(overrides: list[str]) -> Config:
    tree: dict[str, Any] = {}
    apply_overrides(tree, overrides)
    return Config.model_validate(tree)


@pytest.mark.parametrize("case", CHANGES)
def test_options_with_another_effect_are_named(case: str) -> None:
    old, new, expected = CHANGES[case]
    assert [str(change) for change in compare_options(config(old).to_dict(), config(new))] == expected


def test_the_automatic_device_is_the_same_as_its_name() -> None:
    device = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert compare_options(config(["device=auto"]).to_dict(), config([f"device={device}"])) == []


@pytest.mark.parametrize(
    "damage",
    [{"future": 1}, {"lr": "fast", "gamma": torch.zeros(3)}, {"momentum": {"nesterov": {1: 2}}}],
)
def test_a_config_of_another_version_is_compared_as_far_as_possible(damage: dict[str, Any]) -> None:
    saved = config(["train.seed=1"]).to_dict()
    saved["train"] |= damage
    changes = [str(change) for change in compare_options(saved, config(["train.batch_size=8"]))]
    assert "train.batch_size: 16 -> 8" in changes
    assert "train.seed: 1 -> 0" in changes
    assert len(changes) <= 3
    with pytest.raises(ValueError, match=r"\(model\.channel_order: rgb -> bgr\)"):
        describe_changed_options(saved, config(["model.channel_order=bgr"]), where="last.pt")


def test_long_values_are_shortened() -> None:
    (change,) = compare_options({}, config([f"data.classes=[{','.join(f'class{i}' for i in range(500))}]"]))
    assert len(str(change)) < 300
