"""Damaged files in RUN/val and full disks under `fcos report` and `fcos doctor`."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_up_to
from reports import Made, made_run
from tiny_data import write_coco

from fcos.cli import main
from fcos.errors import WriteError
from fcos.evaluation.results import load_evaluation, save_evaluation
from fcos.files import write_text

pytestmark = pytest.mark.usefixtures("without_charts")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def undamaged(made: Made) -> Made:
    save_evaluation(made.evaluation, made.folder / "val")
    return made


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tree: tree.update({key: value})


METRICS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "text as metric": lambda tree: tree["metrics"].update(AP="0.5"),
    "list of metrics": change("metrics", [1, 2]),
    "class without metrics": lambda tree: tree["per_class"].update({next(iter(tree["per_class"])): {}}),
    "class without count": lambda tree: tree["boxes_per_class"].popitem(),
    "count of no class": lambda tree: tree["boxes_per_class"].update(stranger=3),
    "text as count": lambda tree: tree["boxes_per_class"].update({next(iter(tree["boxes_per_class"])): "3"}),
    "text as threshold": change("thresholds", {"a": "high"}),
    "NaN as threshold": change("thresholds", {"a": float("nan")}),
    "number as digest": change("annotations_digest", 3),
    "no classes": change("per_class", None),
}
DETECTIONS: dict[str, Any] = {
    "no list": {"image_id": 1},
    "no dict": [1, 2],
    "no box": [{"image_id": 1, "category_id": 1, "score": 0.5}],
    "short box": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 0.5}],
    "text in a box": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, "4"], "score": 0.5}],
    "infinite box": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 1e999], "score": 0.5}],
    "text as score": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}],
    "null as score": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": None}],
    "text as image": [{"image_id": "1", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
    "list as class": [{"image_id": 1, "category_id": [1], "bbox": [1, 2, 3, 4], "score": 0.5}],
}


@pytest.mark.parametrize("damage", METRICS.values(), ids=METRICS)
def test_damaged_metrics_are_like_missing_ones(damage: Callable[[dict[str, Any]], Any], undamaged: Made) -> None:
    path = undamaged.folder / "val/metrics.json"
    tree = json.loads(path.read_text())
    damage(tree)
    path.write_text(json.dumps(tree))
    assert load_evaluation(path.parent) is None


@pytest.mark.parametrize("detections", DETECTIONS.values(), ids=DETECTIONS)
def test_damaged_detections_are_like_missing_ones(detections: Any, undamaged: Made) -> None:
    path = undamaged.folder / "val/detections.json"
    path.write_text(json.dumps(detections))
    assert load_evaluation(path.parent) is None


@pytest.mark.parametrize("name", ["metrics.json", "detections.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 200_000, b"9" * 9000, b'{"metrics": {"AP"'],
    ids=["empty", "bytes", "deep", "long", "cut"],
)
def test_files_that_are_not_json_are_like_missing_ones(name: str, content: bytes, undamaged: Made) -> None:
    path = undamaged.folder / "val" / name
    path.write_bytes(content)
    assert load_evaluation(path.parent) is None


def test_a_report_is_written_without_the_damaged_evaluation(undamaged: Made) -> None:
    (undamaged.folder / "val/detections.json").write_text("[1]")
    page = undamaged.page()
    assert "val/ contains no complete evaluation" in page
    assert "Metrics on val" not in page


@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("value", [-5, 2**70])
def test_detections_on_images_or_of_classes_that_val_lacks_are_not_shown(key: str, value: int, undamaged: Made) -> None:
    path = undamaged.folder / "val/detections.json"
    detections = json.loads(path.read_text())
    detections[0][key] = value
    path.write_text(json.dumps(detections))
    page = undamaged.page()
    assert "The evaluation in val/ belongs to other weights or data; run `fcos report RUN`" in page


# ----------------------------------------------------------------------------------------------------------- full disks


ROOM = 10
"""Size of the largest file on the full disk. The limit must end in the test, as it also applies to pytest's output."""


def test_writing_to_a_full_disk_names_the_file_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with files_up_to(ROOM), pytest.raises(WriteError) as caught:
        write_text(path, "after " * 10)
    assert str(caught.value) == f"{path}: cannot be written: File too large; free up disk space"
    assert caught.value.errno == errno.EFBIG
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["before"]


def test_writing_to_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"gone/a\.txt: cannot be written: No such file or directory$"):
        write_text(tmp_path / "gone/a.txt", "")


def test_an_evaluation_is_kept_on_a_full_disk(undamaged: Made) -> None:
    folder = undamaged.folder / "val"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with files_up_to(ROOM), pytest.raises(WriteError, match="cannot be written: File too large"):
        save_evaluation(replace(undamaged.evaluation, metrics={}), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_doctor_on_a_full_disk_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco(tmp_path / "data")
    with files_up_to(ROOM), pytest.raises(SystemExit) as stop:
        main(["doctor", f"data={data}", "--out", str(tmp_path / "checkup")])
    assert stop.value.code == 2
    assert f"{tmp_path / 'checkup/doctor.json'}: cannot be written: File too large" in capsys.readouterr().err


def test_a_report_on_a_full_disk_names_the_file(undamaged: Made, capsys: pytest.CaptureFixture[str]) -> None:
    page = undamaged.page()
    with files_up_to(ROOM), pytest.raises(SystemExit) as stop:
        main(["report", str(undamaged.folder)])
    assert stop.value.code == 2
    assert f"{undamaged.folder / 'report.html'}: cannot be written: File too large" in capsys.readouterr().err
    assert (undamaged.folder / "report.html").read_text(encoding="utf-8") == page
