"""Fixtures for tests of complete trainings, and a video."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_backbone
import torch
from detectors import TINY
from exports import small_detector
from tiny_data import coco_tree, write_coco
from videos import write_video

from fcos.config import Config
from fcos.html_page import Chart, Section
from fcos.training.loop import train

if TYPE_CHECKING:
    from fcos.export.write import Exported


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_coco(tmp_path / "data", split="val")
    return write_coco(tmp_path / "data")


@pytest.fixture
def configure(tmp_path: Path, data: Path) -> Callable[..., Config]:
    """Return a function that builds the config of a two-step run in `tmp_path/run`; keywords are options of `train`.

    The default backbone is very cheap and has no batch norm.
    """

    def build(*, model: dict[str, Any] | None = None, **settings: Any) -> Config:
        options = {
            key: value for key, value in TINY[(model or {}).get("name", "fcos")].items() if key != "max_detections"
        }
        length = {} if settings.keys() & {"epochs", "max_minutes"} else {"iterations": 2}
        return Config.model_validate(
            {
                "model": {
                    "backbone": {"name": "own_backbone:Own"},
                    "fpn": {"channels": 64},
                    **options,
                    **(model or {}),
                },
                "data": {"root": data, "short_side": [32], "max_side": 64, "workers": 0},
                "train": {"batch_size": 2, "warmup": "none", "log_every": 1, "lr": 1e-4, **length, **settings},
                "output_dir": tmp_path / "run",
                "device": "cpu",
            }
        )

    return build


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fcos.train` write no report, whose charts take most of the time of a short run."""
    monkeypatch.setattr("fcos.reporting.report.write_report", lambda folder, **_: folder / "report.html")


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the charts of pages by their titles: drawing them takes most of the time of a report."""

    def add_titles(section: Section, charts: Sequence[Chart]) -> None:
        for chart in charts:
            section.text(chart.title)

    monkeypatch.setattr(Section, "charts", add_titles)


@pytest.fixture
def configure_rcnn(configure: Callable[..., Config], data: Path) -> Callable[..., Config]:
    """Return a function that builds the config of an R-CNN with masks and keypoints, on data with both."""
    tree = coco_tree()
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
        annotation["keypoints"] = [x + 1, y + 1, 2, x + width / 2, y + height / 2, 1]
    for split in ("train", "val"):
        write_coco(data, tree, split=split)

    def build(**settings: Any) -> Config:
        options = configure(model={"name": "rcnn"}, **settings).to_dict()
        options["data"] |= {"masks": True, "keypoints": True, "flip": 0.0}
        options["model"]["mask"] |= {"enabled": True, "conv_channels": [8]}
        options["model"]["keypoints"] |= {"enabled": True, "conv_channels": [8], "num_keypoints": 2}
        return Config.model_validate(options)

    return build


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of five frames; do not modify it."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def exported_detector(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export `small_detector()` as an ONNX file for any batch and size, also for Triton; do not modify the files."""
    folder = tmp_path_factory.mktemp("exported")
    return small_detector().export(folder / 'my "cells".onnx', triton=folder / "models")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return the config of a finished run of two steps with a checkpoint after each step; do not modify its folder."""
    root = tmp_path_factory.mktemp("template")
    for split in ("train", "val"):
        write_coco(root / "data", split=split)
    config = Config.model_validate(
        {
            "model": tiny_backbone.MODEL,
            "data": {"root": root / "data", "short_side": [32], "max_side": 64, "workers": 0},
            "train": {"batch_size": 2, "iterations": 2, "warmup": "none", "lr": 1e-4, "checkpoint_every": 1},
            "output_dir": root / "run",
            "device": "cpu",
        }
    )
    train(config)
    # The first checkpoint, of iteration 1, was replaced by those before and after the evaluation.
    content = torch.load(root / "run/weights/last-1.pt", weights_only=True)
    content["iteration"] = content["training"]["state"]["iteration"] = 1
    content["training"]["state"]["evaluated_at"] = -1
    torch.save(content, root / "run/weights/last-1.pt")
    return config


@pytest.fixture
def run(template: Config, tmp_path: Path) -> Path:
    assert template.output_dir is not None
    return Path(shutil.copytree(template.output_dir, tmp_path / "run"))
