"""A run of version 0.1.0, stored in `tests/fixtures`, can be read, evaluated and resumed.

It was trained on the rectangles of `data` and saved after iteration 230 of 240; metrics.csv has the rows up to 240.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import fcos
from fcos.cli import app
from fcos.config import Config, FCOSConfig
from fcos.evaluation.thresholds import shrink_thresholds
from fcos.recipes import load_config
from fcos.training.loop import train

RECORDED = Path(__file__).parents[1] / "fixtures/run_0.1.0"
TRUSTED = "model.backbone.name=tiny_backbone:Tiny"
SAVED_AT = 230
TIMINGS = ("minutes", "images_per_second", "data_share", "memory_mb")
NUMBERS: dict[str, Any] = {"rel": 3e-4}
"""Tolerance for float32 sums, whose order depends on the processor. A weight change of 1e-6 causes a tenth of it."""
FIGURES: dict[str, Any] = {"abs": 1e-6, "nan_ok": True}
"""Tolerance of the metrics. Every IoU is at least 6e-5 from a threshold, too far for rounding errors to cross it."""


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the recorded run to its original place: `run` in the working directory, beside `data`."""
    shutil.copytree(RECORDED, tmp_path / "run")
    (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def command(*words: str | Path) -> str:
    """Run `fcos WORDS` in this process and return its output."""
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def detections_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "detections.json").read_text())


def rows(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics.csv after the saved iteration, without timings."""
    with (run / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["iteration"]) > SAVED_AT:
                split = row.pop("split")
                yield {"split": split, **{key: float(row[key]) for key in row if row[key] and key not in TIMINGS}}


def test_old_weights_reproduce_their_detections(run: Path) -> None:
    detector = fcos.load(run / "weights/best.pt", TRUSTED, device="cpu")
    assert detector.class_names == ("red", "blue")
    found = detector.predict("data/images/0.png", threshold=0.05)
    expected = [d for d in detections_of(RECORDED / "val") if d["image_id"] == 0]
    assert len(expected) > 0
    assert [detector.category_ids[i] for i in found.labels] == [d["category_id"] for d in expected]
    assert found.scores.tolist() == pytest.approx([d["score"] for d in expected], **NUMBERS)
    for (x1, y1, x2, y2), detection in zip(found.boxes.tolist(), expected, strict=True):
        assert [x1, y1, x2 - x1, y2 - y1] == pytest.approx(detection["bbox"], abs=0.01)


def test_old_weights_reproduce_their_metrics(run: Path) -> None:
    assert "AP50" in command("val", run / "weights/best.pt", TRUSTED, "device=cpu", "--out", "again")
    folders = Path("again"), RECORDED / "val"
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    assert found["annotations_digest"] == expected["annotations_digest"]
    assert found["boxes_per_class"] == expected["boxes_per_class"]
    # Version 0.1.0 saved the thresholds with the best F1; now they are drawn towards the default.
    thresholds = shrink_thresholds(expected["thresholds"], expected["boxes_per_class"], default=0.5)
    assert found["thresholds"] == pytest.approx(thresholds, **NUMBERS)
    for figures, recorded in zip(metric_tables(found), metric_tables(expected), strict=True):
        assert figures == pytest.approx(recorded, **FIGURES)
    assert len(set(map(len, map(detections_of, folders)))) == 1


def metric_tables(saved: dict[str, Any]) -> list[dict[str, float]]:
    """Return the metrics over all classes, then those of each class; NaN if undefined."""
    tables = [saved["metrics"], *saved["per_class"].values()]
    return [{key: float("nan") if value is None else value for key, value in table.items()} for table in tables]


def test_resumed_old_run_reproduces_the_recorded_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_config(run / "config.yaml", ["train.resume=true"]))
    assert f"weights: iteration {SAVED_AT} of this run" in capsys.readouterr().out
    found, expected = list(rows(run)), list(rows(RECORDED))
    assert [(row["split"], row["iteration"]) for row in found] == [("train", 235), ("train", 240), ("val", 240)]
    for row, recorded in zip(found, expected, strict=True):
        assert recorded.keys() <= row.keys()
        tolerance = FIGURES if row["split"] == "val" else NUMBERS
        assert {key: row[key] for key in recorded} == {
            key: value if isinstance(value, str) else pytest.approx(value, **tolerance)
            for key, value in recorded.items()
        }
    with (RECORDED / "metrics.csv").open() as file, (run / "metrics.csv").open() as again:
        assert len(again.readlines()) == len(file.readlines())


def test_config_without_model_name_defaults_to_fcos(run: Path) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert tree["model"].pop("name") == "fcos"
    Path("old.yaml").write_text(yaml.safe_dump(tree))
    config = load_config("old.yaml")
    assert isinstance(config.model, FCOSConfig)
    assert config == load_config(run / "config.yaml")
    assert Config.model_validate(tree) == config


def test_report_of_an_old_run_shows_its_metrics(run: Path) -> None:
    assert f"written: {run / 'report.html'}" in command("report", run)
    page = (run / "report.html").read_text(encoding="utf-8")
    figures = json.loads((run / "val/metrics.json").read_text())["metrics"]
    assert f"<dt>AP</dt><dd>{figures['AP']:.3f}</dd>" in page
    assert "<dt>Iterations</dt><dd>240</dd>" in page
    for title in ("Metrics on val", "Score thresholds", "Best and worst images"):
        assert f"<h2>{title}</h2>" in page
