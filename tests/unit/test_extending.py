"""A new backbone and a new detector, added to a copy of the package."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import finish

import fcos

HELPERS = Path(__file__).parents[1] / "helpers"
BACKBONE = '''class PatchesConfig(BackboneSection):
    """Convolutions without overlap."""

    builder = "patches:Patches"

    name: Literal["patches"] = option("patches", "shape")
    weights: None = option(None, "training")
    norm: Literal["bn"] = option("bn", "shape")
    frozen_stages: int = option(0, "training", ge=0, le=0)
    width: int = option(4, "shape", ge=1)
    """Channels of every map."""


'''
DETECTOR = '''class GridConfig(DetectorConfig):
    """A grid of cells."""

    name: Literal["grid"] = "grid"
    score_threshold: float = option(0.05, "detection", ge=0, lt=1)
    """Detections score more."""

    @property
    def default_threshold(self) -> float:
        """0.3."""
        return 0.3


'''


def copy_package(folder: Path) -> Path:
    """Copy the package, with its bytecode, into a folder and return the copy."""
    unfinished = shutil.ignore_patterns("*.pyc.*")  # that another process writes and then renames
    return Path(shutil.copytree(Path(fcos.__file__).parent, folder / "fcos", ignore=unfinished))


def edit(path: Path, pattern: str, replacement: str) -> None:
    """Replace the only line that matches."""
    text, count = re.subn(pattern, replacement, path.read_text(), flags=re.M)
    assert count == 1
    path.write_text(text)


def run(program: str, folder: Path) -> str:
    """Run a helper program with the copy of the package in `folder`, and return what it prints."""
    process = subprocess.Popen(
        [sys.executable, HELPERS / "programs" / program, folder / "work"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(HELPERS)])},
    )
    code, out, _ = finish(process)
    assert code == 0, out
    return out


def test_new_backbone_needs_only_a_module_and_a_config_section(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    shutil.copy(HELPERS / "patches.py", package / "models" / "backbones" / "patches.py")
    edit(package / "config" / "backbones.py", r"^SECTIONS\b.*\(", rf"{BACKBONE}\g<0>PatchesConfig, ")
    found = json.loads(run("new_backbone.py", tmp_path).splitlines()[-1])
    assert found["package"] == str(package)
    assert found["channels"] == {"C3": 6, "C4": 6}
    assert found["options"] == {"name": "patches", "weights": None, "norm": "bn", "frozen_stages": 0, "width": 6}
    assert found["loaded"] == found["options"]
    assert found["wrong_name"].endswith(
        "no backbone 'patch', did you mean 'patches'?; known: " + ", ".join(found["known"])
    )
    assert "patches" in found["known"]
    assert found["wrong_option"].endswith("known options: name, weights, norm, frozen_stages, width")
    assert found["roles"] == ["shape"]
    assert found["explained"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return a folder with the results of all verbs for the new detector `grid`, and the output of each call."""
    folder = tmp_path_factory.mktemp("grid")
    package = copy_package(folder)
    shutil.copy(HELPERS / "grid.py", package / "models" / "grid.py")
    edit(package / "config" / "detectors.py", r"^(DETECTORS\b.*\{)$", rf'{DETECTOR}\1\n    "grid": GridConfig,')
    table = r'from .grid import build_grid\n\n\1\n    "grid": build_grid,'
    edit(package / "models" / "__init__.py", r"^(MODELS\b.*\{)$", table)
    parts = re.split(r"^== (.*)\n", run("second_detector.py", folder), flags=re.M)
    return folder / "work", dict(zip(parts[1::2], parts[2::2], strict=True))


def test_new_detector_works_with_all_commands(grid: tuple[Path, dict[str, str]]) -> None:
    _, said = grid
    fine = (
        "doctor",
        "train",
        "resume",
        "val",
        "flip",
        "report",
        "predict",
        "convert",
        "last",
        "show",
    )
    assert {name: said[name].splitlines()[-1] for name in fine} == dict.fromkeys(fine, "exit 0")
    assert "4 iterations, " in said["train"]
    assert "weights: iteration 4 of this run" in said["resume"]
    assert re.search(r"a\.png: \d+ (cat|dog)", said["predict"])
    assert "matched: 312 of 312 tensors" in said["convert"]
    assert "# Detections score more." in said["show"]
    assert "grid.yaml: a recipe or config without trained weights" in said["random weights"]


def test_logs_and_report_contain_losses_and_stats_of_a_new_detector(
    grid: tuple[Path, dict[str, str]],
) -> None:
    folder, _ = grid
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows if row["split"] == "train"] == list(range(1, 7))
    assert [int(row["iteration"]) for row in rows if row["split"] == "val"] == [2, 4, 6]
    assert {name for name in rows[0] if name.startswith("loss_")} == {"loss_grid_class", "loss_grid_corners"}
    assert {name for name in rows[0] if name.endswith("_share")} == {"data_share", "crowded_share"}
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "grid with mobilenet_v2" in page
    assert "Crowded boxes" in page
    assert "FCOS" not in page
    assert "nassigned" not in page


def test_doctor_output_for_a_new_detector_mentions_no_pyramid(grid: tuple[Path, dict[str, str]]) -> None:
    folder, said = grid
    assert "Usable images and boxes" in said["doctor"]
    for text in (said["doctor"], (folder / "doctor" / "doctor.html").read_text(encoding="utf-8")):
        assert not re.search(r"level|location|recall|size_ranges", text)


def test_class_rows_of_a_new_detector_are_loaded_by_name(grid: tuple[Path, dict[str, str]]) -> None:
    _, said = grid
    assert (
        "classes.weight, classes.bias: loaded 1 of 2 rows by class name (dog); newly initialised: bird"
        in said["other classes"]
    )
    assert "at most 1 in a micro-batch" in said["other classes"]
    assert said["other classes"].endswith("exit 0\n")


def test_divergence_of_a_new_detector_is_diagnosed(grid: tuple[Path, dict[str, str]]) -> None:
    _, said = grid
    assert re.search(r"iteration \d: the loss is not finite \(loss_grid_class=", said["not finite"])
    assert said["not finite"].endswith("exit 2\n")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("torchvision", "weights of grid, but torchvision supports only FCOS, RetinaNet and R-CNN"),
        ("original", "weights of grid, but the original has only FCOS, RetinaNet, RPN and R-CNN"),
        ("grid into fcos", "model.name=grid"),
        ("config of fcos", "weights of grid, but the config is for fcos; give a config for grid"),
        ("wrong option", "model.head: no such option; known options: name, num_classes, backbone"),
    ],
)
def test_detector_mismatch_is_reported_with_exit_code_two(
    grid: tuple[Path, dict[str, str]], call: str, message: str
) -> None:
    _, said = grid
    assert message in said[call]
    assert said[call].endswith("exit 2\n")
    assert "Traceback" not in said[call]
