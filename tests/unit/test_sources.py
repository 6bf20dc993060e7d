"""Detection on files: finding images, writing results, handling bad files."""

import json
from dataclasses import replace

import pytest
import torch
from detectors import CATEGORY_IDS
from hotcoco import mask as coco_mask
from PIL import Image

from fcos import DataError
from fcos.data.files import PREDICTIONS_MARK
from fcos.inference.paths import expand
from fcos.inference.sources import predict_files


@pytest.fixture
def folder(tmp_path):
    """Return a folder with images in two folders, one file name in both, and a file that is not an image."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "more/a.jpg"):
        Image.radial_gradient("L").convert("RGB").resize((120, 80)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def names(found):
    return [path.rpartition("/")[2] for path in found]


def test_folder_expands_to_its_sorted_images(folder):
    assert names(expand(str(folder))) == ["a.JPG", "b.png"]


def test_recursive_glob_enters_subfolders(folder):
    assert names(expand(f"{folder}/*.png")) == ["b.png"]
    assert names(expand(f"{folder}/**/a.*")) == ["a.JPG", "a.jpg"]


def test_existing_file_with_glob_characters_is_not_expanded(folder):
    odd = folder / "a[1].png"
    Image.new("RGB", (8, 8)).save(odd)
    assert expand(str(odd)) == [str(odd)]


def test_existing_folder_with_glob_characters_is_not_expanded(folder):
    (folder / "a[1]").mkdir()
    (folder / "a1").mkdir()
    for name in ("a[1]", "a1"):
        Image.new("RGB", (8, 8)).save(folder / name / "b.png")
    for pattern in ("a[1]/*.png", "a[1]/**/*.png"):
        assert expand(str(folder / pattern)) == [str(folder / "a[1]/b.png")]
    assert expand(str(folder / "a[12]/*.png")) == [str(folder / "a1/b.png")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.jpg", "no such file or folder"),
        ("*.gif", "no file matches"),
        ("empty", r"no images in this folder; expected files with the suffixes \.jpg"),
    ],
)
def test_source_without_images_is_rejected(folder, source, message):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        expand(str(folder / source))


def run(detector, sources, out, **options):
    results = []
    done = predict_files(detector, [str(s) for s in sources], out, report=results.append, **options)
    return done, results


def test_output_images_keep_their_names_and_number_duplicates(detector, folder, tmp_path):
    out = tmp_path / "out"
    done, results = run(detector, [folder, folder / "more"], out)
    assert done
    assert sorted(p.name for p in out.iterdir()) == [PREDICTIONS_MARK, "a.JPG", "a_2.jpg", "b.png"]
    assert [result.picture for result in results] == [out / "a.JPG", out / "b.png", out / "a_2.jpg"]
    for result in results:
        with Image.open(result.picture) as picture:
            assert picture.size == (720, 480)


def test_json_contains_names_category_ids_scores_and_boxes(detector, folder, tmp_path):
    run(detector, [folder / "b.png"], tmp_path / "out", save=("images", "json"))
    (row,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    found = detector.predict(folder / "b.png")
    assert len(found) > 0
    assert row["file"] == str(folder / "b.png")
    assert row["picture"] == "b.png"
    assert (row["width"], row["height"]) == (120, 80)
    assert [d["name"] for d in row["detections"]] == found.names
    assert [d["category_id"] for d in row["detections"]] == [CATEGORY_IDS[label] for label in found.labels.tolist()]
    assert [d["score"] for d in row["detections"]] == pytest.approx(found.scores.tolist(), abs=1e-6)
    assert [d["box"] for d in row["detections"]] == [pytest.approx(box, abs=1e-3) for box in found.boxes.tolist()]


def test_json_contains_masks_and_keypoints_in_coco_form(detector, folder, tmp_path, monkeypatch):
    def add_shapes(outputs, detections):
        return [
            replace(found, mask_grids=torch.ones(len(found), 28, 28), keypoints=torch.ones(len(found), 2, 3))
            for found in detections
        ]

    monkeypatch.setattr(detector.model, "add_details", add_shapes)
    run(detector, [folder / "b.png"], tmp_path / "out", save=("images", "json"))
    (row,) = json.loads((tmp_path / "out" / "predictions.json").read_text())
    found = detector.predict(folder / "b.png")
    assert len(found) == len(row["detections"]) > 0
    for detection, mask in zip(row["detections"], found.masks, strict=True):
        assert list(detection) == ["name", "category_id", "score", "box", "segmentation", "keypoints"]
        assert detection["segmentation"]["size"] == [80, 120]
        assert coco_mask.area(detection["segmentation"]) == mask.sum()
        assert len(detection["keypoints"]) == 6


def test_unreadable_files_are_reported_and_the_others_processed(detector, folder, tmp_path):
    sources = [folder / "none.png", folder / "notes.txt", folder / "b.png", folder / "none*"]
    done, results = run(detector, sources, tmp_path / "out", save=("images", "json"))
    assert not done
    errors = {result.source: result.error for result in results if result.error}
    assert set(errors) == {str(s) for s in sources} - {str(folder / "b.png")}
    assert "not an image" in errors[str(folder / "notes.txt")]
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert sum("error" in row for row in rows) == 3
    assert (tmp_path / "out" / "b.png").is_file()


def test_input_images_are_never_overwritten(detector, folder):
    before = (folder / "b.png").read_bytes()
    with pytest.raises(DataError, match="choose another one"):
        run(detector, [folder / "b.png"], folder)
    assert (folder / "b.png").read_bytes() == before


def test_interrupted_run_keeps_its_results(detector, folder, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(detector, [str(folder)], tmp_path / "out", save=("images", "json"), report=interrupt)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert rows  # the next picture may have been written meanwhile
    assert all((tmp_path / "out" / row["picture"]).is_file() for row in rows)


def test_unsupported_output_format_falls_back_to_png(detector, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.ppm")
    _, (result,) = run(detector, [tmp_path / "a.ppm"], tmp_path / "out")
    with Image.open(result.picture) as picture:
        assert picture.format == "PNG"
