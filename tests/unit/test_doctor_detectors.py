"""`fcos doctor` with the config of a detector other than FCOS: checks the data and reports nothing about a pyramid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tiny_data import config, write_json

from fcos.config import Config, DetectorConfig
from fcos.doctor.check import check
from fcos.doctor.page import make_page
from fcos.doctor.terminal import render

KINDS_OF_COVERAGE = {
    "box covered by smaller boxes",
    "box between the locations",
    "class with low recall",
    "level without boxes",
}


class OtherConfig(DetectorConfig):
    """Config of a detector without a pyramid."""

    name: Literal["other"] = "other"

    @property
    def default_threshold(self) -> float:
        """Score threshold of 0.5."""
        return 0.5


@pytest.fixture
def fcos_config(tmp_path: Path) -> Config:
    """Return a config with four images, two of them equal, a duplicate box, and a box between the locations of FCOS."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in (0, 1, 2, 3):
        coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / f"images/{i}.png")
    (tmp_path / "images/4.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    boxes = [(1, [5, 5, 30, 30]), (2, [10, 3, 40, 30]), (2, [10, 3, 40, 30]), (3, [21, 21, 5, 5])]
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(5)],
        "annotations": [{"id": k, "image_id": i, "category_id": 1, "bbox": box} for k, (i, box) in enumerate(boxes)],
        "categories": [{"id": 1, "name": "cell"}],
    }
    write_json(tmp_path / "train.json", tree)
    return Config(data=config(tmp_path))


def test_other_detector_gets_fcos_findings_except_coverage(fcos_config: Config) -> None:
    other = check(fcos_config.model_copy(update={"model": OtherConfig()}))
    of_fcos = check(fcos_config)
    assert of_fcos.coverage is not None
    assert of_fcos.advice
    assert other.coverage is None
    assert other.advice == []
    assert other.counts == of_fcos.counts
    assert other.counts["train"].boxes == 4
    assert repr(other.histograms) == repr(of_fcos.histograms)
    kinds = [finding.kind for finding in other.findings]
    assert set(kinds) == {"duplicate image", "duplicate box", "missing val split", "class with few boxes in train"}
    assert kinds == [finding.kind for finding in of_fcos.findings if finding.kind not in KINDS_OF_COVERAGE]
    assert {finding.kind for finding in of_fcos.findings} - set(kinds) <= KINDS_OF_COVERAGE


def test_wrong_number_of_keypoints_is_a_problem(fcos_config: Config) -> None:
    assert fcos_config.data.root is not None
    file = fcos_config.data.root / "train.json"
    tree = json.loads(file.read_text())
    tree["categories"][0]["keypoints"] = ["head", "tail"]
    for annotation in tree["annotations"]:
        annotation["keypoints"] = [6, 6, 2, 9, 9, 2]
    tree["annotations"][1]["keypoints"] = [6, 6, 2]
    write_json(file, tree)
    data = fcos_config.data.model_copy(update={"keypoints": True})
    report = check(fcos_config.model_copy(update={"data": data}))
    (problem,) = [problem for problem in report.problems["train"] if "keypoint" in problem.kind]
    assert problem.kind == "wrong number of keypoints"
    assert "annotation 1" in str(problem)
    assert "expected 2 keypoints (head, tail), found 1" in str(problem)
    assert report.counts["train"].boxes == 3


def test_report_of_other_detector_omits_pyramid_and_recall(
    fcos_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(fcos_config.model_copy(update={"model": OtherConfig()}), recipe="other")
    assert report.to_dict()["coverage"] is None
    texts = [make_page(report).html()]
    Console(width=120).print(render(report))
    texts.append(capsys.readouterr().out)
    for text in texts:
        assert "1 pair of boxes of the same class" in " ".join(text.split())
        assert "pyramid" not in text
        assert "recall" not in text
