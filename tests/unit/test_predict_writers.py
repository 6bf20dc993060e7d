"""Outputs of `fcos predict`: each can be read back, and is valid after an interruption or on a full disk."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from detectors import CATEGORY_IDS, NAMES
from hotcoco import mask as coco_mask
from PIL import Image
from tiny_data import config

from fcos import Detector
from fcos.data import Annotations, load_annotations
from fcos.errors import ConfigError, DataError, WriteError
from fcos.inference.prediction import Prediction
from fcos.inference.sources import predict_files
from fcos.inference.stream import Detected
from fcos.inference.writers import WRITERS, coco
from fcos.inference.writers.interface import Names, OpenFiles, class_folder
from fcos.inference.writers.row_file import RowFile


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two pictures of the same name and one more, and a file that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (120, 80)), ("a.jpg", (64, 96)), ("b.jpg", (80, 80))):
        Image.radial_gradient("L").convert("RGB").resize(size).save(folder / name)
    (folder / "broken.png").write_text("no picture")
    return folder


def run(detector: Detector, photos: Path, out: Path, save: Sequence[str], **options: Any) -> list[Detected]:
    """Return the results of the pictures that could be read, and check that the broken file is reported."""
    results: list[Detected] = []
    assert not predict_files(detector, [str(photos)], out, save=save, report=results.append, **options)
    assert [Path(result.source).name for result in results if result.error] == ["broken.png"]
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    return [result for result in results if result.instances is not None]


def found(result: Detected) -> Prediction:
    assert result.instances is not None
    return result.instances


def read(root: Path, **options: Any) -> Annotations:
    annotations = load_annotations(config(root, **options), "train")
    assert annotations is not None
    return annotations


def assert_same(annotations: Annotations, results: Sequence[Detected], *, atol: float) -> None:
    """Check that a data set has the pictures and boxes of the results."""
    assert len(annotations) == len(results)
    by_size = {tuple(annotations.sizes[i].tolist()): i for i in range(len(annotations))}
    for result in results:
        instances, image = found(result), by_size[found(result).size]
        span = annotations.span(image)
        names = [annotations.class_names[label] for label in annotations.labels[span].tolist()]
        assert names == instances.names
        np.testing.assert_allclose(annotations.boxes[span], instances.boxes.numpy(), atol=atol, rtol=0)
        with Image.open(annotations.path(image)) as picture, Image.open(result.source) as original:
            assert np.array_equal(np.asarray(picture), np.asarray(original))  # an unchanged copy


@pytest.mark.parametrize(("name", "atol"), [("coco", 1e-4), ("yolo", 1e-3), ("voc", 0.006)])  # rounding of the files
def test_data_sets_are_read_back(detector: Detector, photos: Path, tmp_path: Path, name: str, atol: float) -> None:
    results = run(detector, photos, tmp_path / "out", [name])
    assert_same(read(tmp_path / "out" / name), results, atol=atol)


def test_coco_file_contains_the_scores(detector: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(detector, photos, tmp_path / "out", ["coco"])
    tree = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    scores = [score for result in results for score in found(result).scores.tolist()]
    assert [annotation["score"] for annotation in tree["annotations"]] == pytest.approx(scores, abs=1e-6)
    assert [annotation["id"] for annotation in tree["annotations"]] == list(range(1, len(scores) + 1))
    assert {category["id"]: category["name"] for category in tree["categories"]} == dict(
        zip(CATEGORY_IDS, NAMES, strict=True)
    )


@pytest.fixture
def shapes(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """Return a detector that adds a mask and two keypoints to every detection."""

    def add(outputs: object, detections: Sequence[Prediction]) -> list[Prediction]:
        return [
            replace(
                found,
                mask_grids=torch.ones(len(found), 28, 28),
                keypoints=torch.stack(
                    [torch.cat([found.boxes[:, :2] + 1, found.scores[:, None]], 1), torch.zeros(len(found), 3)], 1
                ),
            )
            for found in detections
        ]

    monkeypatch.setattr(detector.model, "add_details", add)
    monkeypatch.setattr(type(detector.config.model), "num_predicted_keypoints", property(lambda _: 2))
    return detector


def test_coco_file_contains_masks_and_keypoints(shapes: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(shapes, photos, tmp_path / "out", ["coco"])
    annotations = read(tmp_path / "out/coco", masks=True, keypoints=True)
    assert annotations.keypoints is not None
    assert annotations.masks is not None
    points = torch.cat([keypoints for result in results if (keypoints := found(result).keypoints) is not None])
    assert [found(result).size for result in results] == [tuple(size) for size in annotations.sizes.tolist()]
    np.testing.assert_allclose(annotations.keypoints.values[:, 0, :2], points[:, 0, :2], atol=1e-3)
    assert (annotations.keypoints.values[:, 0, 2] == 2).all()
    assert (annotations.keypoints.values[:, 1] == 0).all()
    codes = [code for result in results for code in found(result).mask_codes() or []]
    tree = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    areas = [coco_mask.area(code) for code in codes]
    assert [coco_mask.area(row["segmentation"]) for row in tree["annotations"]] == areas
    assert [row["area"] for row in tree["annotations"]] == areas


def test_yolo_files_contain_keypoints(shapes: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(shapes, photos, tmp_path / "out", ["yolo"])
    annotations = read(tmp_path / "out/yolo", keypoints=True)
    assert_same(annotations, results, atol=1e-3)
    assert annotations.keypoints is not None
    assert (annotations.keypoints.values[:, 0, 2] == 2).all()
    assert (annotations.keypoints.values[:, 1] == 0).all()


def test_csv_has_a_row_per_detection_and_is_read_back(detector: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(detector, photos, tmp_path / "out", ["csv"])
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == [r.source for r in results for _ in range(len(found(r)))]
    assert [float(row["score"]) for row in rows] == pytest.approx(
        [score for result in results for score in found(result).scores.tolist()], abs=1e-6
    )
    assert_same(read(tmp_path / "out/predictions.csv"), results, atol=1e-4)


def test_csv_names_the_pictures_and_not_their_annotated_copies(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").touch()  # not a folder of predictions only
    monkeypatch.chdir(photos)
    results: list[Detected] = []
    options: dict[str, Any] = {"save": ["images", "csv"], "report": results.append}
    assert predict_files(detector, ["a.png", "b.jpg"], out, **options)
    assert [result.picture for result in results] == [out / "a.png", out / "b.jpg"]
    assert_same(read(out / "predictions.csv"), results, atol=1e-4)
    monkeypatch.chdir(tmp_path)
    annotations = read(Path("out/predictions.csv"))
    assert [annotations.path(i) for i in range(2)] == [photos / "a.png", photos / "b.jpg"]


def test_labels_of_other_classes_are_not_mixed(detector: Detector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(detector, photos, out, ["yolo"])
    run(detector, photos, out, ["yolo"])
    other = Detector(detector.model, detector.config, class_names=["car", "dog", "owl"])
    before = contents(out)
    with pytest.raises(DataError, match=r"yolo/data\.yaml: the folder contains labels of other classes.* \(--out\)"):
        predict_files(other, [str(photos)], out, save=["yolo", "csv"], report=lambda _: None)
    assert contents(out) == before


def test_csv_keeps_pictures_without_detections(detector: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(detector, photos, tmp_path / "out", ["csv", "coco", "voc", "yolo"], threshold=1.0)
    assert [len(found(result)) for result in results] == [0, 0, 0]
    rows = (tmp_path / "out/predictions.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == [result.source for result in results]
    tree = json.loads((tmp_path / "out/coco/annotations.json").read_text())
    assert (len(tree["images"]), tree["annotations"]) == (3, [])
    assert len(list((tmp_path / "out/voc/Annotations").iterdir())) == 3
    assert [path.read_text() for path in (tmp_path / "out/yolo/labels").iterdir()] == ["", "", ""]


def test_json_lines_equal_the_json_file(detector: Detector, photos: Path, tmp_path: Path) -> None:
    run(detector, photos, tmp_path / "out", ["json", "jsonl"])
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads((tmp_path / "out/predictions.json").read_text())


def test_parquet_has_a_row_per_detection(shapes: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(shapes, photos, tmp_path / "out", ["parquet", "json"])
    rows = pq.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    detections = [
        {"filename": row["file"], **detection}
        for row in json.loads((tmp_path / "out/predictions.json").read_text())
        for detection in row.get("detections", [])
    ]
    assert len(rows) == len(detections) == sum(len(found(result)) for result in results)
    for row, detection in zip(rows, detections, strict=True):
        assert (row["filename"], row["class"], row["category_id"]) == (
            detection["filename"],
            detection["name"],
            detection["category_id"],
        )
        assert [row[key] for key in ("xmin", "ymin", "xmax", "ymax")] == pytest.approx(detection["box"])
        assert row["segmentation"] == detection["segmentation"]["counts"]
        assert row["keypoints"] == pytest.approx(detection["keypoints"])
        assert (row["frame"], row["track_id"]) == (None, None)


def test_crops_show_the_objects(detector: Detector, photos: Path, tmp_path: Path) -> None:
    results = run(detector, photos, tmp_path / "out", ["crops"])
    files = sorted((tmp_path / "out/crops").rglob("*.*"))
    assert len(files) == sum(len(found(result)) for result in results)
    first = next(result for result in results if result.source.endswith("a.png"))
    box = found(first).boxes[0]
    with (
        Image.open(tmp_path / "out/crops" / found(first).names[0] / "a_1.png") as crop,
        Image.open(first.source) as image,
    ):
        left, top = box[:2].floor().int().tolist()
        right, bottom = box[2:].ceil().int().tolist()
        assert np.array_equal(np.asarray(crop), np.asarray(image.crop((left, top, right, bottom))))


def test_nothing_is_written_without_outputs(detector: Detector, photos: Path, tmp_path: Path) -> None:
    assert len(run(detector, photos, tmp_path / "out", [])) == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["json"], ["jsonl"], ["csv"], ["coco"], ["parquet"]])
def test_files_are_valid_after_an_interruption(
    detector: Detector, photos: Path, tmp_path: Path, names: list[str]
) -> None:
    def interrupt(_: Detected) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(detector, [str(photos)], out, save=names, report=interrupt)
    assert not [path for path in out.rglob("*") if path.suffix == ".tmp"]
    checks: dict[str, Callable[[], object]] = {
        "json": lambda: json.loads((out / "predictions.json").read_text()),
        "jsonl": lambda: [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()],
        "csv": lambda: (out / "predictions.csv").read_text().splitlines()[1:],
        "coco": lambda: len(read(out / "coco")),
        "parquet": lambda: pq.read_table(out / "predictions.parquet").to_pylist(),
    }
    assert checks[names[0]]()


def test_a_row_that_does_not_fit_on_the_disk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, is_full = os.write, [False, True, False]

    def write_half(descriptor: int, data: bytes) -> int:
        if is_full.pop(0):
            is_full.insert(0, False)
            write(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    files = OpenFiles(ExitStack(), ExitStack())
    file = RowFile(tmp_path / "rows.json", files, start="[", end=lambda: "]", separator=",")
    monkeypatch.setattr(os, "write", write_half)
    file.write("1")
    with pytest.raises(WriteError, match=r"rows\.json: cannot be written: No space left on device; free up"):
        file.write("22222222")
    monkeypatch.setattr(os, "write", write)
    file.write("3")
    assert not (tmp_path / "rows.json").exists()
    files.completion.close()
    files.cleanup.close()
    assert json.loads((tmp_path / "rows.json").read_text()) == [1, 3]


def test_a_coco_file_whose_images_do_not_fit_on_the_disk_is_removed(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "r+")  # closed by the writer  # noqa: SIM115
    monkeypatch.setattr(coco.tempfile, "TemporaryFile", lambda *_, **__: full)
    with pytest.raises(WriteError, match=r"annotations\.json: cannot be written: No space left on device; free up"):
        predict_files(detector, [str(photos / "b.jpg")], tmp_path / "out", save=["coco"], report=lambda _: None)
    assert list((tmp_path / "out/coco").iterdir()) == [tmp_path / "out/coco/images"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("blocked", ["predictions.json", "predictions.csv", "predictions.parquet", "coco", "voc"])
def test_earlier_results_stay_if_an_output_cannot_be_opened(
    detector: Detector, photos: Path, tmp_path: Path, blocked: str
) -> None:
    out = tmp_path / "out"
    run(detector, photos, out, list(WRITERS))
    path = out / blocked
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("no folder")
    else:
        path.unlink()
        path.mkdir()
    before = contents(out)
    with pytest.raises(WriteError, match=rf"{blocked}.*: cannot be written: "):
        predict_files(detector, [str(photos / "b.jpg")], out, save=list(WRITERS), report=lambda _: None)
    assert contents(out) == before
    assert {"predictions.jsonl", "yolo/data.yaml"} < before.keys()


def test_earlier_results_stay_after_an_interruption_before_the_first_picture(
    detector: Detector, photos: Path, tmp_path: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    run(detector, photos, out, list(WRITERS))
    before = contents(out)
    with detector.model.register_forward_pre_hook(interrupt), pytest.raises(KeyboardInterrupt):
        predict_files(detector, [str(photos / "b.jpg")], out, save=list(WRITERS), report=lambda _: None)
    assert contents(out) == before


def test_a_visible_file_replaces_an_earlier_one_with_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("earlier")
    files = OpenFiles(ExitStack(), ExitStack())
    file = RowFile(path, files, start="a,b\n", visible=True)
    assert path.read_text() == "earlier"
    file.write("1,2\n")
    file.write("3,4\n")
    assert path.read_text() == "a,b\n1,2\n3,4\n"
    files.completion.close()
    files.cleanup.close()
    assert contents(tmp_path) == {"rows.csv": b"a,b\n1,2\n3,4\n"}


def test_missing_pyarrow_is_named_with_the_command_to_type(
    detector: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'needs pyarrow; type: pip install "fcos-vision\[parquet\]"'):
        predict_files(detector, [str(photos)], tmp_path / "out", save=["json", "parquet"], report=lambda _: None)
    assert not (tmp_path / "out/predictions.json").exists()


def test_every_output_is_documented() -> None:
    guide = (Path(__file__).parents[2] / "docs/predict.md").read_text()
    assert [name for name in WRITERS if f"| `{name}` |" not in guide] == []


@pytest.mark.parametrize(
    ("name", "folder"),
    [("cat", "cat"), ("../../x", "_.._x"), ("a/b\\c", "a_b_c"), ("..", "_"), ("a\n", "a_"), ("", "_")],
)
def test_class_names_are_safe_folders(name: str, folder: str) -> None:
    assert class_folder(name) == folder


def test_names_differ_by_stem_where_labels_need_it() -> None:
    names = Names(by_stem=True)
    assert [names.unique(*name) for name in (("a", ".jpg"), ("A", ".png"), ("a_2", ".png"))] == [
        "a.jpg",
        "A_2.png",
        "a_2_2.png",
    ]
