"""The scripts in examples/, run as a user would run them, except for the length of the training."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fcos
from fcos.interop.fcos_core.weights import renaming_back
from fcos.models import build_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TESTED = ["predict", "train", "custom_backbone", "custom_transforms", "evaluate_checkpoint"]
SHORT = ["train.iterations=1", "train.batch_size=2", "data.short_side=64", "data.workers=0", "device=cpu"]
UNTRAINED = ["model.backbone.weights=null", "model.backbone.frozen_stages=0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, which is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])  # as for `python examples/NAME.py`
    return tmp_path


def run(name: str, *words: object, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_is_short_and_tested() -> None:
    scripts = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert sorted(scripts) == sorted(TESTED)
    assert max(scripts.values()) < 60


def test_train_and_predict_examples_run(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", data, *SHORT, *UNTRAINED, "model.score_threshold=0", patch=monkeypatch)
    out = capsys.readouterr().out
    assert "run folder: runs/fcos_mnv2_small" in out
    assert "red: AP " in out
    run("predict", "runs/fcos_mnv2_small/weights/best.pt", data / "images/0.png", patch=monkeypatch)
    assert (folder / "0_detections.png").is_file()


@pytest.mark.parametrize("name", ["custom_backbone", "custom_transforms"])
def test_custom_backbone_and_transforms_examples_train(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = UNTRAINED if name == "custom_transforms" else []
    run(name, data, *SHORT, *options, patch=monkeypatch)
    assert "run folder: runs/fcos_mnv2_small, AP " in capsys.readouterr().out
    config = yaml.safe_load(Path("runs/fcos_mnv2_small/config.yaml").read_text(encoding="utf-8"))
    own = {config["model"]["backbone"]["name"], config["data"]["transforms"]}
    assert {f"{name}:{'TinyNet' if name == 'custom_backbone' else 'augment'}"} < own


def test_example_evaluates_and_converts_a_checkpoint_of_the_original(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load((ROOT / "configs/fcos/fcos_bn_bs16_MNV2_FPN_1x.yaml").read_text(encoding="utf-8"))
    tree["MODEL"] |= {"FCOS": {"NUM_CLASSES": 3}, "WEIGHT": "", "DEVICE": "cpu"}
    tree["INPUT"] = {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96}
    (folder / "original.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = fcos.load_config("original.yaml").model
    model = build_model(config, num_classes=2, pretrained=False)
    names = {
        name: renaming_back(config.model_dump())(name) for name in model.state_dict() if not name.startswith("pixel_")
    }
    torch.save({"model": {new: model.state_dict()[name] for name, new in names.items()}}, "original.pth")
    run("evaluate_checkpoint", "original.pth", data, "original.yaml", patch=monkeypatch)
    out = capsys.readouterr().out
    assert "AP50   0.0" in out
    assert "converted.pt detects 2 classes" in out
    assert fcos.load("converted.pt", device="cpu").model.box_convention == "inclusive"
